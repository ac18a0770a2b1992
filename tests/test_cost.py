"""The price of a plan: predicted counts are counted ones, and money and time are arithmetic.

Laws: decodes, requests and bytes of an undisturbed run are known before it, without reading a
pixel; the break-even number of epochs is the first at which a simulation of both ways agrees.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import fsspec
import numpy as np
import pytest
import yaml
import zarr
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.cli import main
from patchloom.errors import ConfigError
from patchloom.location import Location
from patchloom.planning.cost import Cost, Output, break_even
from patchloom.planning.prices import Prices, is_far
from patchloom.planning.traffic import Traffic
from patchloom.run import objects, pricing, stored
from patchloom.run.pricing import price
from patchloom.run.reports import RunReport
from patchloom.run.sharing import unshared
from patchloom.sources.fetching import GAP
from tests import truth
from tests.servers.s3 import S3Server
from tests.truth import ArrayTruth

GRID = {"name": "sequential", "patch_size": [24, 24], "overlaps": [8, 8]}
COUNTS = ("chunks_needed", "chunk_reads", "role_reads", "survey_reads", "n_patches", "n_tasks")
KINDS: dict[str, dict[str, Any]] = {
    "v2": {"zarr_format": 2},
    "v3": {"zarr_format": 3},
    "sharded": {"zarr_format": 3, "shards": (64, 64)},
    "one chunk a shard": {"zarr_format": 3, "shards": (16, 16)},
}


def stored_array(path: Path, holes: int = 0, **more: Any) -> Path:
    """An image with noise, and with chunks that were never written."""
    given = {"shape": (150, 170), "chunks": (16, 16), "dtype": "uint16", "fill_value": 0, **more}
    array: Any = zarr.create_array(path, **given)
    draw = np.random.default_rng(len(path.name))
    inside = tuple(slice(0, n - holes) for n in array.shape[-2:])
    array[(..., *inside)] = draw.integers(1, 90, array[(..., *inside)].shape)
    return path


def run(plan: patchloom.Plan, url: object, **more: Any) -> RunReport:
    with unshared():
        return patchloom.materialize(plan, str(url), progress=False, **more)


def same(cost: Cost, report: RunReport) -> None:
    """All that a run counts was known before."""
    told = report.to_dict()
    assert {name: getattr(cost, name) for name in COUNTS} == {name: told[name] for name in COUNTS}
    assert cost.read_amplification == report.read_amplification
    assert (cost.requests, cost.bytes_read) == (report.requests, report.bytes_read)
    assert cost.bytes_exact
    assert cost.bytes_known == cost.bytes_read
    assert not cost.notes
    assert cost.n_shards == report.n_shards


def files(url: Path) -> int:
    return sum(path.is_file() for path in url.rglob("*"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("holes", [0, 70])
def test_predicted_is_counted(kind: str, holes: int, tmp_path: Path) -> None:
    """With labels, a target, a mask and absent chunks, on threads."""
    image = stored_array(tmp_path / "a.zarr", holes, **KINDS[kind])
    labels = stored_array(tmp_path / "labels.zarr", holes, chunks=(32, 32), dtype="uint8")
    target = stored_array(tmp_path / "target.zarr", holes, **KINDS[kind])
    mask = np.zeros((15, 17), bool)
    mask[:, :12] = True
    array: Any = zarr.create_array(tmp_path / "mask.zarr", data=mask, chunks=(8, 8))
    assert array.shape == mask.shape
    images = patchloom.open_images(
        image, labels=str(labels), target=str(target), mask=str(tmp_path / "mask.zarr")
    )
    plan = patchloom.plan(images, GRID, min_coverage=0.5, rows_per_shard=5)
    cost = price(plan)
    with dask.config.set(scheduler="threads"):
        report = run(plan, tmp_path / "out.zarr")
    same(cost, report)
    assert report.role_reads > 0
    assert plan.summary()["role_reads"] == report.role_reads
    assert cost.objects_written == files(tmp_path / "out.zarr")
    assert cost.n_candidates == cost.n_patches + sum(cost.rejected.values()) > cost.n_patches
    assert cost.bytes_output == cost.n_patches * 24 * 24 * (2 + 1 + 2)
    assert cost.mask_reads > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("normalize", "over"), [("mean-std", "patches"), (None, "image")])
def test_passes_before_are_counted(
    kind: str, normalize: str | None, over: str, tmp_path: Path
) -> None:
    """Normalisation and statistics of whole images read the source once more."""
    images = patchloom.open_images(stored_array(tmp_path / "a.zarr", 20, **KINDS[kind]))
    plan = patchloom.plan(images, GRID, rows_per_shard=7)
    more: dict[str, Any] = {"normalize": normalize, "over": over}
    cost = price(plan, **more)
    same(cost, run(plan, tmp_path / "out.zarr", **more))
    assert cost.survey_reads > 0
    assert cost.bytes_output == plan.n_patches * 24 * 24 * (4 if normalize else 2)


CONFIGS: dict[str, dict[str, Any]] = {
    "random": {"name": "random", "n_patches": 30},
    "stratified": {"name": "stratified"},
    "sequential": {"name": "sequential"},
}


@settings(max_examples=15)
@given(
    name=st.sampled_from(sorted(CONFIGS)),
    size=st.lists(st.integers(4, 20), min_size=2, max_size=3),
    channels=st.integers(1, 3),
    rows=st.integers(3, 12),
    per_shard=st.sampled_from([None, 2, 5]),
    edge=st.sampled_from(["drop", "pad"]),
    holes=st.integers(0, 40),
)
def test_every_plan_is_priced_right(
    name: str,
    size: list[int],
    channels: int,
    rows: int,
    per_shard: int | None,
    edge: Any,
    holes: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """2-D and 3-D, with channels, whatever strategy, edges, shards and order of patches."""
    folder = tmp_path_factory.mktemp("price")
    shape = (channels, *((20,) if len(size) == 3 else ()), 50, 60)
    chunks = (1, *((5,) if len(size) == 3 else ()), 10, 12)
    shards = None if per_shard is None else tuple(c * per_shard for c in chunks)
    path = stored_array(folder / "a.zarr", holes, shape=shape, chunks=chunks, shards=shards)
    images = patchloom.open_images(path, axes="CZYX" if len(size) == 3 else "CYX")
    config = {**CONFIGS[name], "patch_size": size}
    plan = patchloom.plan(images, config, edge=edge, rows_per_shard=rows, seed=rows)
    same(price(plan), run(plan, folder / "out.zarr"))


def test_arrays_in_memory_have_no_objects(tmp_path: Path) -> None:
    """Each chunk is handed over once; its bytes are its pixels. Equal arrays are two."""
    pixels = np.arange(90 * 110, dtype="uint16").reshape(90, 110)
    arrays = [da.from_array(pixels, chunks=(32, 32)) for _ in range(2)]
    images = patchloom.open_images(arrays, labels=[np.ones((90, 110), "uint8")] * 2)
    plan = patchloom.plan(images, GRID, rows_per_shard=4)
    cost = price(plan)
    same(cost, run(plan, tmp_path / "out.zarr"))
    assert cost.bytes_read == 2 * (pixels.nbytes + 90 * 110)
    assert cost.money.total == cost.money.compute


@pytest.mark.parametrize("found", truth.all_truths(containers={"zarr"}), ids=lambda t: t.id)
def test_real_sets(found: ArrayTruth, tmp_path: Path) -> None:
    """Every Zarr set that there is, patches across its chunks; decodes are exact in all."""
    axes = {1: "x", 2: "yx", 3: "zyx", 4: "szyx", 5: "stzyx"}[len(found.entry.shape)]
    [image] = patchloom.open_images(str(found.path), axes=axes)
    space = [n for a, n in zip(axes, found.entry.shape, strict=True) if a in "zyx"]
    size = [min(-(-n // 3), 192) for n in space]
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": size}, edge="pad")
    cost = price(plan)
    report = run(plan, tmp_path / "out.zarr")
    if cost.notes:
        # Shards that zarr-python alone can read: their content is estimated, and said so.
        assert [getattr(cost, n) for n in COUNTS] == [getattr(report, n) for n in COUNTS]
        assert not cost.bytes_exact
    else:
        same(cost, report)


def test_predicted_is_counted_on_s3(s3_server: S3Server) -> None:
    """Over HTTP too, absent chunks included."""
    bucket, options = s3_server.fresh_bucket(), s3_server.storage_options
    pixels = np.random.default_rng(1).integers(0, 99, (100, 100), np.uint16)
    for kind in ("v2", "v3", "sharded"):
        array = zarr.create_array(
            f"{bucket}/{kind}.zarr",
            storage_options=options,
            shape=(150, 150),
            chunks=(16, 16),
            dtype="uint16",
            fill_value=0,
            **KINDS[kind],
        )
        array[:100, :100] = pixels
        images = patchloom.open_images(f"{bucket}/{kind}.zarr", storage_options=options)
        plan = patchloom.plan(images, GRID, rows_per_shard=20)
        out = f"{bucket}/{kind}-out.zarr"
        cost = price(plan, output_url=out)
        same(cost, run(plan, out, storage_options=options))
        assert cost.money.requests > 0 < cost.money.egress


# -- what is read, and what is estimated ---------------------------------------------------


class Watched(MemoryFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """A store in memory that remembers what was opened."""

    protocol = "watched"
    store: dict[str, Any] = {}  # noqa: RUF012  # fsspec's own way
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    read: list[str] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        found: str = super()._strip_protocol(path.replace("watched://", "memory://"))
        return found

    def cat_file(self, path: str, *arguments: Any, **more: Any) -> Any:
        self.read.append(path)
        return super().cat_file(path, *arguments, **more)


@pytest.mark.parametrize("kind", ["v2", "v3"])
def test_no_object_is_opened(kind: str, tmp_path: Path) -> None:
    """A listing is all that it takes."""
    fsspec.register_implementation("watched", Watched, clobber=True)
    folder = stored_array(tmp_path / "a.zarr", 30, **KINDS[kind])
    Watched().put(str(folder), f"/{kind}.zarr", recursive=True)
    images = patchloom.open_images(f"watched://{kind}.zarr")
    plan = patchloom.plan(images, GRID, rows_per_shard=7)
    Watched.read.clear()
    cost = price(plan)
    assert not Watched.read
    same(cost, run(plan, tmp_path / "out.zarr"))
    assert Watched.read


def test_many_objects_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a limit some sizes stand for all, within 5 %; a few needed ones stay exact."""
    images = patchloom.open_images(stored_array(tmp_path / "a.zarr"))
    plan = patchloom.plan(images, GRID, rows_per_shard=7)
    monkeypatch.setattr(objects, "LISTED", 3)
    same(price(plan), run(plan, tmp_path / "out.zarr"))
    monkeypatch.setattr(objects, "ASKED", 40)
    cost, exact = price(plan), run(plan, tmp_path / "again.zarr")
    assert cost.requests == exact.requests
    assert math.isclose(cost.bytes_read, exact.bytes_read, rel_tol=0.05)
    assert not cost.bytes_exact
    assert cost.bytes_known == 0
    assert "stand for all" in cost.notes[0]


def test_many_shards_are_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a limit no index is read: chunks then share their shard evenly, within 5 %."""
    images = patchloom.open_images(stored_array(tmp_path / "a.zarr", **KINDS["sharded"]))
    plan = patchloom.plan(images, GRID, rows_per_shard=7)
    monkeypatch.setattr(pricing, "INDICES", 0)
    cost, report = price(plan), run(plan, tmp_path / "out.zarr")
    assert math.isclose(cost.requests, report.requests, rel_tol=0.05)
    assert math.isclose(cost.bytes_read, report.bytes_read, rel_tol=0.05)
    assert not cost.bytes_exact
    assert "evenly" in cost.notes[0]


def test_a_source_that_is_gone_is_priced_by_its_pixels(tmp_path: Path) -> None:
    """A saved plan can be looked at anywhere."""
    path = stored_array(tmp_path / "a.zarr")
    plan = patchloom.plan(patchloom.open_images(path), GRID, rows_per_shard=7)
    path.rename(tmp_path / "moved.zarr")
    cost = price(plan)
    assert cost.chunk_reads == plan.chunk_reads
    assert cost.bytes_read == cost.bytes_decoded > 0
    assert not cost.bytes_exact
    assert cost.notes


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(1, 4)), max_size=12),
)
def test_near_ranges_are_joined(spans: list[tuple[int, int, int]]) -> None:
    """As one by one: a range goes to the one before it if the gap is small enough."""
    step = GAP // 2
    rows = [(g, a * step, (a + n) * step) for g, a, n in spans]
    found: list[list[int]] = []
    for g, a, b in sorted(rows):
        if found and found[-1][0] == g and a - found[-1][2] <= GAP:
            found[-1][2] = max(found[-1][2], b)
        else:
            found.append([g, a, b])
    columns = np.array(rows, np.int64).reshape(-1, 3).T
    assert stored.joined(*columns) == (len(found), sum(b - a for _, a, b in found))


# -- money and time ------------------------------------------------------------------------

TABLE = Prices.load()
FIGURES: dict[str, Any] = {
    "n_images": 1,
    "n_candidates": 12,
    "n_patches": 10,
    "rejected": {"outside the mask": 2},
    "chunks_needed": 4,
    "chunk_reads": 6,
    "role_reads": 0,
    "n_shards": 5,
    "n_tasks": 5,
    "peak_memory": 1000,
}


def cost_of(prices: Prices, **more: Any) -> Cost:
    """6 chunks of 3 MB on S3, 2 MB of pixels each counted as 20 MB; 10 patches in 5 shards."""
    fetched = Traffic(6, 7000, 18_000_000, 18_000_000, 20_000_000).over(far=True, paid=True)
    live = Traffic(4, 4000, 12_000_000, 12_000_000, 16_000_000).over(far=True, paid=True)
    output = Output(30_000_000, 2.0, 10, 5, 1, far=True, paid=True)
    given = {"workers": 1, "epochs": 10, "months": 2.0, **more}
    return Cost.of(
        FIGURES, run=fetched, masks=Traffic(), live=live, output=output, prices=prices, **given
    )


def test_money_and_time_by_hand() -> None:
    """Each part, worked out on paper."""
    speed = {
        "decode_mb_s": 100,
        "encode_mb_s": 50,
        "fetch_mb_s": 10,
        "latency_s": 0.01,
        "concurrency": 10,
        "shard_s": 0.5,
    }
    prices = Prices(
        name="hand",
        dated="now",
        currency="EUR",
        get_per_1000=0.5,
        put_per_1000=100,
        egress_per_gb=1000,
        storage_per_gb_month=200,
        compute_per_worker_hour=36,
        free=(),
        speed=speed,  # type: ignore[arg-type]  # pydantic makes Speeds of it
    )
    cost = cost_of(prices)
    # 5 shards of 1 array with 2 parts each, their sizes, the array's and the group's metadata.
    assert cost.objects_written == 5 * 3 + 1 + 1 + 1
    # 7000 requests / 10 at once * 10 ms + 18 MB at 10 MB/s + 20 MB at 100 MB/s = 9.0 s to read;
    # 30 MB at 50 MB/s + 19 objects * 10 ms + 15 MB at 10 MB/s + 5 * 0.5 s = 4.79 s to write.
    assert cost.seconds == pytest.approx(9.0 + 4.79)
    assert cost.money.requests == pytest.approx(7 * 0.5 + 0.019 * 100)
    assert cost.money.egress == pytest.approx(0.018 * 1000)
    assert cost.money.storage == pytest.approx(0.015 * 200 * 2)
    assert cost.money.compute == pytest.approx(13.79 * 0.01)
    assert cost.money.total == pytest.approx(3.5 + 1.9 + 18 + 6 + 0.1379)
    # Live: 4 s + 1.2 s + 0.16 s; the store: 15 requests, 15 MB and 30 MB of pixels.
    assert cost.live_seconds == pytest.approx(5.36)
    assert cost.store_seconds == pytest.approx(0.015 + 1.5 + 0.3)
    assert cost.live_money == pytest.approx(2 + 12 + 0.0536)
    assert cost.store_money == pytest.approx(0.0075 + 15 + 0.01815)
    assert cost.break_even_seconds == math.ceil(13.79 / (5.36 - 1.815))
    assert cost.break_even_money is None
    # 5 tasks on 2 workers take 3 rounds, and both are held all the time.
    two = cost_of(prices, workers=2)
    assert two.seconds == pytest.approx(13.79 * 3 / 5)
    assert two.money.compute == pytest.approx(13.79 * 3 / 5 * 2 * 0.01)
    told = json.loads(json.dumps(cost.to_dict()))
    assert told["money"]["total"] == cost.money.total
    assert told["live_seconds_all"] == pytest.approx(53.6)
    assert told["store_money_all"] == pytest.approx(cost.money.total + 10 * cost.store_money)
    assert cost.money.total != cost_of(prices, months=0).money.total


amounts = st.floats(0, 1e6, allow_nan=False) | st.integers(0, 50).map(float)


@settings(max_examples=200)
@given(amounts, amounts, amounts)
def test_break_even_is_the_first_epoch_that_pays(once: float, live: float, stored: float) -> None:
    """Both ways are walked epoch by epoch."""
    found = break_even(once, live, stored)
    last = 300
    told = next(
        (
            n
            for n in range(1, last + 1)
            if Fraction(once) + n * Fraction(stored) <= n * Fraction(live)
        ),
        None,
    )
    if told is None:
        assert found is None or found > last
    else:
        assert found == told
    if live < stored or (live == stored and once > 0):
        assert found is None


def test_local_files_cost_only_work(tmp_path: Path) -> None:
    """Where the bytes lie decides; chained file systems count by what is below."""
    images = patchloom.open_images(stored_array(tmp_path / "a.zarr"))
    plan = patchloom.plan(images, GRID)
    money = price(plan, months=12).money
    assert (money.requests, money.egress, money.storage) == (0, 0, 0)
    away = price(plan, output_url="s3://bucket/out.zarr", months=12, compression=4)
    assert away.bytes_stored == round(away.bytes_output / 4)
    assert away.money.storage == pytest.approx(12 * 0.023 * away.bytes_stored / 1e9)
    assert away.money.requests == pytest.approx(0.005 * (away.objects_written + 1) / 1000)
    assert away.seconds > price(plan, compression=4).seconds
    for url, far, paid in (
        ("a.zarr", False, False),
        ("memory://a.zarr", False, False),
        ("zip://a.zarr::file:///b.zip", False, False),
        ("zip://a.zarr::s3://bucket/b.zip", True, True),
        ("simplecache::gs://bucket/a.zarr", True, True),
        ("https://host/a.zarr", True, False),
    ):
        assert (is_far(Location(url)), TABLE.is_paid(Location(url))) == (far, paid), url


def test_prices_can_be_changed(tmp_path: Path) -> None:
    """A file holds what differs; the rest is the shipped table's."""
    path = tmp_path / "ours.yaml"
    path.write_text("egress_per_gb: 0\ndated: 2026-01-02\nspeed: {latency_s: 0.2}\n")
    found = Prices.load(path)
    assert (found.name, found.dated, found.egress_per_gb) == ("ours", "2026-01-02", 0)
    assert found.speed == TABLE.speed.model_copy(update={"latency_s": 0.2})
    assert found.put_per_1000 == TABLE.put_per_1000
    cost = cost_of(found)
    assert cost.money.egress == 0
    assert "ours" in cost.prices


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("egres_per_gb: 1", "did you mean 'egress_per_gb'"),
        ("speed: {latency: 1}", "did you mean 'latency_s'"),
        ("get_per_1000: -1", "'get_per_1000' should be greater than or equal to 0, got -1"),
        ("speed: {decode_mb_s: 0}", "'speed.decode_mb_s' should be greater than 0, got 0"),
        ("put_per_1000: many", "'put_per_1000' should be"),
        ("currency: EUR\nput_per_1000: 1", "lacks get_per_1000, egress_per_gb"),
        ("- 1", "YAML mapping"),
        ("a: [", "YAML file"),
    ],
)
def test_wrong_tables_are_explained(text: str, said: str, tmp_path: Path) -> None:
    """With the file, the key and the way out."""
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Prices.load(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    with pytest.raises(ConfigError, match="nothing stands"):
        Prices.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "wrong",
    [{"workers": 0}, {"epochs": 1.5}, {"months": -1}, {"compression": 0}, {"months": math.inf}],
)
def test_wrong_arguments_are_explained(wrong: dict[str, Any]) -> None:
    images = patchloom.open_images(np.zeros((64, 64), "uint8"))
    plan = patchloom.plan(images, GRID)
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        price(plan, **wrong)
    with pytest.raises(ConfigError, match="takes a Plan"):
        price(images)  # type: ignore[arg-type]


# -- what people see -----------------------------------------------------------------------


def test_what_people_see() -> None:
    """One table in text, HTML and JSON."""
    cost = cost_of(TABLE)
    text = str(cost)
    assert "2 outside the mask" in text
    assert "7,000" in text
    assert "exact" in text
    assert "<table>" in cost._repr_html_()
    assert repr(cost).startswith("<Cost 10 patches, 6 chunk decodes, 7,000 requests, 17.2 MiB")
    guessed = replace(cost, bytes_known=0, notes=("no sizes",))
    assert "about 17.2 MiB" in str(guessed)
    assert "no sizes" in str(guessed)


def test_the_command_tells_the_cost(tmp_path: Path) -> None:
    """As a table and as JSON, at a number of workers and under a table of prices."""
    job = {
        "images": str(stored_array(tmp_path / "a.zarr", 30)),
        "patching": GRID,
        "rows_per_shard": 5,
        "output": str(tmp_path / "out.zarr"),
        "normalize": "mean-std",
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    (tmp_path / "prices.yaml").write_text("compute_per_worker_hour: 1000\n")
    words = ["plan", str(tmp_path / "job.yaml"), "--workers", "4"]
    words += ["--prices", str(tmp_path / "prices.yaml")]
    shown = CliRunner().invoke(main, words, catch_exceptions=False)
    assert "4 workers" in shown.stdout
    assert "prices (2025-01)" in shown.stdout
    told = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    with unshared():
        done = CliRunner().invoke(main, ["run", words[1], "--json"], catch_exceptions=False)
    counted = json.loads(done.stdout)
    for name in ("requests", "bytes_read", "chunk_reads", "survey_reads", "role_reads"):
        assert told[name] == counted[name], name
    assert told["money"]["compute"] == pytest.approx(told["seconds"] * 4 / 3.6)
    wrong = CliRunner().invoke(main, [*words[:2], "--prices", str(tmp_path / "none.yaml")])
    assert wrong.exit_code == 2
    assert "nothing stands" in wrong.stderr
