"""PublicNames: what is completed after a dot is what a user may call."""

from __future__ import annotations

__all__ = ["PublicNames"]


class PublicNames:
    """Lists only public names in `dir`, which completion goes by; all others are there as ever.

    >>> class Box(PublicNames):
    ...     def open(self): ...
    >>> dir(Box())
    ['open']
    """

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_")]
