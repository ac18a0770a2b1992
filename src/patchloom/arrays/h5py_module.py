"""h5py, which an extra brings."""

from __future__ import annotations

from typing import Any

from patchloom.errors import ConfigError

__all__ = ["h5py_module"]


def h5py_module() -> Any:
    """The module, for who writes HDF5.

    Raises
    ------
    ConfigError
        If it is not installed, naming the extra.
    """
    try:
        import h5py
    except ImportError:
        raise ConfigError(
            "HDF5 needs h5py, which is not installed; pip install 'patchloom[hdf5]'"
        ) from None
    return h5py
