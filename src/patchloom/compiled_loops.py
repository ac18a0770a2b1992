"""Compiled loops: what numba (the extra ``fast``) compiles of a module, once that pays.

Importing numba takes more than a second and some 120 MB, so a process turns to it only after as
many pixels as make up for that.
"""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["CompiledLoops"]

_log = logging.getLogger(__name__)


class CompiledLoops:
    """A module of loops, imported once it pays.

    Parameters
    ----------
    module
        Its name.
    patience
        Pixels that a process works on with NumPy before: about what the import costs.
    instead
        What NumPy does if numba cannot be imported, for the log.
    """

    def __init__(self, module: str, patience: int, instead: str) -> None:
        self.patience = patience
        self._name, self._instead = module, instead
        self._module: Any = None
        self._done = 0
        self._possible = find_spec("numba") is not None

    def after(self, n: int) -> Any:
        """What numba compiled, or None if NumPy is to work on these `n` pixels."""
        if self._module is None and self._possible:
            self._done += n
            if self._done > self.patience:
                self._load()
        return self._module

    def _load(self) -> None:
        try:
            self._module = import_module(self._name)
        except ImportError as error:
            _log.warning("numba is installed but cannot be imported, %s: %s", self._instead, error)
            self._possible = False
