"""Two processes of ``torch.distributed`` share an epoch: each patch once, in as many steps."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import patchloom

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(280)]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def launch(world: int, url: str, **job: Any) -> list[dict[str, Any]]:
    """Run this file as so many processes; what each says."""
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps({"url": url, **job})],
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "RANK": str(rank),
                "WORLD_SIZE": str(world),
                "GLOO_SOCKET_IFNAME": "lo",
            },
            cwd=Path(__file__).parents[2],
        )
        for rank in range(world)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * world
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [json.loads(text.splitlines()[-1]) for text in said]


def rank_main() -> None:
    """One rank: a training step for each batch, with a gradient that all ranks share."""
    job = json.loads(sys.argv[1])
    torch.distributed.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    store = patchloom.open_patches(job["url"])
    dataset: Any = store.to_torch(batch_size=job["batch_size"], columns="row", normalize="min-max")
    loader = dataset.loader(
        num_workers=job["workers"], multiprocessing_context=job["kind"] if job["workers"] else None
    )
    if "state" in job:
        loader.load_state_dict(job["state"])
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Conv2d(1, 1, 3))
    rows, states = [], []
    for batch in loader:
        # Waits for the others: would hang if one made more steps.
        model(batch["image"]).mean().backward()
        rows.append(batch["row"].tolist())
        states.append(loader.state_dict())
    torch.distributed.destroy_process_group()
    print(json.dumps({"rows": rows, "states": states}), flush=True)


@pytest.mark.parametrize("kind", ["fork", "spawn"])
def test_two_ranks_with_workers(kind: str, store: patchloom.PatchStore) -> None:
    """37 or 38 patches each, though 75 do not divide; workers know the rank of their process."""
    ranks = launch(2, store.url, batch_size=8, workers=2, kind=kind)
    assert len(ranks[0]["rows"]) == len(ranks[1]["rows"]) == 5
    assert ranks[0]["states"] == ranks[1]["states"]
    found = [row for rank in ranks for rows in rank["rows"] for row in rows]
    assert sorted(found) == list(range(75))


def test_another_world_goes_on(store: patchloom.PatchStore) -> None:
    """After two steps of two ranks, three ranks with batches of another size, then one."""
    ranks = launch(2, store.url, batch_size=8, workers=0, kind="fork")
    state = ranks[0]["states"][1]
    seen = [row for rank in ranks for rows in rank["rows"][:2] for row in rows]
    assert len(seen) == 32
    for world, size, workers in ((3, 5, 1), (1, 8, 0)):
        rest = launch(world, store.url, batch_size=size, workers=workers, kind="fork", state=state)
        assert len({len(rank["rows"]) for rank in rest}) == 1
        found = [row for rank in rest for rows in rank["rows"] for row in rows]
        assert sorted(seen + found) == list(range(75))


def spawned_main(rank: int, dataset: Any, port: int, said: Any) -> None:
    """One rank of ``mp.spawn``: it joins the others after it was given the dataset."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    said.put([row for batch in dataset for row in batch["row"].tolist()])
    torch.distributed.destroy_process_group()


def test_a_dataset_is_sent_to_ranks(store: patchloom.PatchStore) -> None:
    """Made before there are ranks, each of them has its own share of it."""
    dataset = store.to_torch(batch_size=8, columns="row", threads=0)
    said = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(spawned_main, (dataset, free_port(), said), nprocs=2)
    assert sorted(said.get() + said.get()) == list(range(75))


if __name__ == "__main__":
    rank_main()
