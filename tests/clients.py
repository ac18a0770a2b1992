"""Clients of a run in processes of their own, to be killed, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

PATCHING = {"name": "sequential", "patch_size": [48, 48], "overlaps": [16, 16]}
ROWS = 16


def noise(path: Path, side: int = 1024) -> Path:
    """A stored image of noise: slow enough to encode that a run can be caught at work."""
    shape = (2, side, side)
    array = zarr.create_array(path, shape=shape, dtype="uint16", chunks=(1, 128, 128))
    array[...] = np.random.default_rng(0).integers(0, 2**16, shape, dtype="uint16")
    return path


def arguments(image: Path | str, out: Path | str, **more: Any) -> str:
    """What `tests.runner` is told."""
    return json.dumps(
        {
            "image": str(image),
            "out": str(out),
            "patching": PATCHING,
            "rows_per_shard": ROWS,
            **more,
        }
    )


def start(text: str) -> subprocess.Popen[str]:
    """A client in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.runner", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )


def finish(text: str) -> dict[str, Any]:
    """Run a client to its end."""
    client = start(text)
    out, err = client.communicate(timeout=240)
    assert client.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def kill_at(client: subprocess.Popen[str], committed: Callable[[], int], n: int) -> None:
    """Kill a client as soon as so many shards are committed, or at its end."""
    while client.poll() is None and committed() < n:
        time.sleep(0.002)
    client.send_signal(signal.SIGKILL)
    client.wait()
    for stream in (client.stdout, client.stderr):
        assert stream is not None
        stream.close()
