"""The site, made of the pages as they are: ``sphinx-build -W -n -c docs . build/site``.

The pages are plain Markdown that a forge shows too, so nothing in them is meant for Sphinx. What it
needs more is made here while it reads: tables of contents from the links of ``docs/index.md`` (each
heading there is a group, each first link of a table's row a page), a page for each name in the
tables of ``docs/reference.md``, and links to the repository for what is no page.
"""

from __future__ import annotations

import importlib.util
import posixpath
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from sphinx.ext.napoleon import NumpyDocstring

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TREE = PROJECT["urls"]["Documentation"].removesuffix("/docs")

project = PROJECT["name"]
author = project_copyright = "The patchloom developers"
version = release = PROJECT["version"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "deploy/README.md", "benchmarks/README.md"]
exclude_patterns = [".*", "build", "demo-output", "dist", "examples", "src", "tests", "docs/api/.*"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
suppress_warnings = ["misc.highlighting_failure"]
language = "en"
highlight_language = "none"

myst_heading_anchors = 4
myst_links_external_new_tab = False
smartquotes_action = "D"  # two hyphens are a dash; quotes stay
default_role = "py:obj"

autodoc_mock_imports = ["keras", "numba", "torch"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
autodoc_use_type_comments = False
autodoc_type_aliases = {"npt.ArrayLike": "numpy.typing.ArrayLike"}
napoleon_google_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"
nitpick_ignore_regex = [("py:.*", ".*")]  # their homes are other sites, which are not fetched

html_theme = "furo"
html_title = "patchloom"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"code-font-size": "75%"},
}

LINK = re.compile(r"(\]\()([^)\s]+)(\))")
PLAIN = re.compile(r"\[[\w./-]+\.md\]\(([^)\s:]+\.md(?:#[^)\s]*)?)\)")
"""A link that shows a file's name; on the site it shows the title of the page instead."""
ROW = re.compile(r"^\| \[[^\]]*\]\(([^)#]+\.md)\)", re.M)
NAME = re.compile(r"^\| `([\w.]+)` \|", re.M)
HERE = (".json", ".png", ".svg")
CODE = re.compile(r"(^```.*?^```\s*$|`[^`\n]+`)", re.M | re.S)


def pages_of(text: str, folder: str) -> list[str]:
    """The documents that the first links of the rows of a text's tables name."""
    found = [posixpath.normpath(posixpath.join(folder, link)) for link in ROW.findall(text)]
    return [link.removesuffix(".md") for link in dict.fromkeys(found)]


def toctree(documents: list[str], caption: str = "") -> str:
    """A hidden table of contents in MyST."""
    lines = ["```{toctree}", ":hidden:"]
    if caption:
        lines.append(f":caption: {caption}")
    return "\n".join([*lines, "", *(f"/{document}" for document in documents), "```"])


def with_contents(docname: str, text: str) -> str:
    """A page with the tables of contents that its own tables of links stand for."""
    folder = posixpath.dirname(docname)
    if docname == root_doc:
        parts = re.split(r"^## (.+)$", text, flags=re.M)
        groups = zip(parts[1::2], parts[2::2], strict=True)
        trees = [
            toctree(found, title) for title, rows in groups if (found := pages_of(rows, folder))
        ]
    elif docname == "docs/reference":
        trees = [toctree([f"docs/api/{name}" for name in NAME.findall(text)])]
        text = NAME.sub(r"| [`\1`](api/\1.rst) |", text)
    elif posixpath.basename(docname) == "index":
        own = [page for page in pages_of(text, folder) if posixpath.dirname(page) == folder]
        trees = [toctree(own)]
    else:
        return text
    return "\n\n".join([text, *trees, ""])


def with_links(app: Sphinx, docname: str, text: str) -> str:
    """A page whose links show titles, and lead to the repository where they lead to no page."""
    folder = posixpath.dirname(docname)

    def moved(found: re.Match[str]) -> str:
        link = found[2]
        if re.match(r"[a-z]+:|#", link):
            return found[0]
        path = posixpath.normpath(posixpath.join(folder, link.partition("#")[0]))
        known = posixpath.splitext(path)[0] in app.env.found_docs
        if known or path.endswith(HERE) or not (ROOT / path).exists():
            return found[0]
        return f"{found[1]}{TREE}/{path}{found[3]}"

    parts = CODE.split(text)
    text = "".join(p if i % 2 else LINK.sub(moved, p) for i, p in enumerate(parts))
    return PLAIN.sub(r"[](\1)", text)


def read(app: Sphinx, docname: str, content: list[str]) -> None:
    """Change a page between disk and parser."""
    if not docname.startswith("docs/api/"):
        content[0] = with_links(app, docname, with_contents(docname, content[0]))


def api_page(name: str) -> str:
    """The page of a name, or of a module, in reStructuredText."""
    full = f"patchloom.{name}"
    members = ["   :members:"]
    if name.rpartition(".")[2][0].isupper():
        kind, members = "class", [*members, "   :inherited-members: Exception"]
    elif importlib.util.find_spec(full):
        kind = "module"
    else:
        kind, members = "function", []
    head = [".. highlight:: python", "", name, "=" * len(name), ""]
    return "\n".join([*head, f".. auto{kind}:: {full}", *members, ""])


def write_api(app: Sphinx) -> None:
    """A page for each name in the tables of the reference, under ``docs/api``."""
    folder = ROOT / "docs" / "api"
    folder.mkdir(exist_ok=True)
    names = NAME.findall((ROOT / "docs" / "reference.md").read_text(encoding="utf-8"))
    for stale in set(folder.glob("*.rst")) - {folder / f"{name}.rst" for name in names}:
        stale.unlink()
    for name in names:
        page, text = folder / f"{name}.rst", api_page(name)
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def write_door(app: Sphinx, exception: Exception | None) -> None:
    """The page at the root, which leads to the map."""
    if exception is None and app.builder.format == "html":
        door = '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html">\n'
        Path(app.outdir, "index.html").write_text(door, encoding="utf-8")


def of_properties(
    app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    """Read a property's docstring as a method's.

    Napoleon would take what stands before the first colon for its type.
    """
    if what in {"attribute", "property"}:
        made = NumpyDocstring(list(lines), app.config, app, "method", name, value, options)
        lines[:] = ["..", "", *made.lines()]


def setup(app: Sphinx) -> None:
    """Let Sphinx call the above."""
    app.connect("builder-inited", write_api)
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", of_properties, priority=400)
    app.connect("build-finished", write_door)
