"""The pages: their code runs, their links lead somewhere, their commands and names exist."""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import os
import pickle
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import patchloom
from patchloom import errors
from patchloom.cli import main
from patchloom.config import load_job
from patchloom.store import schema

ROOT = Path(__file__).parents[1]
OUTSIDE = {"build", "dist", "node_modules", "demo-output"}
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(p.startswith(".") or p in OUTSIDE for p in path.relative_to(ROOT).parts[:-1])
)
TAUGHT = [page for page in PAGES if page.parent == ROOT or (ROOT / "docs") in page.parents]
SCRIPTS = sorted(p for p in (ROOT / "deploy").rglob("*") if p.suffix in {".sh", ".sbatch"})
DATA = (
    "src/patchloom/demo",
    "tests/data/em_fib25",
    "tests/data/nuclei_dsb2018_many_small",
    "tests/data/organoid_confocal",
    "tests/data/spatialdata",
    "tests/data/stores",
)
"""What a page may read; it is copied into the folder in which the page runs."""

FENCE = re.compile(r"^```(\w*)\s*$")
COMMAND = re.compile(r"(?:^|[\s/;&|(])patchloom ((?:demo|[a-z]+)\b[^#;&|\n]*)")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<img[^>]*\ssrc=\"([^\"]+)\"")
OUTPUT = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    kind: str
    text: str
    line: int
    follows: str
    """Kind of the block before it, if nothing but empty lines stands between."""


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    kind, begin, before, lines = "", 0, "", list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = FENCE.match(line)
        if begin:
            if fence and not fence[1]:
                found.append(Block(kind, "\n".join(lines) + "\n", begin, before))
                begin, before = 0, kind
            else:
                lines.append(line)
        elif fence:
            kind, begin, lines = fence[1], number, []
        elif line.strip():
            before = ""
    assert not begin, f"{page}: the block of line {begin} has no end"
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks and code spans, where brackets mean other things."""
    text = re.sub(r"^```.*?^```\s*$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "`code`", text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```\s*$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+?)\s*$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every call of patchloom in a shell text."""
    for line in text.replace("\\\n", " ").splitlines():
        if not line.lstrip().startswith("#"):
            for found in COMMAND.finditer(line):
                yield shlex.split(found[1])


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run_page(page: Path) -> None:
    """Run a page from top to bottom, as a reader would in a fresh clone."""
    space: dict[str, Any] = {"__name__": "page"}
    said = ""
    for block in blocks(page):
        where = f"{named(page)}, line {block.line}"
        if block.kind == "python":
            code = compile("\n" * block.line + block.text, str(page), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(code, space)
            said = output.getvalue()
        elif block.kind == "text" and block.follows == "python":
            assert doctest.OutputChecker().check_output(block.text, said, OUTPUT), (
                f"{where}: the page says\n{block.text}\nbut the code says\n{said}"
            )
        elif block.kind == "yaml":
            name = re.match(r"# (\S+\.yaml)", block.text)
            assert name, f"{where}: a job begins with its file's name"
            Path(name[1]).write_text(block.text, encoding="utf-8")
            load_job(name[1])
        elif block.kind == "bash":
            for words in commands(block.text):
                if words[0] != "demo" and "--scheduler" not in words:
                    done = CliRunner().invoke(main, words)
                    assert done.exit_code == 0, f"{where}: {done.output}"


@pytest.mark.parametrize(
    "page", [p for p in TAUGHT if any(b.kind == "python" for b in blocks(p))], ids=named
)
def test_code_of_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python, job files and commands of a page run in their order; printed output is as shown."""
    text = page.read_text(encoding="utf-8")
    for name in DATA:
        if name in text:
            shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    run_page(page)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_of_page_resolve(page: Path) -> None:
    """Every relative link names a file that is there, and a heading that it has."""
    for found in LINK.finditer(prose(page)):
        link = found[1] or found[2]
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{named(page)} links to {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{named(page)} links to {link}"


@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS], ids=named)
def test_commands_exist(page: Path) -> None:
    """Commands and options of shell blocks and scripts are those of the command line."""
    texts = (
        [block.text for block in blocks(page) if block.kind == "bash"]
        if page.suffix == ".md"
        else [page.read_text(encoding="utf-8")]
    )
    for words in (words for text in texts for words in commands(text)):
        assert words[0] in main.commands, f"{named(page)}: patchloom {words[0]}"
        known = {name for option in main.commands[words[0]].params for name in option.opts}
        unknown = {word for word in words if word.startswith("--")} - known
        assert not unknown, f"{named(page)}: patchloom {words[0]} {unknown}"


def test_two_commands_of_the_readme() -> None:
    """A stranger needs two lines: one makes a training store, one runs the tests."""
    lines = [block.text.strip() for block in blocks(ROOT / "README.md") if block.kind == "bash"]
    assert lines[:2] == [
        "python3 -m venv .venv && .venv/bin/pip install -e '.[all]' && "
        ".venv/bin/patchloom demo --output demo-output",
        ".venv/bin/pip install -e '.[all,test]' && .venv/bin/python -m pytest -n 2 --dist loadfile",
    ]


def test_page_of_training_needs_ten_lines() -> None:
    """As it says; tests/torch_loaders runs them."""
    [training] = [b.text for b in blocks(ROOT / "docs" / "training.md") if "backward" in b.text]
    assert len([line for line in training.splitlines() if line]) == 10


def test_page_of_errors_is_whole() -> None:
    """The page names every error class, and no other."""
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+Error)`", text, flags=re.M)) == set(errors.__all__)


def test_page_of_format_is_of_this_version() -> None:
    """The specification is of the version that is written, and lists the codecs."""
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    assert f"version {schema.FORMAT}\n" in text.splitlines(keepends=True)[0]
    assert all(f"`{name}`" in text for name in schema.CODECS)


def test_design_records_are_numbered() -> None:
    """Records are numbered without gaps."""
    records = sorted(path.name for path in (ROOT / "docs" / "design").glob("[0-9]*.md"))
    assert [int(name[:3]) for name in records] == list(range(1, len(records) + 1))


def listed(page: Path) -> list[Path]:
    """The pages that begin the rows of a page's tables: the site's table of contents."""
    rows = re.findall(
        r"^\| \[[^\]]*\]\(([^)#]+\.md)\)", page.read_text(encoding="utf-8"), flags=re.M
    )
    return [(page.parent / row).resolve() for row in rows]


@pytest.mark.parametrize("page", TAUGHT, ids=named)
def test_page_is_in_the_contents(page: Path) -> None:
    """A page of a folder with an index is listed there, any other on the map of all pages."""
    top = ROOT / "docs" / "index.md"
    own = page.parent / "index.md"
    index = own if own.exists() and page != own else top
    assert page == top or listed(index).count(page) == 1, (
        f"{named(page)} needs one row in a table of {named(index)}: "
        f"| [NAME.md](NAME.md) | what it answers |"
    )


def test_reference_names_what_is_public() -> None:
    """Every name of the face has one row in the reference, and every row is a name."""
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| `([\w.]+)` \|", text, flags=re.M)
    assert len(set(names)) == len(names)
    assert {name for name in names if "." not in name} >= set(patchloom.__all__) - {"__version__"}
    home = ROOT / "src" / "patchloom"
    for name in set(names) - set(patchloom.__all__):
        path = home.joinpath(*name.split("."))
        rooms = [path] if path.parent == home else [path, path.parent]
        assert any(room.is_dir() or room.with_suffix(".py").exists() for room in rooms), name


def test_drawings_show_what_the_planner_does(tmp_path: Path) -> None:
    """The guide's drawings are those that its plan makes: if not, run ``python docs/draw.py``."""
    for drawn in runpy.run_path(str(ROOT / "docs" / "draw.py"))["write"](tmp_path):
        kept = ROOT / "docs" / "images" / drawn.name
        assert drawn.read_text(encoding="utf-8") == kept.read_text(encoding="utf-8"), drawn.name


class _Trap:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path("sprung").touch, ()


@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_page_of_security(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that asks for the codec ``pickle`` is refused before a chunk of it is read."""
    monkeypatch.chdir(tmp_path)
    codec = {"id": "pickle", "protocol": 5}
    document = {
        "zarr_format": 2,
        "shape": [4, 4],
        "chunks": [4, 4],
        "dtype": "|u1",
        "fill_value": 0,
        "order": "C",
        "compressor": codec if place == "compressor" else None,
        "filters": [codec] if place == "filters" else None,
    }
    Path("evil.zarr").mkdir()
    Path("evil.zarr/.zarray").write_text(json.dumps(document), encoding="utf-8")
    Path("evil.zarr/0.0").write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(errors.NotAnArrayError):
        patchloom.open_images("evil.zarr")
    assert not Path("sprung").exists()


def test_local_cluster(tmp_path: Path) -> None:
    """The script makes a cluster of processes, runs the job there, and leaves nothing running."""
    here = Path(sys.executable).parent
    command = tmp_path / "bin" / "patchloom"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m patchloom "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    job = tmp_path / "job.yaml"
    job.write_text(
        f"images: {ROOT / 'src/patchloom/demo/cardiomyocytes.ome.zarr'}\n"
        "patching: {name: sequential, patch_size: [128, 128]}\n"
        "rows_per_shard: 4\n"
        "output: train.zarr\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        ["bash", str(ROOT / "deploy" / "local-cluster.sh"), job.name, "2", "1"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{command.parent}:{here}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(patchloom.__file__).parents[1]),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert patchloom.open_patches(str(tmp_path / "train.zarr")).complete
