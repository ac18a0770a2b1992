"""``patchloom stats`` says the numbers of Python, and of a mistake one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.csv
import pytest
import yaml
import zarr
from click.testing import CliRunner, Result

from patchloom.cli import main
from tests.test_plan_page import read


def call(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(main, ["stats", *map(str, arguments)], catch_exceptions=False)


def told(*arguments: object) -> dict[str, Any]:
    """What it prints as JSON."""
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout, parse_constant=pytest.fail)
    return found


@pytest.fixture
def images(tmp_path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Three stacks with a mask each, in files."""
    rng = np.random.default_rng(5)
    made = {}
    for k, name in enumerate("abc"):
        pixels = rng.integers(0, 1000 * (k + 1), (3, 40, 40), np.uint16)
        array = zarr.create_array(
            tmp_path / f"{name}.zarr", shape=pixels.shape, chunks=(1, 16, 16), dtype="uint16"
        )
        array[:] = pixels
        mask = zarr.create_array(
            tmp_path / f"{name}.mask", shape=(40, 40), chunks=(16, 16), dtype="uint8"
        )
        mask[:20] = 1
        made[name] = pixels
    return made


@pytest.fixture
def job(tmp_path: Path, images: dict[str, Any]) -> Path:
    """A job file of them."""
    document = {
        "images": str(tmp_path / "*.zarr"),
        "mask": str(tmp_path / "{stem}.mask"),
        "sample": {"a": {"stain": "HE"}, "b": {"stain": "IHC"}, "c": {"stain": "HE"}},
        "patching": {"name": "sequential", "patch_size": [1, 20, 20]},
        "min_coverage": 0.5,
        "output": str(tmp_path / "out" / "patches.zarr"),
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def percentile(pixels: np.ndarray[Any, Any], *q: float) -> list[float]:
    found: list[float] = np.percentile(pixels.astype(float), q).tolist()
    return found


def test_images_have_percentiles(tmp_path: Path, images: dict[str, Any]) -> None:
    """Those of NumPy, in JSON and in the table."""
    found = told(tmp_path / "*.zarr", "--percentiles", "1,50,99.9")
    assert (found["over"], found["exact"]) == ("image", True)
    assert [row["image"] for row in found["rows"]] == ["a", "b", "c"]
    for row in found["rows"]:
        pixels = images[row["image"]]
        assert [row["p1"], row["p50"], row["p99.9"]] == percentile(pixels, 1, 50, 99.9)
        assert (row["count"], row["max"]) == (pixels.size, pixels.max())
    assert found["outliers"] == []
    done = call(tmp_path / "a.zarr")
    assert done.exit_code == 0
    assert done.stdout.startswith("Over all pixels of each image, each once; exact\n")
    assert f"{images['a'].size:,}" in done.stdout


def test_slices_and_groups_are_told_apart(job: Path, images: dict[str, Any]) -> None:
    """By z, by a metadata column, and all as one."""
    rows = told(job, "--per-slice")["rows"]
    assert [(r["image"], r["z"]) for r in rows] == [(i, z) for i in "abc" for z in range(3)]
    assert [rows[4]["p1"], rows[4]["p99"]] == percentile(images["b"][1], 1, 99)
    rows = told(job, "--by", "stain")["rows"]
    assert [row["group"] for row in rows] == ["HE", "IHC"]
    both = np.stack([images["a"], images["c"]])
    assert [rows[0]["p1"], rows[0]["p99"]] == percentile(both, 1, 99)
    [row] = told(job, "--by", "all")["rows"]
    assert row["count"] == 3 * images["a"].size


def test_masks_and_patches_are_taken(tmp_path: Path, job: Path, images: dict[str, Any]) -> None:
    """From the job, or from --mask; patches from the job's plan or a saved one."""
    under = [percentile(images[name][:, :20], 1, 99) for name in "abc"]
    by_job = told(job, "--over", "mask")
    assert [[row["p1"], row["p99"]] for row in by_job["rows"]] == under
    mask = tmp_path / "{stem}.mask"
    assert told(tmp_path / "*.zarr", "--over", "mask", "--mask", mask)["rows"] == by_job["rows"]
    by_plan = told(job, "--over", "patches")
    assert by_plan["over"] == "patches"
    assert [[row["p1"], row["p99"]] for row in by_plan["rows"]] == under
    from patchloom.config import load_job
    from patchloom.run.jobs import plan_of

    plan_of(load_job(job)).save(str(tmp_path / "plan"))
    assert told(tmp_path / "plan", "--over", "patches")["rows"] == by_plan["rows"]
    assert told(tmp_path / "plan")["rows"] == told(job)["rows"]


def test_a_store_answers_any_percentile(job: Path, images: dict[str, Any]) -> None:
    """From what its run has counted: no image is needed any more."""
    assert CliRunner().invoke(main, ["run", str(job)]).exit_code == 0
    url = yaml.safe_load(job.read_text())["output"]
    for name in images:
        (job.parent / f"{name}.zarr").rename(job.parent / f"{name}.gone")
    found = told(url, "--percentiles", "3,77.7")
    assert found["over"] == "patches"
    for row in found["rows"]:
        assert [row["p3"], row["p77.7"]] == percentile(images[row["image"]][:, :20], 3, 77.7)


def test_the_csv_is_the_table_of_python(tmp_path: Path, job: Path) -> None:
    """Number for number."""
    from patchloom.config import load_job
    from patchloom.run.jobs import images_of
    from patchloom.run.surveying import summarize

    path = tmp_path / "levels.csv"
    assert call(job, "--percentiles", "2,50,98", "--per-slice", "--csv", path).exit_code == 0
    found = summarize(images_of(load_job(job)), (2, 98), over="image", planes=True, progress=False)
    table = found.table((2, 98))
    read_back = pyarrow.csv.read_csv(path)
    assert read_back.column_names == table.column_names
    assert read_back.cast(table.schema).equals(table)


def test_the_page_is_written(tmp_path: Path, images: dict[str, Any]) -> None:
    """With the percentiles that were asked for."""
    path = tmp_path / "levels.html"
    done = call(tmp_path / "*.zarr", "--percentiles", "5,95", "--html", path)
    assert done.exit_code == 0
    words = "".join(read(path.read_text("utf-8")).words)
    pooled = percentile(np.stack([*images.values()]), 5, 95)
    assert f"p5 {pooled[0]:,.5g}" in words
    assert "All 3 images together" in words


def test_outliers_are_named(tmp_path: Path) -> None:
    """On the terminal and in JSON."""
    rng = np.random.default_rng(0)
    for k in range(7):
        pixels = rng.poisson(100 + 900 * (k == 3), (32, 32)).astype(np.uint16)
        zarr.create_array(tmp_path / f"i{k}.zarr", data=pixels, chunks=(16, 16))
    assert {row["image"] for row in told(tmp_path / "*.zarr")["outliers"]} == {"i3"}
    assert "Far from the rest: i3\n" in call(tmp_path / "*.zarr").stdout


def test_numbers_that_are_none_are_null(tmp_path: Path) -> None:
    """NaN and infinity are no JSON."""
    zarr.create_array(tmp_path / "n.zarr", data=np.array([[np.nan, np.inf]], "f4"))
    [row] = told(tmp_path / "n.zarr")["rows"]
    assert (row["nans"], row["count"], row["max"]) == (1, 1, "inf")
    zarr.create_array(tmp_path / "v.zarr", data=np.array([[np.nan]], "f4"))
    [row] = told(tmp_path / "v.zarr")["rows"]
    assert (row["mean"], row["p1"]) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["{a}", "--percentiles", "1,101"], "percentiles are"),
        (["{a}", "--percentiles", "low"], "percentiles are"),
        (["{a}", "--over", "moon"], "--over is one of"),
        (["{a}", "--over", "mask"], "add --mask"),
        (["{a}", "--over", "patches"], "a job or a saved plan"),
        (["{a}", "--by", "stain"], "stain"),
        (["{a}", "--csv", "{out}", "--percentiles", "50"], "low and a high"),
        (["{a}", "--scheduler", "thread"], "threads"),
        (["{a}", "--mask", "nothing"], "nothing"),
        (["{gone}"], "gone"),
        (["{job}", "--mask", "m"], "--mask"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], word: str, tmp_path: Path, job: Path
) -> None:
    """Exit status 2, nothing on the standard output, no file."""
    names = {
        "a": tmp_path / "a.zarr",
        "job": job,
        "out": tmp_path / "out.csv",
        "gone": tmp_path / "gone.zarr",
    }
    done = call(*(text.format(**names) if text[0] == "{" else text for text in arguments))
    assert done.exit_code == 2
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("patchloom: ")
    assert word in lines[-1]
    assert not (tmp_path / "out.csv").exists()


def test_a_page_tells_no_secret(tmp_path: Path, images: dict[str, Any]) -> None:
    """Its title is where the images lie, without credentials."""
    url, path = "memory://key:hush@levels/a.zarr", tmp_path / "levels.html"
    fsspec.filesystem("memory").put(str(tmp_path / "a.zarr"), url, recursive=True)
    done = call(url, "--html", path)
    assert "hush" not in done.output
    assert done.exit_code == 0, done.output
    html = path.read_text("utf-8")
    assert "memory://levels/a.zarr" in html
    assert "hush" not in html


def test_a_store_has_no_other_pixels(job: Path) -> None:
    """It says what to give instead."""
    CliRunner().invoke(main, ["run", str(job)])
    url = yaml.safe_load(job.read_text())["output"]
    for more in (["--over", "image"], ["--per-slice"]):
        done = call(url, *more)
        assert done.exit_code == 2
        assert "job file" in done.stderr


def test_saved_statistics_are_told(tmp_path: Path, job: Path, images: dict[str, Any]) -> None:
    """No image is needed any more; other pixels, planes or masks are refused in a sentence."""
    from patchloom.config import load_job
    from patchloom.run.jobs import images_of
    from patchloom.run.surveying import summarize

    found = summarize(images_of(load_job(job)), (3,), over="mask", progress=False)
    found.save(tmp_path / "saved")
    for name in images:
        (tmp_path / f"{name}.zarr").rename(tmp_path / f"{name}.gone")
    page = tmp_path / "levels.html"
    read_back = told(tmp_path / "saved", "--percentiles", "3,77.7", "--html", page)
    assert read_back["over"] == "mask"
    for row in read_back["rows"]:
        assert [row["p3"], row["p77.7"]] == percentile(images[row["image"]][:, :20], 3, 77.7)
    assert page.exists()
    assert told(tmp_path / "saved", "--over", "mask", "--by", "stain")["rows"]
    for more, word in (
        (["--over", "image"], "over mask"),
        (["--per-slice"], "told apart"),
        (["--mask", "x"], "saved statistics"),
    ):
        done = call(tmp_path / "saved", *more)
        assert done.exit_code == 2
        assert word in done.stderr
    (tmp_path / "saved" / "summaries.parquet").write_bytes(b"PAR1")
    done = call(tmp_path / "saved")
    assert done.exit_code == 2
    assert "damaged" in done.stderr
