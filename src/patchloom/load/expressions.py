"""Expressions over a manifest: a small language that Python's parser reads and nothing executes."""

from __future__ import annotations

import ast
import difflib
import keyword
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any
from unicodedata import normalize

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from patchloom.errors import ConfigError

__all__ = ["Expression", "equal_rows", "known_column"]

_LONGEST = 10_000
"""Characters of an expression."""
_SPOKEN = {"and", "or", "not", "in", "is", "None", "True", "False"}
"""Keywords of Python that are words of the language; the others may be columns."""
_WORDS = re.compile(
    r"(?P<text>'''.*?'''|\"\"\".*?\"\"\"|'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\")"
    r"|`(?P<quoted>[^`]*)`|(?P<name>[^\W\d]\w*)",
    re.DOTALL,
)
_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}
_COUNT: dict[type[ast.operator], str] = {
    ast.Add: "add_checked",
    ast.Sub: "subtract_checked",
    ast.Mult: "multiply_checked",
    ast.Div: "divide",
}
_LANGUAGE = (
    "comparisons (==, !=, <, <=, >, >=), in, not in, is None, and, or, not, parentheses, + - * / "
    "of numbers, text in quotes, True, False and names of columns"
)


@dataclass(frozen=True)
class Expression:
    """A condition on the rows of a manifest, such as ``split == "train" and coverage > 0.8``.

    It knows comparisons, also chained, ``in`` and ``not in`` a list of constants, ``and``, ``or``,
    ``not``, parentheses, ``+ - * /`` of numbers, text in quotes, ``True`` and ``False``, and the
    names of columns; those that are no plain words stand in backticks. Nothing else, and nothing
    is evaluated by Python.

    **Missing values.** What is asked of one is unknown, and so is ``not`` of it; ``and`` and ``or``
    are unknown where the other side does not decide. A row is taken if the whole is true: neither
    ``x > 1`` nor ``not x > 1`` takes rows without x. ``x is None`` asks for them. A NaN is a number
    that is equal to nothing, as everywhere.

    Examples
    --------
    >>> table = pa.table({"split": ["train", "val", None], "coverage": [0.9, 1.0, 1.0]})
    >>> Expression.of('split == "train" or coverage < 0.5').rows(table).tolist()
    [True, False, False]
    >>> Expression.of("not split in ['val']").rows(table).tolist()
    [True, False, False]
    >>> Expression.of("split is None").rows(table).tolist()
    [False, False, True]
    """

    text: str
    """As it was written."""
    columns: tuple[str, ...]
    """The columns that it asks for, in the order of their names."""
    _tree: ast.expr = field(repr=False, compare=False)
    _named: tuple[tuple[str, str], ...] = field(repr=False, compare=False)

    @classmethod
    def of(cls, text: str | Expression) -> Expression:
        """Read one.

        Raises
        ------
        ConfigError
            If it is none: naming what is no part of the language.
        """
        if isinstance(text, Expression):
            return text
        if not isinstance(text, str) or not text.strip() or len(text) > _LONGEST:
            got = f"{len(text)} characters" if isinstance(text, str) else type(text).__name__
            raise ConfigError(
                f"a condition is a text of up to {_LONGEST:,} characters, got {got}; write one "
                "such as 'split == \"train\" and coverage > 0.8'"
            )
        named: dict[str, str] = {}

        def plain(found: re.Match[str]) -> str:
            name = found["quoted"] if found["name"] is None else found["name"]
            if (
                name is None
                or (found["name"] in _SPOKEN)
                or (found["name"] is not None and _is_name(name))
            ):
                return found[0]
            return named.setdefault(name, f"_{len(named)}_column")

        try:
            tree = ast.parse(_WORDS.sub(plain, text).strip(), mode="eval").body
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            what = error.msg if isinstance(error, SyntaxError) else type(error).__name__
            raise ConfigError(
                f"a condition is read as Python reads expressions, got {text!r} ({what}); it may "
                f"hold {_LANGUAGE}; text stands in quotes, columns of odd names in `backticks`"
            ) from None
        back = {plain: name for name, plain in named.items()}
        columns = tuple(sorted(back.get(name, name) for name in names))
        made = cls(text, columns, tree, tuple(back.items()))
        made._check()
        return made

    def _check(self) -> None:
        """Refuse what is no part of the language before a table is looked at."""
        allowed = (
            ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.UAdd, ast.BinOp,
            ast.Compare, ast.In, ast.NotIn, ast.Is, ast.IsNot, ast.Name, ast.Load, ast.Constant,
            ast.List, ast.Tuple, ast.Set, *_COMPARE, *_COUNT,
        )  # fmt: skip
        for node in ast.walk(self._tree):
            what = type(node).__name__
            if isinstance(node, ast.Constant):
                if node.value is None or isinstance(node.value, bool | int | float | str):
                    continue
                what = repr(node.value)
            if not isinstance(node, allowed) or isinstance(node, ast.Constant):
                raise ConfigError(
                    f"a condition holds {_LANGUAGE}, got {what} in {self.text!r}; leave it out, or "
                    "take rows by number: patches.take(positions)"
                )

    def rows(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows of a table it takes: bool[n].

        Parameters
        ----------
        table
            A manifest, or any other table of text, numbers and flags.

        Raises
        ------
        ConfigError
            If a column is unknown, or values are compared that have no order between them.
        """
        found = self._read(table, _Reading.condition)
        if isinstance(found, pa.Scalar):
            return np.full(table.num_rows, found.as_py() is True)
        return np.asarray(pc.fill_null(found, False)).astype(np.bool_)

    def numbers(self, table: pa.Table) -> npt.NDArray[np.float64]:
        """The number that it makes of each row of a table, NaN where it is missing: float64[n].

        Parameters
        ----------
        table
            As for `rows`.

        Raises
        ------
        ConfigError
            If a column is unknown, or the whole is no number.

        Examples
        --------
        >>> Expression.of("1 + 3 * coverage").numbers(pa.table({"coverage": [0.5, None]})).tolist()
        [2.5, nan]
        """
        found = self._read(table, _Reading.number)
        if isinstance(found, pa.Scalar):
            return np.full(table.num_rows, np.float64(found.as_py()))
        wide = pc.cast(found, pa.float64(), safe=False)
        return np.asarray(pc.fill_null(wide, np.nan), np.float64)

    def _read(self, table: pa.Table, ask: Callable[[_Reading, ast.expr], Any]) -> Any:
        names = dict(self._named)
        for name in self.columns:
            known_column(table, name, f" in {self.text!r}; text stands in quotes")
        try:
            return ask(_Reading(self, table, names), self._tree)
        except (pa.ArrowException, OverflowError) as error:
            raise ConfigError(
                f"the numbers of a condition fit into 64 bits, got {self.text!r}: {error}"
            ) from None
        except UnicodeError:
            raise ConfigError(
                f"text in a condition is Unicode, got half a character in {self.text!r}; write it "
                "whole"
            ) from None
        except RecursionError:
            raise ConfigError(
                "a condition may nest a few hundred levels, got more; write it flat: "
                "column in [...]"
            ) from None


def _is_name(name: str) -> bool:
    """Whether Python reads a word as this name: not a keyword, nor a micro sign, a mu to it."""
    return not keyword.iskeyword(name) and normalize("NFKC", name) == name


@dataclass(frozen=True, eq=False)
class _Value:
    """A column or a constant: a ``"number"``, ``"text"``, ``"flag"`` or ``"none"``."""

    data: Any
    kind: str


@dataclass(frozen=True, eq=False)
class _Reading:
    """One expression over one table."""

    expression: Expression
    table: pa.Table
    names: dict[str, str]

    def condition(self, node: ast.expr) -> Any:
        """What is true, false or unknown."""
        if isinstance(node, ast.BoolOp):
            join: Callable[[Any, Any], Any] = (
                pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
            )
            return reduce(join, [self.condition(one) for one in node.values])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return pc.invert(self.condition(node.operand))
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            return reduce(
                pc.and_kleene,
                [
                    self._compared(a, op, b)
                    for a, op, b in zip(sides[:-1], node.ops, sides[1:], strict=True)
                ],
            )
        value = self._value(node)
        if value.kind != "flag":
            raise self._error(
                f"'and', 'or', 'not' and the whole take conditions, got a {value.kind}"
            )
        return value.data

    def _compared(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Any:
        mine = self._value(left)
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self._error("'is' asks for missing values: 'is None' or 'is not None'")
            return (pc.is_null if isinstance(op, ast.Is) else pc.is_valid)(mine.data)
        if isinstance(op, ast.In | ast.NotIn):
            found = self._among(mine, right)
            return pc.invert(found) if isinstance(op, ast.NotIn) else found
        other = self._value(right)
        self._check_alike(mine, other)
        ordered = not isinstance(op, ast.Eq | ast.NotEq)
        if ordered and "flag" in (mine.kind, other.kind):
            raise self._error("flags are equal or not, and have no order")
        return pc.call_function(_COMPARE[type(op)], [mine.data, other.data])

    def _among(self, value: _Value, listed: ast.expr) -> Any:
        if not isinstance(listed, ast.List | ast.Tuple | ast.Set):
            raise self._error('\'in\' takes a list of constants, such as ["a", "b"]')
        constants = [self._value(one) for one in listed.elts]
        for one in constants:
            if not isinstance(one.data, pa.Scalar):
                raise self._error("'in' takes a list of constants, and no columns in it")
            self._check_alike(value, one)
        missing = pc.is_null(value.data)
        if value.kind == "text":
            wanted = pa.array([one.data.as_py() for one in constants], value.data.type)
            return pc.if_else(missing, pa.scalar(None, pa.bool_()), pc.is_in(value.data, wanted))
        found: Any = pc.if_else(missing, pa.scalar(None, pa.bool_()), False)
        return reduce(pc.or_, [pc.equal(value.data, one.data) for one in constants], found)

    def _check_alike(self, one: _Value, other: _Value) -> None:
        if one.kind != other.kind and "none" not in (one.kind, other.kind):
            raise self._error(
                f"what is compared is of one kind, got a {one.kind} and a {other.kind}"
            )
        for side in (one, other):
            if isinstance(side.data, pa.Scalar) and side.kind == "none":
                raise self._error("None is equal to nothing; ask 'is None' or 'is not None'")

    def _value(self, node: ast.expr) -> _Value:
        if isinstance(node, ast.Name):
            return _column(self.table[self.names.get(node.id, node.id)], self)
        if isinstance(node, ast.Constant):
            return _constant(node.value)
        if isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.Not):
            value = self.number(node.operand)
            data = pc.negate_checked(value) if isinstance(node.op, ast.USub) else value
            return _Value(data, "number")
        if isinstance(node, ast.BinOp):
            sides = [self.number(node.left), self.number(node.right)]
            if isinstance(node.op, ast.Div):
                sides = [pc.cast(side, pa.float64()) for side in sides]
            return _Value(pc.call_function(_COUNT[type(node.op)], sides), "number")
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            raise self._error("a list stands after 'in'")
        return _Value(self.condition(node), "flag")

    def number(self, node: ast.expr) -> Any:
        """What can be counted with."""
        value = self._value(node)
        if value.kind == "none" and not isinstance(value.data, pa.Scalar):
            return pc.cast(value.data, pa.float64())
        if value.kind != "number":
            raise self._error(f"+, -, * and / take numbers, got a {value.kind}")
        return value.data

    def _error(self, law: str) -> ConfigError:
        kinds = [f"{name} ({self.table[name].type})" for name in self.expression.columns]
        return ConfigError(
            f"in a condition {law}, in {self.expression.text!r} of the columns "
            f"{', '.join(kinds) or 'none'}; compare text with text and numbers with numbers"
        )


def _constant(value: object) -> _Value:
    if value is None:
        return _Value(pa.scalar(None), "none")
    if isinstance(value, bool):
        return _Value(pa.scalar(value), "flag")
    if isinstance(value, str):
        return _Value(pa.scalar(value), "text")
    assert isinstance(value, int | float)
    wide = isinstance(value, int) and not -(2**63) <= value < 2**63
    return _Value(pa.scalar(float(value) if wide else value), "number")


def _column(found: pa.ChunkedArray, reading: _Reading) -> _Value:
    kind = found.type
    if pa.types.is_dictionary(kind):
        return _column(pc.cast(found, kind.value_type), reading)
    if pa.types.is_null(kind):
        return _Value(found, "none")
    if pa.types.is_boolean(kind):
        return _Value(found, "flag")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _Value(found, "text")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        # Narrow types would overflow where their numbers do not.
        wide = pa.float64() if pa.types.is_floating(kind) else pa.int64()
        return _Value(found if kind == pa.uint64() else pc.cast(found, wide), "number")
    raise reading._error("columns are text, numbers or flags")


def known_column(table: pa.Table, name: Any, more: str = "") -> pa.ChunkedArray:
    """A column of a manifest.

    Raises
    ------
    ConfigError
        If there is none; the message lists those that there are.
    """
    if isinstance(name, str) and name in table.column_names:
        return table[name]
    near = difflib.get_close_matches(str(name), table.column_names, 1)
    raise ConfigError(
        f"a column of the manifest is one of {', '.join(table.column_names)}, got {name!r}"
        f"{f' (did you mean {near[0]!r}?)' if near else ''}{more}"
    )


def equal_rows(table: pa.Table, columns: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Which rows of a table have some values: bool[n].

    Parameters
    ----------
    table
        A manifest.
    columns
        Of each column a value, or a list of values; None is a missing one.

    Raises
    ------
    ConfigError
        If a column is unknown, or no value of it can be such a one.
    """
    found = np.ones(table.num_rows, np.bool_)
    for name, given in columns.items():
        column = known_column(table, name)
        values = list(given) if isinstance(given, list | tuple | set | np.ndarray) else [given]
        values = [v.item() if isinstance(v, np.generic) else v for v in values]
        if pa.types.is_dictionary(column.type):
            column = pc.cast(column, column.type.value_type)
        try:
            wanted = pa.array(values, column.type)
        except (pa.ArrowException, OverflowError, TypeError) as error:
            raise ConfigError(
                f"values of {name!r} are {column.type}, got {values[:5]}: {error}"
            ) from None
        found &= np.asarray(pc.is_in(column, wanted)).astype(np.bool_)
    return found
