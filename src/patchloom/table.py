"""A table of two columns, as notebooks show it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

__all__ = ["html_table"]


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
