"""The page of a run: it is true, it stands alone, and a browser shows it on any screen."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st

import patchloom
from patchloom.cli import main
from patchloom.demo.walk import demo_image
from patchloom.location import Location
from patchloom.run.faults import _lost, faults_since, noting
from patchloom.run.reports import RunReport
from patchloom.run.task_report import TaskReport
from patchloom.run.timeline import MOST_TASKS, Timeline
from tests.browser import needs_browser, visit
from tests.clusters import local_cluster
from tests.test_plan_page import read

GRID = {"name": "sequential", "patch_size": [32, 32]}


def demo_run(folder: Path, **options: Any) -> RunReport:
    """A run over the image that ships, in several tasks."""
    images = patchloom.open_images(str(demo_image()), mask="tissue", labels="nuclei")
    plan = patchloom.plan(images, GRID, min_coverage=0.5, rows_per_shard=16, memory="8 MiB")
    assert plan.n_tasks > 2
    return patchloom.materialize(plan, folder / "demo.zarr", progress=False, **options)


def volumes_run(folder: Path) -> RunReport:
    """3-D, labels, shuffled, two splits."""
    numbers = np.random.default_rng(0)
    pixels = [numbers.integers(0, 4000, (12, 64, 64), np.uint16) for _ in range(6)]
    labels = [(p > 3000).astype(np.uint8) * 7 for p in pixels]
    donors = [{"donor": f"d{k}"} for k in range(6)]
    names = [f"volume {k}" for k in range(6)]
    images = patchloom.open_images(pixels, axes="zyx", labels=labels, ids=names, sample=donors)
    plan = patchloom.plan(
        images,
        {"name": "sequential", "patch_size": [4, 32, 32]},
        order="shuffled",
        split={"by": "donor", "shares": {"train": 2, "val": 1}},
        seed=3,
    )
    return patchloom.materialize(plan, folder / "v.zarr", normalize="percentile", progress=False)


def skipping_run(folder: Path) -> RunReport:
    """Some chunks cannot be read."""
    array = zarr.create_array(folder / "a.zarr", shape=(256, 256), chunks=(64, 64), dtype="u1")
    array[...] = np.random.default_rng(1).integers(0, 255, array.shape, np.uint8)
    for chunk in ("c/0/1", "c/3/3"):
        (folder / "a.zarr" / chunk).write_bytes(b"rubbish")
    images = patchloom.open_images(folder / "a.zarr")
    plan = patchloom.plan(images, GRID, rows_per_shard=8)
    return patchloom.materialize(plan, folder / "s.zarr", on_error="skip", progress=False)


def empty_run(folder: Path) -> RunReport:
    """Nothing is kept, and nothing is written."""
    images = patchloom.open_images(np.zeros((64, 64), "uint8"), mask=np.zeros((64, 64), bool))
    plan = patchloom.plan(images, GRID, min_coverage=0.5)
    return patchloom.materialize(plan, folder / "e.zarr", progress=False)


RUNS = {"demo": demo_run, "volumes": volumes_run, "skipping": skipping_run, "empty": empty_run}


@pytest.mark.parametrize("name", RUNS)
def test_any_run_has_a_page(tmp_path: Path, name: str) -> None:
    """Balanced, named, with nothing from outside; its numbers are those of the report."""
    report = RUNS[name](tmp_path)
    html = report.to_html(tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text("utf-8") == html
    page = read(html)
    text = "".join(page.words)
    for heading in ("Timeline", "What was asked", "What was done", "Memory", "Provenance"):
        assert heading in text
    assert f"{report.n_patches:,}" in text
    done = {row[0].split(" ")[0]: row[1] for row in next(iter(tables(page, "What this run")))}
    assert done["patches"] == f"{report.n_patches:,}"
    if name == "skipping":
        assert not report.complete
        assert report.skipped[0]["reason"] in text
        assert "on_error='skip'" in text
    if name == "volumes":
        splits = {row[0]: row[2] for row in next(iter(tables(page, "by split")))}
        manifest = patchloom.open_patches(tmp_path / "v.zarr").manifest["split"].to_pylist()
        assert splits == {s: f"{manifest.count(s):,}" for s in ("train", "val")}
        assert "Shuffle quality" in text
        assert html.count('class="over"') >= 12


def tables(page: Any, about: str) -> Iterator[list[list[str]]]:
    return (rows for name, rows in page.tables.items() if about in name)


def test_a_page_and_its_json_are_of_one_mind(tmp_path: Path) -> None:
    """JSON has what the report knows, and counts that add up."""
    report = demo_run(tmp_path)
    report.save(tmp_path / "r.html")
    told = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert told["run"] == json.loads(json.dumps(report.to_document()))
    assert sum(told["counts"]["split"].values()) == report.n_patches
    assert told["provenance"]["fingerprint"] in (tmp_path / "r.html").read_text("utf-8")
    assert told["provenance"]["versions"]["python"]
    assert len(told["run"]["timeline"]["tasks"]["lane"]) == report.n_tasks
    # Beside the store, where every run leaves one.
    beside = json.loads((tmp_path / "demo.zarr.report" / "run-0001.json").read_text("utf-8"))
    assert beside == told["run"]
    assert "timeline" not in report.to_dict()


def test_a_run_that_found_everything_done_shows_the_last_that_worked(tmp_path: Path) -> None:
    """Who forgot to ask for a report asks again."""
    first, again = demo_run(tmp_path), demo_run(tmp_path)
    assert again.n_tasks == 0
    assert again.timeline is None
    html = again.to_html()
    assert "This is run-0001, the last run that worked" in html
    assert html.count("<rect") > first.n_tasks
    assert "Runs of this store" in html


def test_a_store_is_the_same_whether_a_report_is_made(tmp_path: Path) -> None:
    """Nothing of a report goes into the store."""

    def files(root: Path) -> dict[str, bytes]:
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}

    report = demo_run(tmp_path)
    before = files(tmp_path / "demo.zarr")
    report.save(tmp_path / "r.html")
    assert files(tmp_path / "demo.zarr") == before


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_tasks_stand_where_and_when_they_worked(tmp_path: Path, scheduler: str) -> None:
    """Within the run, each in one lane at a time."""
    began = time.time()
    with dask.config.set(scheduler=scheduler, num_workers=2):
        report = demo_run(tmp_path)
    found = report.timeline
    assert found is not None
    assert report.scheduler == scheduler
    assert found.n_tasks == report.n_tasks == len(found.tasks["start"])
    assert sum(found.lane_tasks) == report.n_tasks
    assert found.n_lanes <= (1 if scheduler == "synchronous" else 2)
    assert report.seconds <= time.time() - began + 0.1
    for lane in range(found.n_lanes):
        spans = [
            (start, start + took)
            for own, start, took in zip(
                *(found.tasks[k] for k in ("lane", "start", "seconds")), strict=True
            )
            if own == lane
        ]
        assert all(0 <= a <= b <= report.seconds + 0.05 for a, b in spans)
        assert all(b <= c + 0.02 for (_, b), (c, _) in itertools.pairwise(spans))
    assert sum(phase["seconds"] for phase in report.phases) == pytest.approx(report.seconds, 0.01)
    assert report.resident_memory > 0


def test_a_cluster_says_what_went_wrong(tmp_path: Path) -> None:
    """A task that fails and is tried again, and a worker that is lost, stand in the report."""
    cluster_of = local_cluster(n_workers=2, threads_per_worker=1, processes=False)
    with cluster_of as cluster, Client(cluster) as client:
        since = time.time() - 1
        count: list[int] = []

        def work(x: int) -> int:
            with noting("mine"):
                count.append(x)
                if len(count) == 1:
                    raise ConnectionResetError("secret")
                return x

        assert client.submit(work, 1, retries=2).result() == 1
        [fault] = faults_since("mine", since)
        assert (fault.kind, fault.told) == ("task failed", "ConnectionResetError")
        assert fault.where.startswith("worker ")
        assert faults_since("other", since) == ()
        report = demo_run(tmp_path)
    assert report.scheduler == "distributed"
    assert report.timeline is not None
    assert all(name.startswith("worker ") for name in report.timeline.lanes)
    read(report.to_html())
    assert faults_since("mine", since) == ()


def test_a_worker_that_was_lost_is_a_fault() -> None:
    """One that was asked to go, or that went before the run, is none."""
    gone = {"action": "remove-worker", "worker": "tcp://a:1", "expected": False}
    tasks = {"processing-tasks": {"x", "y"}, "lost-computed-tasks": {"z"}}
    events = [
        (5.0, {**gone, **tasks}),
        (20.0, {**gone, "expected": True}),
        (30.0, {**gone, **tasks}),
        (31.0, {"action": "add-worker", "worker": "tcp://a:2"}),
    ]
    [fault] = _lost(events, since=10.0)
    assert (fault.time, fault.kind, fault.where) == (30.0, "worker lost", "tcp://a:1")
    assert fault.told == "2 tasks were begun or waiting there, 1 results were lost"


tasks = st.lists(
    st.builds(
        TaskReport,
        n_patches=st.integers(0, 100),
        bytes_read=st.integers(0, 10**9),
        seconds=st.floats(0, 5),
        began=st.floats(99, 112),
        where=st.sampled_from(["worker 1", "worker 10", "worker 2"]),
        thread=st.integers(1, 3),
    ),
    min_size=1,
    max_size=30,
)


@given(tasks)
def test_a_timeline_loses_nothing(tasks: list[TaskReport]) -> None:
    """What was done adds up over lanes and over time, whatever the clocks of workers say."""
    found = Timeline.of(tasks, begun=100.0, seconds=20.0)
    assert sum(found.lane_tasks) == len(tasks)
    assert sum(found.lane_seconds) == pytest.approx(sum(t.seconds for t in tasks), abs=0.01)
    wide = 20.0 / len(found.busy)
    assert sum(found.busy) * wide == pytest.approx(sum(t.seconds for t in tasks), abs=0.01)
    patches = sum(t.n_patches for t in tasks)
    assert sum(found.rates["patches"]) * wide == pytest.approx(patches, rel=1e-3, abs=1e-3)
    assert all(start >= 0 for start in found.tasks["start"])
    workers = list(dict.fromkeys(name.split(",")[0] for name in found.lanes))
    if len(workers) > 1:
        assert workers == sorted(workers, key=lambda name: int(name.split()[-1]))


def test_a_report_of_very_many_tasks_stays_small() -> None:
    """Of 100,000 tasks on 1,000 threads what they did together is told."""
    many = [
        TaskReport(began=k / 100, seconds=1.0, n_patches=64, where=f"w {k % 500}", thread=k % 2)
        for k in range(100_000)
    ]
    begun = time.perf_counter()
    found = Timeline.of(many, 0.0, 1001.0)
    assert time.perf_counter() - begun < 5
    assert found.tasks == {}
    assert found.lanes == ()
    assert found.n_tasks == 100_000 > MOST_TASKS
    assert max(found.busy) == pytest.approx(100, rel=0.01)
    assert len(json.dumps([found.busy, found.rates])) < 20_000


def test_clocks_that_are_wrong_are_set_right() -> None:
    """A worker an hour ahead works within the run all the same."""
    right = TaskReport(began=101.0, seconds=1.0, where="a")
    wrong = [TaskReport(began=3700.0 + k, seconds=1.0, where="b") for k in range(3)]
    found = Timeline.of([right, *wrong], begun=100.0, seconds=5.0)
    assert found.tasks["start"] == (1.0, 2.0, 3.0, 4.0)


def test_what_others_wrote_is_text(tmp_path: Path) -> None:
    """Ids, channels, labels of splits and columns are escaped wherever they stand."""
    evil = "<script>alert('x')</script>&\""
    pixels = np.random.default_rng(0).integers(0, 99, (64, 64), np.uint8)
    images = patchloom.open_images(
        [pixels, pixels + 1], ids=[evil, "b"], sample=[{"kind": evil}, {"kind": "b"}]
    )
    plan = patchloom.plan(images, GRID, split={"by": "kind", "shares": {"<i>": 1, "b": 1}})
    report = patchloom.materialize(plan, tmp_path / "x.zarr", progress=False)
    html = report.to_html(title="<u>t</u>", job="<s>j</s>", command="<q>")
    read(html)
    for markup in ("<script", "<i>'", "<u>t", "<s>j", "<q>"):
        assert markup not in html
    assert "&lt;script&gt;" in html


def test_secrets_stay_out(tmp_path: Path) -> None:
    """Of the job, the command, addresses and options."""
    secret = "hunter2-hunter2"
    url = "memory://run-report-secret.zarr"
    pixels = np.random.default_rng(0).integers(0, 99, (64, 64), np.uint8)
    zarr.create_array(tmp_path / "a.zarr", data=pixels)
    (tmp_path / "job.yaml").write_text(
        f"images: {tmp_path}/a.zarr\npatching: {{name: sequential, patch_size: [32, 32]}}\n"
        f"output: {url}\noutput_options: {{token: {secret}}}\n"
    )
    page = tmp_path / "out" / "r.html"
    asked = ["run", str(tmp_path / "job.yaml"), "--report", str(page)]
    asked += ["--set", f"storage_options.token={secret}"]
    asked += ["--set", f' "storage_options"[key]={secret}'.replace("[key]", '["key"]')]
    asked += ["--set", f"survey=memory://u:{secret}@surveys/a"]
    variables = {"PATCHLOOM_JOB__OUTPUT_OPTIONS__KEY": secret}
    done = CliRunner().invoke(main, asked, env=variables)
    assert done.exit_code == 0, done.output
    text = page.read_text("utf-8") + page.with_suffix(".json").read_text("utf-8") + done.output
    assert secret not in text
    assert "patchloom run" in text
    assert "--set" in text
    made = Location(f"s3://key:{secret}@bucket/x.zarr")
    assert secret not in repr(made)


def test_the_command_writes_page_and_json(tmp_path: Path) -> None:
    """``--report``; what it says to type is what was typed."""
    zarr.create_array(tmp_path / "a.zarr", data=np.ones((64, 64), np.uint8))
    job = tmp_path / "my job.yaml"
    job.write_text(
        f"images: {tmp_path}/a.zarr\npatching: {{name: sequential, patch_size: [32, 32]}}\n"
        f"output: {tmp_path}/o.zarr\n"
    )
    page = tmp_path / "r.html"
    done = CliRunner().invoke(main, ["run", str(job), "--report", str(page)])
    assert done.exit_code == 0, done.output
    assert str(page) in done.output
    words = "".join(read(page.read_text("utf-8")).words)
    assert f"patchloom run '{job}'" in words
    assert "patch_size" in words
    assert json.loads((tmp_path / "r.json").read_text("utf-8"))["again"]["run"].endswith(f"'{job}'")


def test_what_the_environment_said_is_typed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that the page shows is of the same job."""
    zarr.create_array(tmp_path / "a.zarr", data=np.ones((64, 64), np.uint8))
    (tmp_path / "job.yaml").write_text(
        f"images: {tmp_path}/a.zarr\npatching: {{name: sequential, patch_size: [32, 32]}}\n"
        f"output: {tmp_path}/o.zarr\n"
    )
    monkeypatch.setenv("PATCHLOOM_JOB__PATCHING__PATCH_SIZE", "[16, 16]")
    asked = ["run", str(tmp_path / "job.yaml"), "--set", "percentiles=[2, 98]"]
    done = CliRunner().invoke(main, [*asked, "--report", str(tmp_path / "r.html")])
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "r.json").read_text("utf-8"))["again"]["run"]
    begin, end = (
        "PATCHLOOM_JOB__PATCHING__PATCH_SIZE='[16, 16]' patchloom run ",
        "'percentiles=[2, 98]'",
    )
    assert told == f"{begin}{tmp_path}/job.yaml --set {end}"


@pytest.mark.parametrize("name", ["", "r.json", ".", "no-folder.txt/r.html"])
def test_a_page_that_cannot_be_written_stops_the_command_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Not after hours of work."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no-folder.txt").touch()
    zarr.create_array(tmp_path / "a.zarr", data=np.ones((64, 64), np.uint8))
    (tmp_path / "job.yaml").write_text(
        "images: a.zarr\npatching: {name: sequential, patch_size: [32, 32]}\noutput: o.zarr\n"
    )
    done = CliRunner().invoke(main, ["run", "job.yaml", "--report", name])
    assert done.exit_code == 2, done.output
    assert not (tmp_path / "o.zarr").exists()
    done = CliRunner().invoke(main, ["run", "job.yaml", "--report", "r.html", "--dry-run"])
    assert done.exit_code == 2
    assert "--dry-run makes none" in done.stderr


@needs_browser
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it(tmp_path: Path, name: str, width: int) -> None:
    """Nothing on the console, nothing asked for, nothing beyond the edge; it can be printed."""
    RUNS[name](tmp_path).save(tmp_path / "r.html")
    seen = visit(tmp_path / "r.html", width)
    assert seen.said == []
    assert seen.asked == []
    assert seen.width == width
    assert "Run report" in seen.words
    assert seen.pdf.startswith(b"%PDF")


@needs_browser
def test_long_names_do_not_widen_the_page(tmp_path: Path) -> None:
    """On a telephone, names without a space are broken or scrolled."""
    pixels = np.random.default_rng(0).integers(0, 99, (64, 64), np.uint8)
    images = patchloom.open_images([pixels] * 2, ids=["x" * 300, "y" * 300])
    plan = patchloom.plan(images, GRID)
    report = patchloom.materialize(plan, tmp_path / ("z" * 120), progress=False)
    report.save(tmp_path / "r.html", job="k" * 500, command="c" * 500)
    assert visit(tmp_path / "r.html", 390).width == 390


def test_words_are_told_apart_from_their_ground() -> None:
    """Contrast of text is at least 4.5 to 1 in both themes (WCAG 2, AA)."""
    style = (Path(patchloom.__file__).parent / "run" / "page.css").read_text("utf-8")
    light, dark = re.findall(r":root \{([^}]*)\}", style)[:2]
    for theme in (light, dark):
        named = dict(re.findall(r"--(\w+): (#\w{6})", theme))
        for ink in ("ink", "soft", "accent"):
            for ground in ("paper", "card", "wash"):
                assert contrast(named[ink], named[ground]) >= 4.5, (ink, ground)


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_what_images_were_opened_with_is_named() -> None:
    """What the page cannot write out in its calls is left to fill in."""
    image = patchloom.open_images(np.ones((64, 64), "f4"), sample=[{"kind": "a"}], nodata=0.0)
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [32, 32]})
    report = patchloom.materialize(plan, "memory://opened-with.zarr", progress=False)
    assert "sample=..., nodata=...)" in json.loads(report.to_json())["again"]["run"]
