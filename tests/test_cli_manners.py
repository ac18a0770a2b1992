"""How the command behaves: loudness, exit statuses, JSON, completion, terminals, a job to begin."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import yaml
import zarr

import patchloom
from patchloom.cli import main
from patchloom.config import MODELINE, load_job
from patchloom.errors import AccessError, PatchloomError
from patchloom.location import Location
from tests.test_cli import SOURCE, call, spawn

BIG = {"name": "sequential", "patch_size": [32, 32], "overlaps": [16, 16]}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job file over a Zarr image."""
    image = zarr.create_array(
        tmp_path / "a.zarr", shape=(256, 256), chunks=(32, 32), dtype="uint16"
    )
    image[:] = np.random.default_rng(2).integers(0, 999, image.shape, np.uint16)
    document = {
        "images": str(tmp_path / "a.zarr"),
        "patching": BIG,
        "rows_per_shard": 64,
        "output": str(tmp_path / "patches.zarr"),
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "job.yaml"


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_the_same_manners(name: str) -> None:
    """Help that ends well, --quiet and --verbose; --json wherever an answer is printed."""
    told = call(name, "--help")
    assert told.exit_code == 0
    assert all(option in told.stdout for option in ("--quiet", "--verbose", "--help"))
    if name not in ("init", "schema", "completion"):
        assert "--json" in told.stdout


def test_json_is_one_document_and_nothing_else(job: Path, tmp_path: Path) -> None:
    """On the standard output, whatever is told beside it."""
    store = tmp_path / "patches.zarr"
    for arguments in (
        ("plan", job),
        ("run", job),
        ("inspect", store),
        ("verify", store),
        ("stats", store),
        ("export", store, tmp_path / "out", "--to", "npy"),
        ("doctor", job),
        ("demo", "--output", tmp_path / "demo"),
    ):
        told = call(*arguments, "--json")
        assert told.exit_code == 0, told.output
        json.loads(told.stdout)


def test_quiet_commands_say_nothing_but_answers(job: Path, tmp_path: Path) -> None:
    """What writes is silent; what was asked for is told; mistakes are told in any case."""
    store = tmp_path / "patches.zarr"
    told = call("run", job, "--quiet")
    assert (told.exit_code, told.output) == (0, "")
    assert call("export", store, tmp_path / "out", "--to", "npy", "-q").output == ""
    assert call("demo", "--output", tmp_path / "demo", "-q").output == ""
    told = call("plan", job, "-q")
    assert "patches" in told.stdout
    assert told.stderr == ""
    assert "fingerprint" in call("inspect", store, "-q").stdout
    assert call("run", tmp_path / "nope.yaml", "-q").stderr.startswith("patchloom: ")
    told = call("run", job, "-q", "-v")
    assert told.exit_code == 2
    assert "not both" in told.stderr


def test_verbose_commands_say_where_things_come_from(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where an error arose, without texts of others in which secrets may be."""
    told = call("run", job, "-v", "--set", "seed=3")
    assert all(word in told.stderr for word in (f"job: {job}", "--set seed", "<Plan"))

    def refused(*_: object, **__: object) -> None:
        try:
            raise ValueError("s3cr3t")
        except ValueError as error:
            raise PatchloomError("no") from error

    monkeypatch.setattr("patchloom.run.jobs.plan_of", refused)
    told = call("plan", job, "-v")
    assert told.exit_code == 2
    assert "builtins.ValueError arose here" in told.stderr
    assert "s3cr3t" not in told.stderr.replace('raise ValueError("s3cr3t")', "")
    assert "arose" not in call("plan", job).stderr


def test_exit_statuses(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 done, 1 a check failed, 2 a mistake, 3 trouble that may pass."""
    store = tmp_path / "patches.zarr"
    assert call("run", job).exit_code == 0
    next(iter(store.glob("images/c/*/0/0/0"))).write_bytes(b"damaged")
    assert call("verify", store).exit_code == 1
    assert call("doctor", tmp_path / "nope").exit_code == 1
    assert call("plan").exit_code == 2
    assert call("plan", job, "--nonsense").exit_code == 2
    assert call("inspect", tmp_path / "nope").exit_code == 2

    def unreachable(*_: object, **__: object) -> None:
        raise AccessError("the network is down")

    monkeypatch.setattr("patchloom.run.jobs.plan_of", unreachable)
    assert call("plan", job).exit_code == 3


def test_a_mistake_of_ours_is_told_as_one(job: Path) -> None:
    """Exit status 70, with the lines to report."""
    code = (
        "import patchloom.run.jobs as jobs\n"
        "def broken(*a, **k): raise RuntimeError('what')\n"
        "jobs.plan_of = broken\n"
        "from patchloom.cli import start\n"
        "import sys\n"
        f"sys.argv = ['patchloom', 'plan', {str(job)!r}]\n"
        "start()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        check=False,
    )
    assert done.returncode == 70
    assert "RuntimeError: what" in done.stderr
    assert "please report it" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed(shell: str) -> None:
    """For each shell, with how it is installed."""
    told = call("completion", shell)
    assert told.exit_code == 0
    assert "_PATCHLOOM_COMPLETE" in told.stdout
    assert told.stdout.startswith("# ")
    assert call("completion", "csh").exit_code == 2


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("patchloom ru", {"run"}),
        ("patchloom run --clu", {"--cluster", "--cluster-option"}),
        ("patchloom run --cluster s", {"slurm", "sge"}),
        ("patchloom run --profile l", {"lab"}),
        ("patchloom run --set min_c", {"min_coverage="}),
        ("patchloom completion z", {"zsh"}),
    ],
)
def test_what_is_typed_is_completed(
    typed: str, offered: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a shell asks for it."""
    (tmp_path / "profiles.yaml").write_text("lab: {}\nhome: {}\n")
    monkeypatch.setenv("PATCHLOOM_PROFILES", str(tmp_path / "profiles.yaml"))
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
    found = _completed(monkeypatch)
    assert {line.partition(",")[2] for line in found} == offered


def _completed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from click.testing import CliRunner

    monkeypatch.setenv("_PATCHLOOM_COMPLETE", "bash_complete")
    told = CliRunner().invoke(main, [], prog_name="patchloom")
    return told.stdout.split()


def test_bash_takes_the_script(tmp_path: Path) -> None:
    """A real shell, with the command on its PATH."""
    import shutil

    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    command = tmp_path / "patchloom"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m patchloom "$@"\n')
    command.chmod(0o755)
    script = (
        'eval "$(patchloom completion bash)"\n'
        "COMP_WORDS=(patchloom run --cluster sl); COMP_CWORD=3\n"
        '_patchloom_completion patchloom; echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(SOURCE),
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        },
        check=True,
    )
    assert done.stdout.split() == ["slurm"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX terminals")
@pytest.mark.parametrize(("term", "drawn"), [("xterm-256color", True), ("dumb", False)])
def test_a_terminal_sees_a_bar_and_a_log_sees_lines(job: Path, term: str, drawn: bool) -> None:
    """In a narrow terminal the bar keeps its label; a dumb one gets lines as a pipe does."""
    seen = in_terminal(["run", str(job)], term, columns=60)
    assert "The store is complete" in seen
    assert ("\x1b[2K" in seen) == drawn
    assert "materialize: 225 of 225 patches" in seen or drawn
    if drawn:
        assert "materialize " in seen
        bars = [_plain(line) for line in re.split(r"[\r\n]+", seen) if "materialize" in line]
        assert max(map(len, bars)) <= 60
        assert all("%" in line for line in bars)


def _plain(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)


def in_terminal(arguments: list[str], term: str, columns: int) -> str:
    """All that a command prints into a terminal of its own."""
    import fcntl
    import pty
    import struct
    import termios

    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-m", "patchloom", *arguments],
        stdin=its,
        stdout=its,
        stderr=its,
        env={**environment, "PYTHONPATH": str(SOURCE), "TERM": term},
    )
    os.close(its)
    seen = b""
    give_up = time.monotonic() + 120
    with open(ours, "rb", buffering=0) as terminal:
        while time.monotonic() < give_up:
            try:
                piece = terminal.read(65536)
            except OSError:  # Linux says so when the other end is closed
                break
            if not piece:
                break
            seen += piece
    assert process.wait(timeout=60) == 0, seen
    return seen.decode()


def test_pipes_see_no_colours(job: Path) -> None:
    """Nor anything that moves a cursor."""
    for arguments in (("doctor", job), ("plan", job), ("run", job)):
        process = spawn(*arguments)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "\x1b" not in out + err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as people have it: TIFFs of two sizes, and masks of the same names."""
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for k in range(3):
        shape = (300, 200 + 40 * k)
        pixels = rng.integers(0, 4000, shape, dtype=np.uint16)
        tifffile.imwrite(tmp_path / "images" / f"cell_{k}.tif", pixels)
        tifffile.imwrite(tmp_path / "masks" / f"cell_{k}.tif", np.ones(shape, np.uint8))
    return tmp_path


@pytest.mark.parametrize("where", ["images", "images/*.tif", "."])
def test_a_job_begins_with_a_folder(
    folder: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what was found, takes the masks, and runs as it stands."""
    monkeypatch.chdir(folder)
    told = call("init", where, "--output", "out.zarr")
    assert told.exit_code == 0, told.output
    assert told.stdout.splitlines()[0] == MODELINE
    assert "# Found 3 images with the axes YX." in told.stdout
    assert "# Shape 300 x 200 to 300 x 280, type uint16." in told.stdout
    Path("job.yaml").write_text(told.stdout)
    job = load_job("job.yaml")
    assert job.mask == "masks/*.tif"
    assert job.patching.model_dump()["patch_size"] == [256, 128]
    assert call("run", "job.yaml", "-q").exit_code == 0
    assert len(patchloom.open_patches("out.zarr")) > 0


def test_what_a_begun_job_suggests_is_right(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each commented key loads without its mark."""
    monkeypatch.chdir(folder)
    text = call("init", "images", "--labels", "masks/{stem}.tif").stdout
    keys = re.findall(r"^# (\w+: \S.*)$", text, flags=re.M)
    assert {key.partition(":")[0] for key in keys} >= {"filters", "split", "order", "normalize"}
    for key in keys:
        if key.partition(":")[0] in patchloom.config.Job.model_fields:
            Path("job.yaml").write_text(text + key + "\n")
            load_job("job.yaml")


@pytest.mark.parametrize(
    "name", ["my \N{WINKING FACE} images", "a\u2028images: b", "a\nimages: b", "2021-13-45"]
)
def test_a_job_begins_with_a_folder_of_any_name(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comments stay comments, and YAML gives the name back."""
    monkeypatch.chdir(folder)
    (folder / "images").rename(name)
    told = call("init", name)
    assert told.exit_code == 0, told.output
    Path("job.yaml").write_text(told.stdout, "utf-8", newline="")
    assert load_job("job.yaml").images == name
    assert load_job("job.yaml").output == f"{name}-patches.zarr"


def test_a_job_may_stand_at_a_url(job: Path) -> None:
    """Which no message shows whole."""
    url = "memory://user:s3cr3t@jobs/a.yaml"
    told = call("plan", url)
    assert told.exit_code == 2
    assert "nothing stands at 'memory://jobs/a.yaml'" in told.stderr
    Location(url).write("", job.read_bytes())
    told = call("plan", "-v", url, "--json")
    assert told.exit_code == 0, told.output
    for command in ("doctor", "run"):
        told_too = call(command, url, "-v")
        assert told_too.exit_code == 0, told_too.output
        assert "s3cr3t" not in told.stderr + told_too.output


def test_masks_that_do_not_fit_are_told_not_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a comment with the reason."""
    monkeypatch.chdir(folder)
    (folder / "masks" / "cell_0.tif").unlink()
    text = call("init", "images").stdout
    assert "masks/*.tif does not fit" in text
    assert yaml.safe_load(text).keys() == {"images", "patching", "output"}
    assert call("init", "nothing-here").exit_code == 2
    assert call("init", "images", "--mask", "masks/*.tif").exit_code == 2


def test_job_files_that_we_write_name_their_schema(tmp_path: Path) -> None:
    """So that editors complete and check them; the schema knows its own address."""
    call("demo", "--output", tmp_path, "-q")
    assert MODELINE in (tmp_path / "job.yaml").read_text().splitlines()
    address = MODELINE.partition("$schema=")[2]
    assert json.loads(call("schema").stdout)["$id"] == address
    assert address.endswith("/docs/job.schema.json")


def options_of(command: click.Command) -> set[str]:
    """The long options of a command."""
    return {o for p in command.params for o in p.opts if o.startswith("--")}


def test_the_page_of_the_command_line_is_whole() -> None:
    """It has every command, every option, every variable and every exit status."""
    page = Path(__file__).parents[1] / "docs" / "command-line.md"
    text = page.read_text(encoding="utf-8")
    for name, command in main.commands.items():
        assert f"`patchloom {name}" in text, name
        missing: Any = sorted(o for o in options_of(command) if f"`{o}" not in text)
        assert not missing, f"{name}: {missing}"
    from patchloom.cli import endings
    from patchloom.cli.clusters import KINDS

    statuses = [getattr(endings, name) for name in endings.__all__ if name.isupper()]
    assert all(f"| {status} |" in text for status in (0, *statuses))
    assert all(f"`{kind}`" in text for kind in KINDS)


def test_channels_that_look_like_a_stack_are_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain file does not say what its pages are; whoever knows is told what to type."""
    tifffile = pytest.importorskip("tifffile")
    monkeypatch.chdir(tmp_path)
    Path("wells").mkdir()
    tifffile.imwrite("wells/a.tif", np.zeros((2, 128, 128), np.uint16))
    assert "say in the job: axes: CYX" in call("inspect", "wells").stdout
    text = call("init", "wells").stdout
    assert "# axes: CYX  # if its 2 planes are channels" in text
    Path("job.yaml").write_text(text.replace("# axes: CYX", "axes: CYX"))
    told = call(
        "plan", "job.yaml", "--set", "patching.patch_size=[64,64]", "--set", "patching.overlaps=0"
    )
    assert told.exit_code == 0, told.output
    tifffile.imwrite(
        "wells/a.tif",
        np.zeros((2, 128, 128), np.uint16),
        imagej=True,
        resolution=(2, 2),
        metadata={"axes": "ZYX", "spacing": 2.0, "unit": "um"},
    )
    assert "axes: CYX" not in call("init", "wells").stdout


def test_what_costs_nothing_is_not_priced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Money, epochs and prices of a small job are told to whoever asks."""
    monkeypatch.chdir(folder)
    Path("job.yaml").write_text(call("init", "images").stdout)
    short, whole = call("plan", "job.yaml"), call("plan", "job.yaml", "--verbose")
    assert short.exit_code == whole.exit_code == 0
    assert "an epoch live" not in short.stdout
    assert "Less than 0.01 USD" in short.stdout
    assert "an epoch live" in whole.stdout
