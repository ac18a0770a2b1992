"""Tables of two columns, as notebooks show them, and what stands in them."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

__all__ = ["as_bytes", "html_table"]


def html_table(caption: str, rows: Mapping[str, object]) -> str:
    """An HTML table with a caption and one row an entry; everything is escaped.

    >>> html_table("Image", {"axes": "YX"})
    '<table><caption>Image</caption><tr><th>axes</th><td>YX</td></tr></table>'
    """
    body = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table><caption>{escape(caption)}</caption>{body}</table>"


def as_bytes(n: float) -> str:
    """A number of bytes, at most four digits of it.

    >>> as_bytes(812), as_bytes(5.5 * 2**20)
    ('812 B', '5.5 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if n < 1024 or unit == "TiB":
            break
        n /= 1024
    return f"{n:,.0f} {unit}" if unit == "B" else f"{n:,.1f} {unit}"
