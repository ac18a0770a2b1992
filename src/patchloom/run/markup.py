"""Markup: the parts that all pages are made of. Pages refer to nothing outside themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

__all__ = ["bars", "document", "many", "named", "pair", "table", "tiles", "times"]


def document(title: str, parts: Sequence[str]) -> str:
    """A page without scripts; its parts are HTML already."""
    style = (files("patchloom.run") / "page.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="generator" content="patchloom">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} - patchloom</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def tiles(figures: Sequence[tuple[str, str, str]]) -> str:
    """Key figures: a number, what it counts, and what to know about it."""
    cells = "".join(
        f"<li><strong>{escape(big)}</strong><span>{escape(what)}</span>"
        f"<small>{escape(more)}</small></li>"
        for big, what, more in figures
    )
    return f'<ul class="tiles" aria-label="Key figures">{cells}</ul>'


def named(key: str, text: str) -> str:
    """A figure's name in words, and its key where that is another."""
    if key == text:
        return escape(text)
    return f'{escape(text)} <code class="key">{escape(key)}</code>'


def table(caption: str, rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """A table; the first cell of a row is its heading and HTML already."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(map(_cell, rest))}</tr>' for first, *rest in rows
    )
    # Not a <caption>: where a wide table is scrolled, its text would be scrolled away.
    return (
        f'<p>{escape(caption)}</p><div class="scroll" tabindex="0">'
        f'<table aria-label="{escape(caption)}"{" class=numbers" if head else ""}>'
        f"{f'<thead><tr>{top}</tr></thead>' if head else ''}<tbody>{body}</tbody></table></div>"
    )


def bars(heading: str, caption: str, counts: Mapping[str, int]) -> str:
    """A section with a bar for each count, and its share of all."""
    total, most = max(1, sum(counts.values())), max(1, *counts.values())
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td class="bar">'
        f'<i style="width:{100 * n / most:.1f}%"></i></td><td>{n:,}</td>'
        f"<td>{n / total:.1%}</td></tr>"
        for name, n in counts.items()
    )
    return (
        f"<section><h2>{escape(heading)}</h2><p>{escape(caption)}</p>"
        f'<div class="scroll" tabindex="0"><table class="bars" aria-label="{escape(caption)}">'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def pair(*sections: str) -> str:
    """Sections side by side, where there is more than one; empty ones are left out."""
    some = [section for section in sections if section]
    return f'<div class="pair">{"".join(some)}</div>' if len(some) > 1 else "".join(some)


def _cell(text: str) -> str:
    # A number and its unit stay on one line.
    return f"<td>{escape(text if len(text) > 12 else text.replace(' ', chr(160)))}</td>"


def many(n: int, noun: str) -> str:
    """A number and its noun.

    >>> many(1, "image"), many(1200, "image")
    ('1 image', '1,200 images')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def times(extents: Sequence[object]) -> str:
    """Extents, as people write them."""
    return " x ".join(str(n) for n in extents)
