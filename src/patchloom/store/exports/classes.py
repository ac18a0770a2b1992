"""One array a class: what data_tools' ``create_dataset`` makes."""

from __future__ import annotations

from typing import ClassVar

from patchloom.errors import ConfigError
from patchloom.store.exports.contents import Contents, Held
from patchloom.store.exports.names import safe_name
from patchloom.store.exports.zarr_arrays import ZarrFormat

__all__ = ["ClassesFormat"]


class ClassesFormat(ZarrFormat):
    """Arrays ``class_0``, ``class_1`` ... (patch, c, [z], y, x) of a Zarr group, a column's values.

    Rows without a class are left out.
    """

    called: ClassVar[str] = "classes"
    column: ClassVar[str | None] = "by"
    arrays: ClassVar[tuple[str, ...] | None] = ("images",)

    by: str = "class"
    """The column of the manifest whose values are the classes."""

    def check(self, contents: Contents) -> None:
        """A class is one array."""
        if len(contents.arrays) != 1:
            names = [held.name for held in contents.arrays]
            raise ConfigError(
                f"classes holds one array of each class, got arrays={names}; export them one after "
                "the other, each to a place of its own"
            )

    def path(self, contents: Contents, section: int, held: Held) -> str:
        """``class_`` and the value."""
        value = contents.sections[section].value
        return f"class_{safe_name(str(value))}"
