"""Content, classes, splits and quotas on whole plans, against patches looked at one by one."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.errors import BudgetError, ChunkError, ConfigError, PlanError
from patchloom.image import Image
from patchloom.planning.plans import Plan

Pixels = npt.NDArray[Any]
GRID = {"name": "grid", "patch_size": [8, 8], "stride": [4, 4]}


def picture(seed: int, shape: tuple[int, ...] = (50, 61)) -> tuple[Pixels, Pixels]:
    """An image and its labels, with a rare class in the last corner."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 200, shape).astype(np.uint8)
    pixels[..., : shape[-1] // 2] //= 3
    labels = np.zeros(shape, np.int32)
    labels[..., 10:20, 5:30] = 3
    labels[..., 30:38, 20:24] = -1
    labels[..., -1, -1] = 70_000
    return pixels, labels


def opened(n: int = 3) -> tuple[list[Image], list[Pixels], list[Pixels]]:
    """Some such images in memory."""
    both = [picture(k, (50 + 3 * k, 61 - k)) for k in range(n)]
    pixels, labels = [p for p, _ in both], [q for _, q in both]
    meta = {f"i{k}": {"site": "ab"[k % 2]} for k in range(n)}
    ids = [*meta]
    images = patchloom.open_images(pixels, labels=labels, ids=ids, sample=meta)
    return images, pixels, labels


def boxes(plan: Plan) -> list[tuple[int, tuple[int, ...]]]:
    """Image and corner of every row."""
    return [
        (part.image, tuple(corner))
        for part in plan.patches(0, plan.n_patches)
        for corner in part.corner.tolist()
    ]


def cut(arrays: list[Pixels], box: tuple[int, tuple[int, ...]]) -> Pixels:
    """One patch of 8 x 8 pixels."""
    y, x = box[1]
    return arrays[box[0]][y : y + 8, x : x + 8]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 200), st.sampled_from(["drop", "shift"]), st.integers(0, 2**20))
def test_refine_keeps_what_it_is_told(threshold: int, edge: Any, seed: int) -> None:
    """Also of cells that keep only some already; reasons add up."""
    images, _, _ = opened()
    plan = patchloom.plan(images, GRID, edge=edge)
    rng = np.random.default_rng(seed)
    before = boxes(plan)
    for _ in range(2):
        keep = rng.random(plan.n_patches) < threshold / 200
        wanted = [box for box, flag in zip(before, keep, strict=True) if flag]
        n_before = plan.summary()["n_candidates"]
        plan = plan.refine(keep)
        assert boxes(plan) == wanted
        assert plan.summary()["n_candidates"] == n_before
        before = wanted
    rows = [r for k in range(3) for r in plan.get_patch_indices(k)]
    assert rows == list(range(plan.n_patches))


def test_refine_takes_one_flag_a_patch() -> None:
    """Anything else is told."""
    plan = patchloom.plan(opened()[0], GRID)
    with pytest.raises(PlanError, match=r"one flag a patch"):
        plan.refine([True])
    with pytest.raises(PlanError, match=r"got int64"):
        plan.refine(np.arange(plan.n_patches))


@settings(max_examples=15, deadline=None)
@given(st.integers(20, 90), st.sampled_from([None, 5, 30]))
def test_filters_and_class_balance(least: int, total: int | None) -> None:
    """Every number against patches that are looked at one by one."""
    images, pixels, labels = opened()
    every = boxes(patchloom.plan(images, GRID, edge="shift"))
    bright = [box for box in every if cut(pixels, box).mean() >= least]
    shown = Counter(v for box in bright for v in np.unique(cut(labels, box)).tolist())
    order = sorted(shown, key=lambda v: (shown[v], v))
    kind = {box: min(np.unique(cut(labels, box)).tolist(), key=order.index) for box in bright}
    there = Counter(kind.values())
    asked: dict[str, Any] = {
        "edge": "shift",
        "filters": [{"name": "range", "score": "mean", "min": least}],
        "balance": {"classes": [0, 3]},
        "quota": None if total is None else {"n_patches": total},
    }
    most = 2 * min(there[0], there[3])
    if (total or 0) > most or not most:
        with pytest.raises(PlanError, match=r"met exactly|every class"):
            patchloom.plan(images, GRID, **asked)
        return
    plan = patchloom.plan(images, GRID, **asked)
    found = boxes(plan)
    assert set(found) <= set(bright)
    assert len(set(found)) == len(found)
    # Only the listed classes are looked at: the rarer of the two that a patch shows.
    listed = [v for v in order if v in (0, 3)]
    mine = Counter(
        min((v for v in np.unique(cut(labels, box)).tolist() if v in listed), key=listed.index)
        for box in found
    )
    wanted = total if total is not None else len(found)
    assert mine[0] + mine[3] == wanted
    assert abs(mine[0] - mine[3]) <= 1
    assert plan.class_counts == {"0": mine[0], "3": mine[3]}
    assert plan.n_patches + sum(plan.rejected.values()) == len(every)
    report = patchloom.materialize(plan, f"memory://balance-{least}-{total}.zarr", progress=False)
    assert report.n_patches == plan.n_patches
    store = patchloom.open_patches(f"memory://balance-{least}-{total}.zarr")
    manifest = store.manifest
    for row, box in enumerate(found):
        patch, shown_here = cut(pixels, box), cut(labels, box)
        assert manifest["mean"][row].as_py() == pytest.approx(patch.mean(), rel=1e-14)
        kinds = [v for v in listed if (shown_here == v).any()]
        assert manifest["class"][row].as_py() == kinds[0]
        for v in (0, 3):
            assert manifest[f"fraction_{v}"][row].as_py() == (shown_here == v).sum() / 64


@pytest.mark.parametrize("rule", ["rarest", "dominant"])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5])
def test_a_patch_is_of_one_class(rule: str, fraction: float) -> None:
    """By the rule that was asked for; rare classes at borders included."""
    images, _, labels = opened()
    plan = patchloom.plan(
        images, GRID, edge="shift", balance={"rule": rule, "min_fraction": fraction}
    )
    every = boxes(patchloom.plan(images, GRID, edge="shift"))
    least = max(1, -(-Fraction(str(fraction)) * 64 // 1))

    def counts(box: tuple[int, tuple[int, ...]]) -> dict[int, int]:
        values, n = np.unique(cut(labels, box), return_counts=True)
        pairs = zip(values.tolist(), n.tolist(), strict=True)
        return {v: c for v, c in pairs if c >= least}

    shown = Counter(v for box in every for v in counts(box))
    order = sorted(shown, key=lambda v: (shown[v], v))
    assert list(plan.classes) == order
    if not fraction:
        assert 70_000 in order
    there: Counter[int] = Counter()
    for box in every:
        own = counts(box)
        if own and rule == "rarest":
            there[min(own, key=order.index)] += 1
        elif own:
            there[min(own, key=lambda v: (-own[v], order.index(v)))] += 1
    smallest = min(there.values())
    # A class that is dominant nowhere is no class of any patch.
    assert plan.class_counts == {str(v): smallest if there[v] else 0 for v in sorted(order)}


def test_only_some_splits_are_balanced() -> None:
    """The others stay as they are."""
    images, _, _ = opened()
    split = {"by": "blocks", "block_size": 24, "shares": {"train": 0.5, "val": 0.5}}
    whole = patchloom.plan(images, GRID, split=split)
    plan = patchloom.plan(
        images, GRID, split=split, balance={"classes": [0, 3], "splits": ["train"]}
    )
    val = whole.split_names.index("val")

    def of(plan: Plan, which: int) -> set[tuple[int, tuple[int, ...]]]:
        return {
            (part.image, tuple(corner))
            for part in plan.walk()
            for corner in part.corner[plan.split_of(part) == which].tolist()
        }

    assert of(plan, val) == of(whole, val)
    assert len(of(plan, 1 - val)) == 2 * plan.class_counts["0"] == 2 * plan.class_counts["3"]


def test_splits_are_in_the_manifest_and_the_summary(tmp_path: Path) -> None:
    """Each row says its split; no pixel is in two; the report tells what it cost."""
    images, pixels, _ = opened()
    split = {"by": "blocks", "block_size": 24, "guard": 3, "shares": {"train": 0.6, "val": 0.4}}
    plan = patchloom.plan(images, {**GRID, "context": 2}, split=split, edge="shift")
    every = patchloom.plan(images, {**GRID, "context": 2}, edge="shift")
    patchloom.materialize(plan, tmp_path / "a.zarr", progress=False)
    manifest = patchloom.open_patches(tmp_path / "a.zarr").manifest
    # start_* is where what is cut begins, context included.
    used = {name: [np.zeros(p.shape, np.bool_) for p in pixels] for name in ("train", "val")}
    ids = [image.id for image in images]
    for row in manifest.to_pylist():
        y, x = row["start_y"], row["start_x"]
        area = used[row["split"]][ids.index(row["image_id"])]
        area[max(0, y) : y + 12, max(0, x) : x + 12] = True
    for train, val in zip(used["train"], used["val"], strict=True):
        assert not (train & val).any()
    told = plan.summary()["split"]
    assert told["patches"] == dict(Counter(manifest["split"].to_pylist()))
    assert told["kept_fraction"] == plan.n_patches / every.n_patches
    assert told["smallest_distance"] >= 3
    gaps = [
        max(
            max(0, abs(a["start_y"] - b["start_y"]) - 12),
            max(0, abs(a["start_x"] - b["start_x"]) - 12),
        )
        for a in manifest.to_pylist()
        for b in manifest.to_pylist()
        if a["image_id"] == b["image_id"] and (a["split"], b["split"]) == ("train", "val")
    ]
    assert min(gaps) >= told["smallest_distance"]


@pytest.mark.parametrize(
    "quota",
    [
        {"n_patches": 40},
        {"n_images": 2},
        {"per_image": 7},
        {"per_group": 11, "group": "site"},
        {"n_images": 2, "per_image": 30, "n_patches": 50},
    ],
)
def test_quotas_hold_exactly(quota: dict[str, Any]) -> None:
    """Per image and group, under every order of the images."""
    images, _, _ = opened(4)
    every = patchloom.plan(images, GRID)
    offered = [len(every.get_patch_indices(k)) for k in range(4)]
    plan = patchloom.plan(images, GRID, quota=quota)
    given = [len(plan.get_patch_indices(k)) for k in range(4)]
    chosen = [n for n, g in zip(offered, given, strict=True) if g]
    if "n_images" in quota:
        assert len(chosen) == quota["n_images"]
    if "per_image" in quota and "n_patches" not in quota:
        assert given == [7] * 4
    if "per_group" in quota:
        assert [given[0] + given[2], given[1] + given[3]] == [11, 11]
        assert max(given) - min(given) <= 1
    if "n_patches" in quota:
        assert sum(given) == quota["n_patches"]
    assert set(boxes(plan)) <= set(boxes(every))
    back = patchloom.plan(images[::-1], GRID, quota=quota)
    if quota == {"per_image": 7}:
        there = {(3 - i, corner) for i, corner in boxes(back)}
        assert there == set(boxes(plan)), "an image's patches do not depend on the others"


def on_disk(folder: Path, n: int = 2) -> list[str]:
    """Images with labels as Zarr arrays of small chunks."""
    urls = []
    for k in range(n):
        pixels, labels = picture(k, (64, 64))
        for name, array in (("image", pixels), ("labels", labels)):
            path = folder / f"{name}-{k}.zarr"
            zarr.create_array(path, data=array, chunks=(16, 16))
        urls.append(str(folder / f"image-{k}.zarr"))
    return urls


def opened_on_disk(urls: list[str]) -> list[Image]:
    """With labels beside them."""
    return patchloom.open_images(urls, labels=[u.replace("image-", "labels-") for u in urls])


def test_a_survey_is_resumed_and_extended(tmp_path: Path) -> None:
    """Thresholds change without reading; lost parts and added images alone are read."""
    urls = on_disk(tmp_path, 3)
    folder = str(tmp_path / "survey")

    def planned(n: int, least: float) -> Plan:
        return patchloom.plan(
            opened_on_disk(urls[:n]),
            GRID,
            filters=[{"name": "range", "score": "mean", "min": least}],
            balance={"classes": [0, 3]},
            survey=folder,
        )

    first = planned(2, 30)
    assert first.planning_reads == 2 * 2 * 16, "each chunk of images and labels once"
    again = planned(2, 50)
    assert again.planning_reads == 0
    assert again.n_patches < first.n_patches
    assert planned(2, 30).fingerprint == first.fingerprint
    parts = sorted((tmp_path / "survey").iterdir())
    for part in parts[::2]:
        part.unlink()
    mended = planned(2, 30)
    assert 0 < mended.planning_reads <= first.planning_reads
    assert mended.fingerprint == first.fingerprint
    assert planned(3, 30).planning_reads == 2 * 16
    assert planned(2, 30).fingerprint == first.fingerprint


def test_a_survey_is_a_table(tmp_path: Path) -> None:
    """One row a patch in the plan's order, whatever the order of reading."""
    images = opened_on_disk(on_disk(tmp_path))
    aligned = {"name": "sequential", "patch_size": [8, 8], "overlaps": [0, 0]}
    mask = [np.tril(np.ones((64, 64), np.uint8)), np.ones((64, 64), np.uint8)]
    images = [
        image.with_role("mask", other.mask)
        for image, other in zip(
            images,
            patchloom.open_images([np.zeros((64, 64), np.uint8)] * 2, mask=mask, ids=["a", "b"]),
            strict=True,
        )
    ]
    plan = patchloom.plan(images, aligned, min_coverage=0.5, rows_per_shard=3)
    table = patchloom.survey(plan, ["mean", {"name": "max"}], progress=False)
    assert table["row"].to_pylist() == list(range(plan.n_patches))
    pixels = [picture(k, (64, 64))[0] for k in range(2)]
    for row, box in enumerate(boxes(plan)):
        assert table["mean"][row].as_py() == pytest.approx(cut(pixels, box).mean(), rel=1e-14)
        assert table["max"][row].as_py() == cut(pixels, box).max()
        assert table["coverage"][row].as_py() >= 0.5
        assert (table["start_y"][row].as_py(), table["start_x"][row].as_py()) == box[1]
    patchloom.materialize(plan, tmp_path / "s.zarr", progress=False)
    manifest = patchloom.open_patches(tmp_path / "s.zarr").manifest
    for name in ("patch_id", "image_id", "coverage", "split", "sample"):
        assert table[name].to_pylist() == manifest[name].to_pylist()
    kept = plan.refine(pa.compute.greater(table["mean"], 40).to_numpy())
    assert 0 < kept.n_patches < plan.n_patches
    old = dict(zip(manifest["patch_id"].to_pylist(), boxes(plan), strict=True))
    patchloom.materialize(kept, tmp_path / "k.zarr", progress=False)
    ids = patchloom.open_patches(tmp_path / "k.zarr").manifest["patch_id"].to_pylist()
    assert [old[i] for i in ids] == boxes(kept), "ids survive"


def test_the_same_plan_on_any_scheduler(tmp_path: Path) -> None:
    """Fingerprints do not depend on who reads, or on where parts are kept."""
    import dask

    urls = on_disk(tmp_path)
    asked: dict[str, Any] = {
        "filters": [{"name": "shannon", "threshold": 5.0, "filtered_patch_prob": 0.3}],
        "balance": {"classes": [0, 3]},
        "split": {"by": "blocks", "block_size": 32},
        "quota": {"n_patches": 20},
        "seed": 5,
    }
    found = set()
    for scheduler in ("synchronous", "threads", "processes"):
        with dask.config.set(scheduler=scheduler):
            for survey in (None, str(tmp_path / f"survey-{scheduler}")):
                plan = patchloom.plan(opened_on_disk(urls), GRID, survey=survey, **asked)
                found.add(plan.fingerprint)
    assert len(found) == 1
    plan.save(str(tmp_path / "plan"))
    loaded = Plan.load(str(tmp_path / "plan"))
    assert loaded.fingerprint == plan.fingerprint
    assert loaded.summary() == plan.summary()
    assert loaded.split_report == plan.split_report
    other = patchloom.plan(opened_on_disk(urls), GRID, **{**asked, "seed": 6})
    assert other.fingerprint != plan.fingerprint


def test_a_part_of_a_survey_holds_no_code(tmp_path: Path) -> None:
    """Parts are plain Parquet, named by content alone."""
    folder = tmp_path / "survey"
    plan = patchloom.plan(opened_on_disk(on_disk(tmp_path)), GRID)
    patchloom.survey(plan, ["entropy"], url=str(folder), progress=False)
    for part in folder.iterdir():
        assert part.name.startswith("contents-")
        assert pq.read_table(part).column_names == ["entropy", "coverage"]


def test_a_survey_knows_images_by_their_place(tmp_path: Path) -> None:
    """Others of the same name and shape are read; what lies in memory is never kept."""
    found = {}
    asked: dict[str, Any] = {
        "filters": [{"name": "mean_std", "mean_threshold": 50}],
        "survey": str(tmp_path / "survey"),
    }
    for value in (200, 0):
        path = tmp_path / str(value) / "image.zarr"
        zarr.create_array(path, data=np.full((40, 40), value, np.uint8), chunks=(16, 16))
        found[value] = patchloom.plan(patchloom.open_images(str(path)), GRID, **asked).n_patches
    assert found == {200: 81, 0: 0}
    for value in (200, 0):
        pixels = np.full((40, 40), value, np.uint8)
        plan = patchloom.plan(patchloom.open_images(pixels, ids=["a"]), GRID, **asked)
        assert plan.n_patches == found[value]


@pytest.mark.parametrize("harm", ["cut", "bit", "empty"])
def test_damaged_pieces_are_looked_at_again(tmp_path: Path, harm: str) -> None:
    """And the plan is the same."""
    urls, folder = on_disk(tmp_path, 1), tmp_path / "survey"
    asked: dict[str, Any] = {"balance": {"classes": [0, 3]}, "survey": str(folder)}
    first = patchloom.plan(opened_on_disk(urls), GRID, **asked)
    for part in folder.iterdir():
        data = bytearray(part.read_bytes())
        data[len(data) // 2] ^= 255
        harmed = {"cut": data[: len(data) // 2], "bit": data, "empty": bytearray()}
        part.write_bytes(harmed[harm])
    again = patchloom.plan(opened_on_disk(urls), GRID, **asked)
    assert again.planning_reads == first.planning_reads > 0
    assert again.fingerprint == first.fingerprint


def test_finished_pieces_are_kept_when_a_later_one_fails(tmp_path: Path) -> None:
    """A survey that is cut short has not read for nothing."""
    urls, folder = on_disk(tmp_path, 4), tmp_path / "survey"
    chunk = Path(urls[3]) / "c" / "0" / "0"
    good = chunk.read_bytes()
    chunk.write_bytes(b"broken")
    asked: dict[str, Any] = {
        "filters": [{"name": "mean_std", "mean_threshold": 1}],
        "survey": str(folder),
    }
    with pytest.raises(ChunkError):
        patchloom.plan(opened_on_disk(urls), GRID, **asked)
    assert len([*folder.iterdir()]) >= 3
    chunk.write_bytes(good)
    assert patchloom.plan(opened_on_disk(urls), GRID, **asked).planning_reads == 16


def test_an_empty_survey_has_its_columns() -> None:
    """So that an expression over them works."""
    images, _, _ = opened()
    every = patchloom.plan(images, GRID)
    plan = every.refine(np.zeros(every.n_patches, np.bool_))
    table = patchloom.survey(plan, ["mean"], progress=False)
    assert table.num_rows == 0
    assert plan.refine(table["mean"].to_numpy() > 3).n_patches == 0


def test_equal_reasons_are_counted_once() -> None:
    """Two filters may reject for the same reason."""
    images, _, _ = opened()
    filters = [
        {"name": "mean_std", "mean_threshold": 60, "filtered_patch_prob": p} for p in (0.9, 0.1)
    ]
    split = {"by": "blocks", "block_size": 24, "guard": 2}
    plan = patchloom.plan(images, GRID, filters=filters, split=split)
    told = plan.figures()
    assert 0 <= told["split"]["kept_fraction"] <= 1
    assert told["n_candidates"] == patchloom.plan(images, GRID).n_patches


@pytest.mark.parametrize("order", ["grouped", "shuffled"])
def test_other_orders_take_the_same_patches(order: str) -> None:
    """Selection comes before order; refining goes by rows, whatever their order."""
    images, pixels, _ = opened()
    asked: dict[str, Any] = {
        "filters": [{"name": "mean_std", "mean_threshold": 40}],
        "quota": {"n_patches": 100},
        "split": {"by": "blocks", "block_size": 24},
    }
    plain = patchloom.plan(images, GRID, **asked)
    group_by = "split" if order == "grouped" else None
    other = patchloom.plan(images, GRID, order=order, group_by=group_by, **asked)
    assert sorted(boxes(plain)) == sorted(boxes(other))
    table = patchloom.survey(other, ["mean"], progress=False)
    assert table["row"].to_pylist() == list(range(other.n_patches))
    keep = table["mean"].to_numpy() > 70
    specs = [other.get_patch_spec(k) for k in range(other.n_patches)]
    named = [(spec["data_idx"], tuple(spec["coords"])) for spec in specs]
    for box, mean in zip(named, table["mean"].to_pylist(), strict=True):
        assert cut(pixels, box).mean() == pytest.approx(mean, rel=1e-14)
    wanted = sorted(box for box, flag in zip(named, keep, strict=True) if flag)
    assert sorted(boxes(other.refine(keep))) == wanted


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"balance": {"splits": ["trian"]}}, r"got \['trian'\]"),
        ({"balance": {"classes": []}}, "at least one"),
        ({"balance": {"classes": [1, 1]}}, "each named once"),
        ({"balance": {"classes": [1], "counts": {1: 3}}}, "leave one out"),
        ({"balance": {}, "edge": "shrink"}, "edge='shrink'"),
        ({"scores": ["mean"], "edge": "shrink"}, "edge='shrink'"),
        ({"balance": {"clases": [1]}}, "did you mean 'classes'"),
        ({"quota": {"n_patches": 0}}, r"quota.n_patches: .*got 0"),
        ({"quota": [3]}, "quota= is a mapping"),
        ({"filters": [{"name": "shanon", "threshold": 1}]}, "did you mean 'shannon'"),
        ({"scores": ["brigth"]}, "did you mean 'bright'"),
        ({"scores": [{"name": "mean", "channel": 1}]}, "one of the image's 1 channels"),
        ({"split": {"by": "blocks"}}, "block_size"),
        ({"split": {"by": "plate"}}, "plate"),
    ],
)
def test_mistakes_are_told(wrong: dict[str, Any], told: str) -> None:
    """One sentence with the law, what was given, and the way out."""
    images, _, _ = opened()
    with pytest.raises((ConfigError, PlanError), match=told):
        patchloom.plan(images, GRID, **wrong)


def test_classes_need_labels() -> None:
    """And a score's column needs a free name."""
    pixels, _ = picture(0)
    with pytest.raises(PlanError, match="labels="):
        patchloom.plan(patchloom.open_images(pixels), GRID, balance={})
    named = patchloom.open_images(pixels, labels=pixels, sample={"mean": 3, "fraction_1": 2})
    with pytest.raises(ConfigError, match="'mean'"):
        patchloom.plan(named, GRID, scores=["mean"])
    with pytest.raises(ConfigError, match="'fraction_1'"):
        patchloom.plan(named, GRID, balance={})
    points = patchloom.read_points({"y": [9], "x": [9], "mean": [1.0]})
    with pytest.raises(ConfigError, match="'mean'"):
        patchloom.plan(
            patchloom.open_images(pixels),
            {"name": "points", "patch_size": 8, "points": points},
            scores=["mean"],
        )
    huge = patchloom.open_images(pixels, labels=np.full(pixels.shape, 2**63 + 5, np.uint64))
    with pytest.raises(PlanError, match="number them anew"):
        patchloom.plan(huge, GRID, balance={})


def test_normalised_patches_fit_their_projection(tmp_path: Path) -> None:
    """Small integers become float32: the projection knows, and refuses what cannot fit."""
    pixels = np.random.default_rng(0).integers(0, 255, (512, 512)).astype(np.uint8)
    zarr.create_array(tmp_path / "a.zarr", data=pixels, chunks=(128, 128))
    images = patchloom.open_images(str(tmp_path / "a.zarr"))
    grid = {"name": "sequential", "patch_size": [64, 64], "overlaps": [32, 32]}
    plan = patchloom.plan(images, grid)
    report = patchloom.materialize(
        plan, tmp_path / "o.zarr", normalize="mean-std", codec="none", progress=False
    )
    assert plan.runs.peak_memory < report.peak_memory <= report.projected_memory
    tight = patchloom.plan(images, grid, memory=plan.runs.peak_memory)
    with pytest.raises(BudgetError, match="float32"):
        patchloom.materialize(tight, tmp_path / "t.zarr", normalize="mean-std", progress=False)
