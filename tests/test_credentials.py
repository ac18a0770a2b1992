"""Credentials stay in the process that was given them, and reach workers beside the graph.

Laws: nothing that is pickled, logged, written or said holds a secret; processes of the same user on
the same machine, and workers of a cluster, can use it all the same.
"""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import fsspec
import h5py
import numpy as np
import pytest
import tifffile
import zarr

import patchloom
from patchloom import vault
from patchloom.errors import AccessError, PatchloomError
from patchloom.location import Location, StorageOptions
from patchloom.run import executing
from patchloom.run.lending import lending
from tests.clusters import local_cluster
from tests.servers.s3 import S3Server

SECRET = "hunter2-hunter2"
URL = f"https://user:{SECRET}@host/a.zarr?token={SECRET}"
ZEROS = "0" * 32
PATCHING = {"name": "sequential", "patch_size": [8, 8]}


@pytest.fixture
def image(s3_server: S3Server) -> patchloom.Image:
    """An image in a bucket that only opens with storage options."""
    bucket = s3_server.fresh_bucket()
    options = s3_server.storage_options
    zarr.create_array(
        f"{bucket}/a.zarr",
        data=np.arange(32 * 32, dtype="uint16").reshape(32, 32),
        chunks=(8, 8),
        storage_options=options,
    )
    [image] = patchloom.open_images(f"{bucket}/a.zarr", storage_options=options)
    return image


def pickles(value: Any) -> list[bytes]:
    """A value as each of the tools that carry it would write it."""
    return [pickle.dumps(value), pickle.dumps(value, protocol=2), cloudpickle.dumps(value)]


@pytest.mark.parametrize(
    "value",
    [
        StorageOptions({"secret": SECRET}),
        Location(URL),
        Location("s3://bucket/a.zarr", StorageOptions({"client_kwargs": {"token": SECRET}})),
        Location("gs://bucket/a.zarr", StorageOptions({"token": (SECRET,)})),
    ],
    ids=["options", "url", "nested", "no JSON"],
)
def test_no_pickle_holds_a_secret_and_each_gives_it_back(value: Any) -> None:
    """In the process that has it."""
    for text in pickles(value):
        assert SECRET.encode() not in text
        again = pickle.loads(text)
        assert again == value
        assert getattr(again, "options", again) == getattr(value, "options", value)
    assert copy.deepcopy(value) == value


def test_images_plans_and_graphs_hold_no_secret(
    image: patchloom.Image, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of what a run hands to a scheduler is looked at."""
    seen: list[bytes] = []
    here = executing._here

    def looked_at(get: Any, graph: Any, *rest: Any) -> Any:
        seen.append(cloudpickle.dumps({**graph.shared, **graph.part(graph.keys)}))
        return here(get, graph, *rest)

    monkeypatch.setattr(executing, "_here", looked_at)
    plan = patchloom.plan(image, PATCHING)
    out = f"{s3_server.fresh_bucket()}/out.zarr"
    options = s3_server.storage_options
    patchloom.materialize(plan, out, storage_options=options, progress=False)
    secret = s3_server.secret_key.encode()
    assert seen
    assert not any(secret in text for text in [*seen, *pickles(image), *pickles(plan)])
    store = patchloom.open_patches(out, storage_options=options)
    assert not any(secret in text for text in pickles(store))
    fs, root = fsspec.url_to_fs(out, **options)
    assert not any(secret in fs.cat_file(path) for path in fs.find(root))


PROGRAM = """
import pickle, sys
image = pickle.loads(bytes.fromhex(sys.stdin.read()))
try:
    print(int(image.read((0, 0), (32, 32)).sum()))
except Exception as error:
    print(type(error).__name__, error)
"""


def in_another_process(value: Any) -> str:
    """What a process says that is handed an image and nothing else."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=pickle.dumps(value).hex(),
        capture_output=True,
        text=True,
        check=True,
        env=env,
    )
    return done.stdout.strip()


def lent() -> Path:
    """The folder of what was lent by this process."""
    vault.lend(vault.keep({"secret": SECRET}))
    assert vault._folder is not None
    return vault._folder[1]


def test_another_process_of_this_machine_finds_them(image: patchloom.Image) -> None:
    """And one that cannot says what to do."""
    assert in_another_process(image) == str(sum(range(1024)))
    folder = lent()
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o644)  # others could have written it
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    said = in_another_process(image)
    assert "AccessError credentials stay with the process" in said
    assert "storage_options=" in said
    for path in folder.iterdir():
        path.chmod(0o600)
    assert in_another_process(image) == str(sum(range(1024)))


def test_workers_of_a_cluster_are_handed_them(
    image: patchloom.Image, s3_server: S3Server, tmp_path: Path
) -> None:
    """As on another machine: without the private folder; and no log holds a secret."""
    plan = patchloom.plan(image, PATCHING)
    options = s3_server.storage_options
    out = f"{s3_server.fresh_bucket()}/out.zarr"
    with (
        local_cluster(n_workers=2, threads_per_worker=1) as cluster,
        cluster.get_client() as client,
    ):
        folder = lent()
        aside = tmp_path / "aside"
        shutil.copytree(folder, aside)
        for path in folder.iterdir():
            path.unlink()
        report = patchloom.materialize(plan, out, storage_options=options, progress=False)
        for path in aside.iterdir():
            shutil.copy2(path, folder / path.name)
        assert report.complete
        assert report.n_patches == 16
        logs = str(client.get_worker_logs()) + str(client.get_scheduler_logs())
        kept = client.run_on_scheduler(lambda dask_scheduler: repr(dask_scheduler.worker_plugins))
    assert s3_server.secret_key not in logs
    assert "patchloom" not in kept, "the scheduler forgets them with the run"


def test_a_worker_may_die_while_it_is_handed_them() -> None:
    """The others have them all the same, and so has the one that comes in its place."""
    kept = vault.keep({"secret": SECRET})
    with (
        local_cluster(n_workers=2, threads_per_worker=1) as cluster,
        cluster.get_client() as client,
    ):
        victim = min(client.run(os.getpid).values())
        os.kill(victim, signal.SIGSTOP)  # so that it is lent to, and does not answer
        threading.Timer(1.0, os.kill, (victim, signal.SIGKILL)).start()
        with lending(client):
            client.wait_for_workers(2, timeout=60)
            known = client.run(lambda: [*vault.contents()])
            assert victim not in client.run(os.getpid).values()
    assert [kept in keys for keys in known.values()] == [True, True]


def files_of(s3_server: S3Server, folder: Path) -> str:
    """A bucket with files of several formats, the same pixels in each."""
    pixels = np.arange(2 * 64 * 64, dtype="uint16").reshape(2, 64, 64)
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("raw", data=pixels, chunks=(1, 16, 16), compression="gzip")
    np.savez_compressed(folder / "a.npz", raw=pixels)
    with tifffile.TiffWriter(folder / "a.tif") as tif:
        tile = {"tile": (16, 16), "photometric": "minisblack"}
        tif.write(pixels, subifds=1, **tile)
        tif.write(pixels[:, ::2, ::2], subfiletype=1, **tile)
    for c in range(2):
        tifffile.imwrite(folder / f"c{c}.tif", pixels[c], tile=(16, 16))
    bucket = s3_server.fresh_bucket()
    fs, root = fsspec.url_to_fs(bucket, **s3_server.storage_options)
    for path in folder.iterdir():
        fs.put_file(str(path), f"{root}/{path.name}")
    return bucket


OPENED: dict[str, tuple[str, dict[str, Any]]] = {
    "hdf5": ("a.h5::raw", {"axes": "CYX", "labels": "{url}/a.npz::raw"}),
    "npz": ("a.npz", {"array": "raw", "axes": "CYX", "mask": {"auto": "otsu"}}),
    "pyramid": ("a.tif", {"axes": "CYX", "context": [1], "isel": {"y": slice(8, 64)}}),
    "stack": ("c*.tif", {"stack": "c", "isel": {"x": slice(5, 60)}, "channels": [1]}),
    "windows": ("c*.tif", {"stack": "t", "time": {"window": 2}}),
}


def test_workers_of_a_cluster_open_files_of_every_kind(s3_server: S3Server, tmp_path: Path) -> None:
    """What is made of files, too, also from a saved plan, and no graph or store shows a secret."""
    url, options = files_of(s3_server, tmp_path), s3_server.storage_options
    secret = s3_server.secret_key.encode()
    with local_cluster(n_workers=2, threads_per_worker=1) as cluster, cluster.get_client():
        folder, gone = lent(), tmp_path / "gone"
        gone.mkdir()
        for kind, (name, how) in OPENED.items():
            how = {k: v.format(url=url) if isinstance(v, str) else v for k, v in how.items()}
            [image] = patchloom.open_images(f"{url}/{name}", storage_options=options, **how)
            plan = patchloom.plan(image, PATCHING)
            plan.save(str(tmp_path / f"{kind}.plan"))
            loaded = patchloom.Plan.load(str(tmp_path / f"{kind}.plan"), storage_options=options)
            assert not any(secret in text for text in [*pickles(image), *pickles(loaded)])
            for path in folder.iterdir():
                shutil.move(path, gone / path.name)
            out = tmp_path / f"{kind}.zarr"
            assert patchloom.materialize(loaded, out, progress=False).complete
            found = patchloom.verify(out, plan, source_options=options, progress=False)
            assert found.ok
            assert found.n_compared
            for path in gone.iterdir():
                shutil.move(path, folder / path.name)
            shown = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
            assert not any(secret in text for text in shown)


def test_processes_of_dask_find_them(image: patchloom.Image, s3_server: S3Server) -> None:
    """Dask's own processes, from a bucket into a bucket."""
    out = f"{s3_server.fresh_bucket()}/out.zarr"
    with dask.config.set(scheduler="processes", num_workers=1):
        report = patchloom.materialize(
            patchloom.plan(image, PATCHING),
            out,
            storage_options=s3_server.storage_options,
            progress=False,
        )
    assert report.complete


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x",
        "../secret",
        "/etc/passwd",
        f"/tmp:{'0' * 32}",
        f"{'0' * 32}",
        f"/tmp/../a:{'0' * 32}",
    ],
)
def test_a_name_that_was_not_lent_gives_nothing(name: str) -> None:
    """No path is opened but one of ours."""
    assert vault.borrow(name) is None


def test_what_is_lost_is_said_where_it_is_needed() -> None:
    """A location whose secret cannot be had says so, and shows its URL without it."""
    text = pickle.dumps(Location(URL)).replace(b"patchloom-", b"patchloom_")
    found = pickle.loads(text)
    with pytest.raises(AccessError, match=r"https://host/a\.zarr.*storage_options="):
        found.open()


def test_the_folder_goes_with_its_process() -> None:
    """Also if the process forked: the child leaves its parent's folder alone."""
    program = (
        "import os, pickle, pathlib\n"
        "from patchloom.location import StorageOptions\n"
        "from patchloom import vault\n"
        "pickle.dumps(StorageOptions({'a': 'b'}))\n"
        "if os.fork() == 0:\n"
        "    raise SystemExit\n"
        "os.wait()\n"
        "print(vault._folder[1], vault._folder[1].exists())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    path, _, existed = done.stdout.strip().rpartition(" ")
    assert existed == "True"
    assert not Path(path).exists()


def test_a_process_lends_from_its_own_folder_alone() -> None:
    """Also what its parent has lent before the fork: the parent may end first."""
    program = (
        "import os\n"
        "from patchloom import vault\n"
        "keys = [vault.keep({'a': n}) for n in range(2)]\n"
        "before = [vault.lend(key) for key in keys]\n"
        "if (child := os.fork()) == 0:\n"
        "    names = [vault.lend(key) for key in keys]\n"
        "    own = str(vault._folder[1])\n"
        "    os._exit(0 if all(name.startswith(own) for name in names) else 3)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "assert [vault.lend(key) for key in keys] == before\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_cannot_travel_does_not_stop_runs_that_need_none_of_it(tmp_path: Path) -> None:
    """Options may hold an object of some client, with a lock in it."""
    StorageOptions({"session": threading.Lock()})
    plan = patchloom.plan(patchloom.open_images(np.ones((16, 16), "uint8")), PATCHING)
    with local_cluster(n_workers=1, threads_per_worker=1) as cluster, cluster.get_client():
        report = patchloom.materialize(plan, tmp_path / "out.zarr", progress=False)
    assert report.complete


def test_an_error_of_a_worker_shows_no_secret(
    image: patchloom.Image, s3_server: S3Server, data_gone: Callable[[patchloom.Image], None]
) -> None:
    """A chunk that cannot be read, on a worker in another process."""
    plan = patchloom.plan(image, PATCHING)
    data_gone(image)
    with (
        local_cluster(n_workers=1, threads_per_worker=1) as cluster,
        cluster.get_client(),
        pytest.raises(PatchloomError) as caught,
    ):
        patchloom.materialize(
            plan,
            f"{s3_server.fresh_bucket()}/out.zarr",
            storage_options=s3_server.storage_options,
            progress=False,
        )
    assert s3_server.secret_key not in str(caught.value) + repr(caught.value)


@pytest.fixture
def data_gone() -> Callable[[patchloom.Image], None]:
    """Puts rubbish in place of an image's chunks."""

    def spoil(image: patchloom.Image) -> None:
        location = image.source.location  # type: ignore[attr-defined]
        fs, root = location.open()
        for path in fs.find(f"{root}/c"):
            fs.pipe_file(path, b"rubbish")

    return spoil
