"""Conditions on a manifest: equal to asking row by row, and nothing but the language is read."""

from __future__ import annotations

import operator
import pickle
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchloom.errors import ConfigError
from patchloom.load.expressions import Expression

Row = dict[str, Any]
Asked = tuple[str, Callable[[Row], Any]]

NUMBERS = st.none() | st.integers(-3, 3) | st.sampled_from([0.5, -1.5, float("nan")])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "split": st.none() | st.sampled_from(["train", "val", "it's"]),
            "coverage": st.none() | st.sampled_from([0.0, 0.5, 1.0, 2.0, float("nan")]),
            "class": st.none() | st.integers(-2, 2),
            "day 1": st.none() | st.integers(-2, 2),
            "sick": st.none() | st.booleans(),
        }
    ),
    max_size=8,
)
TYPES = {
    "split": pa.string(),
    "coverage": pa.float32(),
    "class": pa.int8(),
    "day 1": pa.int64(),
    "sick": pa.bool_(),
}
COMPARED = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def table_of(rows: list[Row]) -> pa.Table:
    return pa.table({k: pa.array([row[k] for row in rows], v) for k, v in TYPES.items()})


def lifted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of missing values: missing."""
    return lambda *values: None if any(v is None for v in values) else function(*values)


def numbers() -> st.SearchStrategy[Asked]:
    columns = st.sampled_from([("coverage", "coverage"), ("class", "class"), ("`day 1`", "day 1")])
    named = columns.map(lambda pair: (pair[0], lambda row: row[pair[1]]))
    fixed = st.sampled_from([0, 1, -1, 2, 0.5]).map(lambda v: (repr(v), lambda row: v))

    def joined(parts: tuple[Asked, str, Asked]) -> Asked:
        (a, f), sign, (b, g) = parts
        do = {"+": operator.add, "-": operator.sub, "*": operator.mul}[sign]
        return f"({a} {sign} {b})", lambda row: lifted(do)(f(row), g(row))

    return st.recursive(
        named | fixed,
        lambda some: (
            st.tuples(some, st.sampled_from("+-*"), some).map(joined)
            | some.map(lambda one: (f"-({one[0]})", lambda row: lifted(operator.neg)(one[1](row))))
        ),
        max_leaves=3,
    )


def conditions() -> st.SearchStrategy[Asked]:
    def compared(parts: tuple[Asked, str, Asked]) -> Asked:
        (a, f), sign, (b, g) = parts
        return f"{a} {sign} {b}", lambda row: lifted(COMPARED[sign])(f(row), g(row))

    def between(parts: tuple[Asked, Asked, Asked]) -> Asked:
        (a, f), (b, g), (c, h) = parts

        def ask(row: Row) -> Any:
            low, high = (lifted(operator.le)(*p) for p in ((f(row), g(row)), (g(row), h(row))))
            return conjunction([low, high])

        return f"{a} <= {b} <= {c}", ask

    def among(parts: tuple[list[str], bool]) -> Asked:
        values, negated = parts

        def ask(row: Row) -> Any:
            return None if row["split"] is None else (row["split"] in values) is not negated

        return f"split {'not ' * negated}in {values!r}", ask

    def missing(parts: tuple[str, bool]) -> Asked:
        name, negated = parts
        told = f"`{name}`" if " " in name else name
        return (
            f"{told} is {'not ' * negated}None",
            lambda row: (row[name] is None) is not negated,
        )

    leaves = (
        st.tuples(numbers(), st.sampled_from([*COMPARED]), numbers()).map(compared)
        | st.tuples(numbers(), numbers(), numbers()).map(between)
        | st.tuples(st.lists(st.sampled_from(["train", "it's", "no"])), st.booleans()).map(among)
        | st.tuples(st.sampled_from([*TYPES]), st.booleans()).map(missing)
        | st.just(("sick", lambda row: row["sick"]))
        | st.just(("sick == False", lambda row: lifted(operator.eq)(row["sick"], False)))
    )

    def joined(parts: tuple[Asked, str, Asked]) -> Asked:
        (a, f), word, (b, g) = parts
        do = conjunction if word == "and" else disjunction
        return f"({a} {word} {b})", lambda row: do([f(row), g(row)])

    return st.recursive(
        leaves,
        lambda some: (
            st.tuples(some, st.sampled_from(["and", "or"]), some).map(joined)
            | some.map(
                lambda one: (f"not ({one[0]})", lambda row: lifted(operator.not_)(one[1](row)))
            )
        ),
        max_leaves=5,
    )


def conjunction(values: list[Any]) -> Any:
    return False if False in values else None if None in values else True


def disjunction(values: list[Any]) -> Any:
    return True if True in values else None if None in values else False


@given(ROWS, conditions())
def test_equals_asking_row_by_row(rows: list[Row], asked: Asked) -> None:
    """A row is taken if the condition is true of it; neither a missing value nor its 'not' is."""
    text, ask = asked
    found = Expression.of(text).rows(table_of(rows)).tolist()
    assert found == [ask(row) is True for row in rows], text


def test_division_is_that_of_numbers() -> None:
    table = pa.table({"a": [1, 1, 0], "b": [2, 0, 0]})
    assert Expression.of("a / b == 0.5").rows(table).tolist() == [True, False, False]
    assert Expression.of("a / b > 1e300").rows(table).tolist() == [False, True, False]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "split ==",
        "__import__('os').system('true')",
        "split.upper() == 'A'",
        "split[0] == 'a'",
        "lambda: 1",
        "[x for x in (1, 2)]",
        "coverage ** 2 > 1",
        "coverage % 2 == 1",
        "coverage // 2 == 1",
        "f'{split}' == 'a'",
        "split == b'a'",
        "coverage == 1j",
        "(coverage := 1) > 0",
        "1 if coverage else 0",
        "split in split",
        "split in [coverage]",
        "split in 'train'",
        "split is 'train'",
        "split == None",
        "split > 1",
        "split and coverage > 1",
        "coverage",
        "not coverage",
        "sick < True",
        "coverage + 'a' > 1",
        "sick + 1 > 1",
        "['a'] == split",
        "x" * 10_001,
        "(" * 300 + "sick" + ")" * 300,
        "class + 9223372036854775807 > 0",
        None,
        1,
    ],
)
def test_what_is_no_condition_is_refused(text: Any) -> None:
    table = table_of([dict.fromkeys(TYPES)]).set_column(2, "class", pa.array([1], pa.int64()))
    with pytest.raises(ConfigError):
        Expression.of(text).rows(table)


def test_an_unknown_column_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"split, coverage, class.*did you mean 'coverage'\?"):
        Expression.of("covrage > 0.5").rows(table_of([]))


def test_text_that_looks_like_columns_stays_text() -> None:
    table = pa.table({"class": ["class", "`x`", 'say "class"']})
    for k, text in enumerate(["class == 'class'", "class == '`x`'", "class == 'say \"class\"'"]):
        assert Expression.of(text).rows(table).tolist() == [j == k for j in range(3)]


def test_columns_and_pickles() -> None:
    found = Expression.of("class > 1 and `day 1` < 2 or coverage == 0")
    assert found.columns == ("class", "coverage", "day 1")
    again = pickle.loads(pickle.dumps(found))
    assert again.rows(table_of([])).tolist() == []


def test_dictionaries_and_columns_of_nothing() -> None:
    text = pa.array(["x", None, "y"])
    for column in (text, text.dictionary_encode(), text.cast(pa.large_string())):
        table = pa.table({"a": column, "b": pa.nulls(3)})
        for asked in ("a == 'x'", "a in ['x', 'z']", "'x' in ['x'] and a < 'y'"):
            assert Expression.of(asked).rows(table).tolist() == [True, False, False]
    for asked in ("b > 1", "b + 1 > 1", "b in [1]", "b in ['x']", "not b == 'x'"):
        assert Expression.of(asked).rows(table).tolist() == [False] * 3, asked
    with pytest.raises(ConfigError):
        Expression.of("b").rows(table)


def test_names_and_text_that_are_not_as_python_has_them() -> None:
    """Python composes names anew (a micro sign is a mu); half a character is no text."""
    table = pa.table({"\u00b5m": [1, 2], "\u03bcm": [2, 1], "\ufb01t": [3, 4]})
    assert Expression.of("\u00b5m > 1").rows(table).tolist() == [False, True]
    assert Expression.of("\u03bcm > 1 and \ufb01t == 3").rows(table).tolist() == [True, False]
    assert Expression.of("\u00b5m > 1").columns == ("\u00b5m",)
    with pytest.raises(ConfigError, match="half a character"):
        Expression.of(r"x == '\ud800'").rows(pa.table({"x": ["a"]}))
