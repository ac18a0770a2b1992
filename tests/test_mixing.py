"""Mixing: entropies against counting by hand, and shuffled orders against independent draws.

Laws: what is measured is what lies in the rows; what chance would give is exact; a window of a
quarter of 20 images or more mixes images, regions and classes as a full shuffle does.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.errors import FingerprintError, StoreError
from patchloom.mixing import drawn, entropies, expected
from patchloom.planning.groups import Groups
from patchloom.planning.mixing import mixing
from patchloom.run.wording import worded

N_IMAGES = 20


# -- the measure ------------------------------------------------------------------------


def entropy_of(codes: list[int]) -> float:
    """Of one batch, in bits, by counting."""
    n = len(codes)
    return -sum(k / n * math.log2(k / n) for k in Counter(codes).values())


@given(
    codes=st.lists(st.integers(-3, 10**12) | st.integers(0, 3), max_size=60),
    batch=st.integers(1, 9),
)
def test_entropies_are_those_of_whole_batches(codes: list[int], batch: int) -> None:
    """Batch by batch with a counter; what is over at the end counts for none."""
    whole = [codes[k : k + batch] for k in range(0, len(codes) - batch + 1, batch)]
    total, n = entropies(np.array(codes, np.int64), batch)
    assert n == len(whole)
    assert total == pytest.approx(sum(map(entropy_of, whole)), abs=1e-9)


@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=8), batch=st.integers(1, 20))
def test_what_chance_gives_is_exact(counts: list[int], batch: int) -> None:
    """Binomial and hypergeometric means, against SciPy's distributions term by term."""
    total = sum(counts)
    if total < batch:
        counts, total = [*counts, batch - total], batch
    k = np.arange(batch + 1)
    share = np.where(k > 0, k, 1) / batch
    term = np.where(k > 0, -share * np.log2(share), 0.0)
    column = np.array(counts, np.int64)
    for replaced in (True, False):
        found = sum(
            float(
                (
                    scipy.stats.binom.pmf(k, batch, n / total)
                    if replaced
                    else scipy.stats.hypergeom.pmf(k, total, n, batch)
                )
                @ term
            )
            for n in counts
            if n
        )
        assert expected(column, batch, replaced=replaced) == pytest.approx(found, abs=1e-8)


def test_a_permutation_has_what_is_expected_of_it() -> None:
    """Permuted rows come out at 1, on average, for any numbers of kinds."""
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 90, 70)
    codes = np.repeat(np.arange(70), counts)
    sums = [entropies(rng.permutation(codes), 64) for _ in range(100)]
    mean = sum(total for total, _ in sums) / sum(n for _, n in sums)
    assert mean == pytest.approx(expected(counts, 64, replaced=False), rel=2e-3)
    assert mean > expected(counts, 64, replaced=True)


@settings(max_examples=60)
@given(n=st.integers(0, 10**8), rows=st.integers(1, 10**5), seed=st.integers(0, 99))
def test_a_sample_is_of_whole_shards(n: int, rows: int, seed: int) -> None:
    """Stretches are apart, end with shards, and are a bounded number."""
    found = drawn(n, rows, 64, seed)
    assert len(found) <= 64
    assert found == sorted(found)
    assert all(a % rows == 0 and (b % rows == 0 or b == n) for a, b in found)
    assert all(b <= c for (_, b), (c, _) in pairwise(found))
    assert found == drawn(n, rows, 64, seed)


# -- of plans and stores ----------------------------------------------------------------


def arrays(folder: Path, shape: tuple[int, ...], chunks: tuple[int, ...]) -> list[str]:
    """Images without a chunk written, of any size."""
    paths = [str(folder / f"{k:02}.zarr") for k in range(N_IMAGES)]
    for path in paths:
        zarr.create_array(path, shape=shape, chunks=chunks, dtype="uint16")
    return paths


def islands(side: int) -> list[npt.NDArray[np.uint8]]:
    """A mask for each image: an ellipse somewhere."""
    rng, (y, x) = np.random.default_rng(5), np.mgrid[:side, :side]
    found = []
    for _ in range(N_IMAGES):
        (cy, cx), (ry, rx) = rng.uniform(0.35, 0.65, 2) * side, rng.uniform(0.2, 0.45, 2) * side
        found.append((((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1).astype("uint8"))
    return found


SHAPES: dict[str, dict[str, Any]] = {
    "aligned": {
        "shape": (2048, 2048),
        "chunks": (128, 128),
        "config": {"name": "sequential", "patch_size": [64, 64]},
    },
    "straddling": {
        "shape": (16384, 16384),
        "chunks": (512, 512),
        "config": {"name": "sequential", "patch_size": [256, 256], "overlaps": [32, 32]},
        "rows_per_shard": 256,
    },
    "straddling and small": {
        "shape": (2048, 2048),
        "chunks": (128, 128),
        "config": {"name": "sequential", "patch_size": [96, 96], "overlaps": [32, 32]},
    },
    "masked": {
        "shape": (16384, 16384),
        "chunks": (512, 512),
        "config": {"name": "sequential", "patch_size": [256, 256], "overlaps": [32, 32]},
        "mask": True,
    },
    "masked and random": {
        "shape": (2048, 2048),
        "chunks": (128, 128),
        "config": {"name": "random", "patch_size": [64, 64], "n_patches": 1500},
        "mask": True,
    },
    "volumes": {
        "shape": (256, 2048, 2048),
        "chunks": (64, 64, 64),
        "config": {"name": "sequential", "patch_size": [64, 64, 64], "overlaps": [16, 16, 16]},
    },
}


def quarter(folder: Path, *, mask: bool = False, **asked: Any) -> patchloom.Plan:
    """A shuffled plan of 20 images whose windows hold a quarter of the patches, in whole shards."""
    paths = arrays(folder, asked.pop("shape"), asked.pop("chunks"))
    images = patchloom.open_images(paths, mask=islands(256) if mask else None)
    more = {"order": "shuffled", "rows_per_shard": 64, "memory": "64 GiB", "seed": 3, **asked}
    more |= {"min_coverage": 0.5} if mask else {}
    config = more.pop("config")
    whole = patchloom.plan(images, config, **more)
    return patchloom.plan(images, config, **more, window=len(whole.groups) // 4)


@pytest.mark.parametrize("name", SHAPES)
def test_a_quarter_mixes_as_well_as_all(name: str, tmp_path: Path) -> None:
    """The goal: 99 % of the entropy of independent draws, of images and of their regions."""
    plan = quarter(tmp_path, **SHAPES[name])
    assert plan.window_rows < plan.n_patches / 4 + plan.rows_per_shard
    found = plan.mixing()
    for kind in ("image", "region", "joint"):
        told = found[kind]
        assert told["independent"] <= told["permuted"] <= math.log2(64)
        assert told["relative"] >= 0.99
        assert told["entropy"] >= 0.99 * told["independent"]
    assert found["groups_per_shard"] > 30
    assert found["n_batches"] == found["of_batches"] == plan.n_patches // 64


def test_what_a_plan_tells_is_what_lies_in_its_rows(tmp_path: Path) -> None:
    """Images, regions and groups of every row, looked at one by one."""
    plan = quarter(tmp_path, **{**SHAPES["straddling and small"], "shape": (512, 384)})
    seen = []
    for row in range(plan.n_patches):
        spec = plan.get_patch_spec(row)
        y, x = spec["coords"]
        seen.append((spec["data_idx"], y + 48 >= 256, x + 48 >= 192))
    found, whole = plan.mixing(batch=32), len(seen) // 32 * 32
    for kind, codes in (("image", [k for k, *_ in seen]), ("region", seen)):
        batches = [codes[k : k + 32] for k in range(0, whole, 32)]
        entropy = np.mean([entropy_of([hash(code) for code in some]) for some in batches])
        assert found[kind]["entropy"] == pytest.approx(entropy, abs=1e-9)
        shards = [len({*codes[k : k + 64]}) for k in range(0, len(codes), 64)]
        assert found[f"{kind}s_per_shard"] == pytest.approx(np.mean(shards))


def test_a_store_tells_what_its_plan_told(tmp_path: Path) -> None:
    """From the manifest alone: the same numbers, also where a shard is read by nobody."""
    pixels = [np.zeros((96, 64), "uint8")] * 5
    plan = patchloom.plan(
        patchloom.open_images(pixels, ids=list("abcde")),
        {"name": "sequential", "patch_size": [16, 16], "overlaps": [8, 8]},
        order="shuffled",
        window=10,
        rows_per_shard=20,
    )
    report = patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    told = plan.mixing()
    assert report.shuffle == told
    assert report.to_dict()["shuffle"] == plan.summary()["shuffle"] == told
    words = {key: text for key, _, text in worded(report.to_dict())}
    assert f"image {told['image']['relative']:.1%}, region" in words["shuffle"]
    assert "of a full shuffle" in str(report)
    store = patchloom.open_patches(tmp_path / "out.zarr")
    found = store.mixing()
    assert {"image", "region", "joint"} < found.keys()
    assert found == {name: told[name] for name in found}
    (tmp_path / "out.zarr" / "manifest" / "00000001.parquet").unlink()
    with pytest.raises(StoreError, match="complete"):
        store.mixing()


def test_a_store_of_additions_is_measured_whole(tmp_path: Path) -> None:
    """Addition by addition, to the last shard, though rows between them are empty."""
    data = [np.full((40, 40), k, "uint8") for k in range(9)]
    for n in (2, 5, 9):
        images = patchloom.open_images(data[:n], ids=[f"i{k}" for k in range(n)])
        config = {"name": "sequential", "patch_size": [8, 8]}
        plan = patchloom.plan(images, config, order="shuffled", rows_per_shard=16)
        patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    store = patchloom.open_patches(tmp_path / "out.zarr")
    assert store.manifest.num_rows < len(store)
    table, batches, shards = store.manifest.to_pylist(), [], Counter[int]()
    begins = [item["first_row"] for item in store.attributes["additions"]]
    for first, stop in pairwise([*begins, len(store)]):
        codes = [ord(row["image_id"][1]) for row in table if first <= row["row"] < stop]
        batches += [codes[k : k + 8] for k in range(0, len(codes) - 7, 8)]
    for shard, _ in {(row["row"] // 16, row["image_id"]) for row in table}:
        shards[shard] += 1
    told = store.mixing(8)
    assert told["n_batches"] == len(batches)
    assert told["image"]["entropy"] == pytest.approx(np.mean([*map(entropy_of, batches)]))
    assert told["images_per_shard"] == pytest.approx(np.mean([*shards.values()]))


def test_other_orders_are_not_mixed(tmp_path: Path) -> None:
    """A spatial order has a batch of one image; its report tells nothing of a shuffle."""
    images = patchloom.open_images([np.zeros((128, 128), "uint8")] * 3, ids=list("abc"))
    plan = patchloom.plan(images, {"name": "sequential", "patch_size": [16, 16]})
    assert plan.mixing()["image"]["relative"] == 0
    assert plan.mixing()["region"]["relative"] < 0.6
    report = patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    assert report.shuffle is None
    assert "shuffle" not in str(report)
    assert "shuffle" not in [key for key, *_ in worded(report.to_dict())]


def test_an_empty_plan_has_nothing_to_mix() -> None:
    """No patch: no batch, and no division by it."""
    images = patchloom.open_images([np.zeros((8, 8), "uint8")])
    config = {"name": "sequential", "patch_size": [8, 8]}
    plan = patchloom.plan(images, config, order="shuffled").refine(np.zeros(1, np.bool_))
    assert mixing(plan)["n_batches"] == 0


def test_classes_meet_as_in_independent_draws(tmp_path: Path) -> None:
    """Of balanced plans the manifest tells the class: rows are mixed by it, and the report says."""
    rng = np.random.default_rng(2)
    # Classes lie in patches of their own, each image with others.
    labels = [
        np.kron(rng.choice(4, (8, 8), p=rng.dirichlet(np.ones(4))), np.ones((32, 32), int))
        for _ in range(N_IMAGES)
    ]
    images = patchloom.open_images(
        arrays(tmp_path, (256, 256), (32, 32)),
        labels=[label.astype("uint8") for label in labels],
    )
    config = {"name": "sequential", "patch_size": [16, 16], "overlaps": [4, 4]}
    asked: dict[str, Any] = {"balance": {}, "order": "shuffled", "rows_per_shard": 64}
    whole = patchloom.plan(images, config, **asked)
    plan = patchloom.plan(images, config, **asked, window=len(whole.groups) // 4)
    assert plan.window_rows < plan.n_patches / 4 + plan.rows_per_shard
    report = patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    assert report.shuffle is not None
    for kind in ("image", "class"):
        assert report.shuffle[kind]["relative"] >= 0.99
    found = patchloom.open_patches(tmp_path / "out.zarr")
    classes = found.manifest["class"].to_pylist()
    batches = [classes[k : k + 64] for k in range(0, len(classes) - 63, 64)]
    counted = np.mean([entropy_of([hash(c) for c in some]) for some in batches])
    assert found.mixing()["class"]["entropy"] == pytest.approx(counted, abs=1e-9)
    assert report.shuffle["classes_per_shard"] > 3.5


def test_a_sample_tells_what_all_batches_tell(tmp_path: Path) -> None:
    """Of more than 262,144 patches some batches are measured, and the number is said."""
    asked = {**SHAPES["aligned"], "config": {"name": "sequential", "patch_size": [16, 16]}}
    plan = quarter(tmp_path, **{**asked, "rows_per_shard": 128})
    assert plan.n_patches == N_IMAGES * 128 * 128
    found = plan.mixing()
    assert 1000 <= found["n_batches"] < found["of_batches"] == plan.n_patches // 64
    image, region = (np.empty(plan.n_patches, np.int64) for _ in range(2))
    for part in plan.walk():
        half = (2 * part.corner + 16 >= 2048) @ np.array([2, 1])
        image[part.row], region[part.row] = part.image, part.image * 4 + half
    for kind, codes in (("image", image), ("region", region)):
        total, n = entropies(codes, 64)
        assert found[kind]["entropy"] == pytest.approx(total / n, rel=0.005)
        whole = expected(np.unique(codes, return_counts=True)[1], 64, replaced=True)
        assert found[kind]["independent"] == pytest.approx(whole, rel=0.005)


# -- how groups are dealt ---------------------------------------------------------------


@settings(max_examples=20)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_every_window_has_its_share_of_every_stretch(data: st.DataObject, seed: int) -> None:
    """Of 2**k consecutive groups one falls into each 2**k-th of an image's order."""
    power = data.draw(st.integers(0, 7))
    n = 2**power
    image = patchloom.open_images(da.zeros((16 * n, 16), dtype="uint8", chunks=16))
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [16, 16]})
    groups = Groups.of(plan.images, plan.cells, alone=True)
    assert len(groups) == n
    order = groups.order(plan.images, plan.cells, seed)
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    for k in range(power + 1):
        for some in np.split(place, n // 2**k):
            assert sorted((some * 2**k // n).tolist()) == list(range(2**k))


def test_any_group_may_stand_anywhere() -> None:
    """Over seeds every group comes first and last, and stands in the middle on average."""
    image = patchloom.open_images(da.zeros((16 * 6, 16), dtype="uint8", chunks=16))
    plan = patchloom.plan(image, {"name": "sequential", "patch_size": [16, 16]})
    groups = Groups.of(plan.images, plan.cells, alone=True)
    orders = np.array([groups.order(plan.images, plan.cells, seed) for seed in range(600)])
    places = np.argsort(orders, axis=1)
    # Places are 0..5: their mean is 2.5, and of 600 its deviation 0.07.
    assert np.abs(places.mean(0) - 2.5).max() < 0.35
    assert (places.min(0) == 0).all()
    assert (places.max(0) == 5).all()


def test_a_store_of_another_dealing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows follow from how groups are dealt: a store of other rows is never gone on with."""
    images = patchloom.open_images([np.zeros((64, 64), "uint8")] * 2, ids=["a", "b"])
    grid = {"name": "sequential", "patch_size": [16, 16]}
    with monkeypatch.context() as patch:
        patch.setattr("patchloom.planning.plans.DEALING", 1)
        old = patchloom.plan(images, grid, order="shuffled")
        spatial = patchloom.plan(images, grid).fingerprint
        patchloom.materialize(old, tmp_path / "out.zarr", progress=False)
    assert patchloom.plan(images, grid).fingerprint == spatial
    new = patchloom.plan(images, grid, order="shuffled")
    with pytest.raises(FingerprintError, match="fingerprint"):
        patchloom.materialize(new, tmp_path / "out.zarr", progress=False)
