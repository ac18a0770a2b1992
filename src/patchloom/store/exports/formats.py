"""Formats: all of them by name, each imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from patchloom.configs import parsed_as
from patchloom.errors import ConfigError
from patchloom.store.exports.format import Format

__all__ = ["FORMATS", "format_of"]

FORMATS = {
    "classes": "classes.ClassesFormat",
    "hdf5": "hdf5.Hdf5Format",
    "litdata": "litdata.LitdataFormat",
    "mds": "mds.MdsFormat",
    "npy": "npy.NpyFormat",
    "png": "png.PngFormat",
    "tiff": "tiff.TiffFormat",
    "webdataset": "webdataset.WebdatasetFormat",
    "zarr": "zarr_arrays.ZarrFormat",
}
"""Where each format is, by the name that ``to=`` takes."""


def format_of(name: str, options: Mapping[str, Any]) -> Format:
    """A format with its options.

    Parameters
    ----------
    name
        One of `FORMATS`.
    options
        By the names of its fields.

    Raises
    ------
    ConfigError
        If there is no such format or option, or a value is wrong.

    Examples
    --------
    >>> format_of("zarr", {"chunk": 4}).chunk
    4
    >>> format_of("zar", {})
    Traceback (most recent call last):
        ...
    patchloom.errors.ConfigError: to= is one of ['classes', 'hdf5', 'litdata', 'mds', 'npy', \
'png', 'tiff', 'webdataset', 'zarr'], got 'zar'; did you mean 'zarr'?
    """
    if name not in FORMATS:
        near = difflib.get_close_matches(str(name), FORMATS, 1)
        raise ConfigError(
            f"to= is one of {list(FORMATS)}, got {name!r}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    module, _, kind = FORMATS[name].partition(".")
    found = getattr(importlib.import_module(f"patchloom.store.exports.{module}"), kind)
    made = parsed_as(found, f"options of {name!r}", dict(options))
    assert isinstance(made, Format)
    return made
