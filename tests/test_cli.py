"""The command line does the walk of the Python verbs and never answers a mistake with a trace."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from click.testing import CliRunner, Result

import patchloom
from patchloom.cli import main
from patchloom.config import job_schema

SOURCE = Path(patchloom.__file__).parents[1]


def call(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def spawn(*arguments: object, PATH: str = "", **more: Any) -> subprocess.Popen[str]:
    """Start ``python -m patchloom`` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "patchloom", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), **({"PATH": PATH} if PATH else {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


@pytest.fixture
def pixels() -> np.ndarray[Any, np.dtype[np.uint16]]:
    """An image of 4 x 4 chunks."""
    return np.random.default_rng(5).integers(0, 4000, (128, 128), np.uint16)


@pytest.fixture
def job(tmp_path: Path, pixels: np.ndarray[Any, Any]) -> Path:
    """A job file over a Zarr image with a mask."""
    image = zarr.create_array(
        tmp_path / "a.zarr", shape=(128, 128), chunks=(32, 32), dtype="uint16"
    )
    image[:] = pixels
    mask = zarr.create_array(tmp_path / "mask.zarr", shape=(16, 16), chunks=(8, 8), dtype="uint8")
    mask[:8] = 1
    return write_job(tmp_path)


def write_job(folder: Path, name: str = "job.yaml", **more: Any) -> Path:
    """A job file in a folder."""
    document = {
        "images": str(folder / "a.zarr"),
        "mask": str(folder / "mask.zarr"),
        "patching": {"name": "sequential", "patch_size": [32, 32]},
        "min_coverage": 0.5,
        "rows_per_shard": 2,
        "output": str(folder / "patches.zarr"),
        **more,
    }
    (folder / name).write_text(yaml.safe_dump(document, sort_keys=False))
    return folder / name


def test_plan_says_what_it_will_take(job: Path) -> None:
    """As a table and as JSON; nothing is written."""
    told = call("plan", job)
    assert told.exit_code == 0
    assert "patches                    8" in told.stdout
    assert "8 outside the mask" in told.stdout
    summary = json.loads(call("plan", job, "--json").stdout)
    assert (summary["n_patches"], summary["chunks_needed"]) == (8, 8)
    assert not (job.parent / "patches.zarr").exists()


def test_a_dry_run_is_a_plan(job: Path) -> None:
    """With the same words."""
    assert call("run", job, "--dry-run").stdout == call("plan", job).stdout
    assert call("run", job, "--dry-run", "--json").stdout == call("plan", job, "--json").stdout
    assert not (job.parent / "patches.zarr").exists()


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"over": "mask", "each": "taken"}, "each='taken'"),
        ({"normalize_targets": "min-max"}, "normalize_targets"),
        ({"normalize": "percentile", "percentiles": [50]}, "percentile"),
        ({"normalize": "min-max", "per": "stain"}, "stain"),
        ({"over": "mask", "mask": None, "min_coverage": 0.0}, "mask"),
        ({"weights": "a.zarr", "sample": {"c_weights": 1}}, "['c_weights']"),
    ],
)
def test_a_dry_run_tells_that_settings_would_be_refused(
    tmp_path: Path,
    job: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: dict[str, Any],
    word: str,
) -> None:
    """With the sentence of the run, which is refused before it writes anything."""
    monkeypatch.chdir(tmp_path)
    name = write_job(tmp_path, "other.yaml", **more)
    told = call("run", name, "--dry-run")
    assert told.exit_code == 0, told.stderr
    line = told.stdout.split("Running it would be refused: ")[1].strip()
    assert word in line
    assert json.loads(call("run", name, "--dry-run", "--json").stdout)["refused"] == line
    run = call("run", name)
    assert run.exit_code == 2
    assert run.stderr.strip().endswith(line)
    assert not (tmp_path / "patches.zarr").exists()


def test_run_writes_the_store_of_the_job(job: Path, pixels: np.ndarray[Any, Any]) -> None:
    """It says what it did and where things are; again, it finds nothing to do."""
    told = call("run", job)
    url = job.parent / "patches.zarr"
    assert told.exit_code == 0
    assert f"patchloom inspect {url}" in told.stdout
    assert f"{url}.report/" in told.stdout
    # Progress goes to the standard error: a line of a log.
    assert "materialize: 8 of 8 patches, 4 of 4 tasks" in told.stderr
    store = patchloom.open_patches(url)
    assert len(store) == 8
    row = store.manifest.slice(3, 1).to_pylist()[0]
    y, x = row["start_y"], row["start_x"]
    np.testing.assert_array_equal(store[3][0], pixels[y : y + 32, x : x + 32])
    again = call("run", job)
    assert again.exit_code == 0
    assert "nothing was left to do" in again.stdout
    assert json.loads(call("run", job, "--json").stdout)["already_done"] == 4


@pytest.mark.parametrize("scheduler", ["synchronous", "processes"])
def test_run_takes_a_scheduler(job: Path, scheduler: str) -> None:
    """One of Dask's by its name."""
    told = call("run", job, "--scheduler", scheduler, "--json")
    assert told.exit_code == 0
    assert json.loads(told.stdout)["complete"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_run_connects_to_a_cluster(job: Path) -> None:
    """By its address."""
    from tests.clusters import local_cluster

    with local_cluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp"
    ) as cluster:
        told = call("run", job, "--scheduler", cluster.scheduler_address, "--json")
    assert told.exit_code == 0
    assert json.loads(told.stdout)["complete"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_cluster_that_does_not_answer_is_said(job: Path) -> None:
    """With the address and the way out."""
    dask = pytest.importorskip("dask")
    with dask.config.set({"distributed.comm.timeouts.connect": "300ms"}):
        told = call("run", job, "--scheduler", "tcp://127.0.0.1:9")
    assert told.exit_code == 2
    assert "'tcp://127.0.0.1:9' does not answer" in told.stderr


def test_a_wrong_scheduler_is_said_before_work(job: Path) -> None:
    """With the nearest right one."""
    told = call("run", job, "--scheduler", "thread")
    assert told.exit_code == 2
    assert "did you mean 'threads'?" in told.stderr


def test_mistakes_are_one_message_and_exit_2(job: Path, tmp_path: Path) -> None:
    """On the standard error, without a trace."""
    typo = write_job(tmp_path, "typo.yaml", min_coverag=0.5)
    line = len(typo.read_text().splitlines())
    for arguments, said in (
        (("plan", typo), f"{typo}, line {line}: unknown key 'min_coverag'; did you mean"),
        (("run", tmp_path / "nope.yaml"), "nope.yaml' is not: No such file"),
        (("inspect", tmp_path / "nope.zarr"), "nothing was found"),
        (("plan", write_job(tmp_path, "big.yaml", patching=_size(999))), "fits into its image"),
        (("demo", "--output", job), "job.yaml"),
    ):
        told = call(*arguments)
        assert told.exit_code == 2, arguments
        assert said in told.stderr
        assert "Traceback" not in told.output
        assert told.stdout == ""


def _size(n: int) -> dict[str, Any]:
    return {"name": "sequential", "patch_size": [n, n]}


def test_a_store_of_another_job_is_refused(job: Path, tmp_path: Path) -> None:
    """And left as it is."""
    assert call("run", job).exit_code == 0
    other = write_job(tmp_path, "other.yaml", min_coverage=0.0)
    told = call("run", other)
    assert told.exit_code == 2
    assert "nothing was touched" in told.stderr
    assert len(patchloom.open_patches(tmp_path / "patches.zarr")) == 8


def test_an_interrupt_says_how_to_go_on(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit status 130, as shells expect."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("patchloom.run.jobs.materialize_job", interrupted)
    told = call("run", job)
    assert told.exit_code == 130
    assert "run the same command again" in told.stderr


def test_an_empty_plan_says_why(job: Path, tmp_path: Path) -> None:
    """It is legal, and materialises to an empty store."""
    patching = {"name": "sequential", "patch_size": [128, 128]}
    empty = write_job(tmp_path, "empty.yaml", min_coverage=0.9, patching=patching)
    told = call("plan", empty)
    assert "The plan is empty" in told.stdout
    assert "1 outside the mask" in told.stdout
    assert call("run", empty).exit_code == 0
    assert call("inspect", tmp_path / "patches.zarr").exit_code == 0


def test_inspect_knows_what_stands_there(job: Path, tmp_path: Path) -> None:
    """A patch store, a saved plan, an image."""
    assert call("plan", job, "--save", tmp_path / "plan").exit_code == 0
    call("run", job)
    store = call("inspect", tmp_path / "patches.zarr")
    assert "Patch store" in store.stdout
    assert "1 x 32 x 32 (cyx)" in store.stdout
    assert "Statistics over patches" in store.stdout
    told = json.loads(call("inspect", tmp_path / "patches.zarr", "--json").stdout)
    assert (told["n_patches"], told["complete"]) == (8, True)
    assert call("inspect", tmp_path / "plan").stdout == call("plan", job).stdout
    image = call("inspect", tmp_path / "a.zarr")
    assert "128 x 128" in image.stdout
    assert "32 x 32 (16)" in image.stdout
    assert "channels?" not in image.stdout
    [document] = json.loads(call("inspect", tmp_path / "a.zarr", "--json").stdout)
    assert document["chunks"] == [32, 32]


def test_schema_is_printed() -> None:
    """For editors that check YAML."""
    assert json.loads(call("schema").stdout) == job_schema()


def test_the_version_is_printed() -> None:
    """It is the package's."""
    assert patchloom.__version__ in call("--version").stdout


def test_logging_is_left_as_it_was(job: Path) -> None:
    """A command run inside another program leaves no handler behind."""
    logger = logging.getLogger("patchloom")
    before = (list(logger.handlers), logger.level)
    call("plan", job)
    assert (logger.handlers, logger.level) == before


def test_on_a_terminal_tables_are_drawn(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And text that looks like markup stays text."""
    from patchloom.cli.tables import table

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    table("Title", [("url", "a[bold].zarr")])
    table("Wide", [("a", "b", "c")], ("x", "y", "z"))


def test_help_needs_no_dask() -> None:
    """The command line answers at once: what takes seconds to import is not imported."""
    code = (
        "import sys\n"
        "from patchloom.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "slow = {'dask', 'zarr', 'numpy', 'pydantic', 'xarray', 'distributed', 'pyarrow'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )


def test_the_command_runs_as_a_process(job: Path) -> None:
    """``python -m patchloom`` writes a store; figures on one stream, progress on the other."""
    process = spawn("run", job)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "The store is complete" in out
    assert "materialize: 8 of 8 patches, 4 of 4 tasks" in err
    assert patchloom.open_patches(job.parent / "patches.zarr").complete


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_ctrl_c_in_mid_run_can_be_resumed(tmp_path: Path) -> None:
    """A real interrupt: status 130, the way on is said, and the same job finishes."""
    image = zarr.create_array(
        tmp_path / "a.zarr", shape=(1024, 2048), chunks=(64, 64), dtype="uint16", compressors=None
    )
    image[:] = np.random.default_rng(1).integers(0, 60000, image.shape, np.uint16)
    patching = {"name": "sequential", "patch_size": [64, 64], "overlaps": [52, 52]}
    job = write_job(tmp_path, mask=None, patching=patching, rows_per_shard=64)
    store = tmp_path / "patches.zarr"
    # A shell that starts the tests in the background has them, and their children, ignore it.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = spawn("run", job, "--scheduler", "synchronous")
    finally:
        signal.signal(signal.SIGINT, heard)
    try:
        give_up = time.monotonic() + 60
        while not list(store.glob("manifest/*.parquet")) and time.monotonic() < give_up:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "run the same command again to go on" in err
    assert "Traceback" not in err
    assert not patchloom.open_patches(store).complete
    report = json.loads(call("run", job, "--json").stdout)
    assert report["complete"]
    assert report["already_done"] >= 1
