"""The services of deploy/compose.yaml as plain processes, and a batch job with its programs played.

Law: the commands, the environment and the job file of the compose file, with nothing changed but
addresses, take an empty object store to a verified store of patches.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

import patchloom
from tests.servers.process import HOST, free_port, running
from tests.servers.s3 import S3Server, available_kinds, serve_s3

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DEFAULT = re.compile(r"\$\{\w+:-([^}]*)\}")
"""A variable of the compose file that nobody set."""


def programs(folder: Path) -> dict[str, str]:
    """An environment in which the commands of this environment are found, patchloom among them."""
    place = folder / "bin"
    place.mkdir()
    for name, more in (("python", ""), ("patchloom", "-m patchloom ")):
        text = f'#!/bin/sh\nexec "{sys.executable}" {more}"$@"\n'
        (place / name).write_text(text, encoding="utf-8")
        (place / name).chmod(0o755)
    return {
        "PATH": f"{place}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(patchloom.__file__).parents[1]),
    }


@pytest.fixture
def store() -> Iterator[S3Server]:
    """A server of its own: the job names its bucket."""
    if not available_kinds():
        pytest.skip("no S3 server: neither Ceph nor moto[server] is installed")
    pytest.importorskip("s3fs")
    with serve_s3() as server:
        yield server


@contextmanager
def services(server: S3Server, folder: Path, port: int) -> Iterator[tuple[Any, dict[str, str]]]:
    """Scheduler and workers of the compose file; the smoke service's command and environment."""
    told = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    ours = programs(folder)

    def here(text: str) -> str:
        """What Docker's network and mounts make of a word."""
        text = DEFAULT.sub(r"\1", text)
        text = text.replace("http://store:5000", server.endpoint).replace("0.0.0.0", HOST)
        text = text.replace("scheduler:8786", f"{HOST}:{port}").replace(
            "/smoke/", f"{DEPLOY}/smoke/"
        )
        return {"8786": str(port), "/tmp": str(folder)}.get(text, text)

    def command(name: str) -> list[str]:
        return [here(word) for word in told[name]["command"]]

    def environment(name: str) -> dict[str, str]:
        return {**ours, **{key: here(value) for key, value in told[name]["environment"].items()}}

    with ExitStack() as stack:
        for name, count in (("scheduler", 1), ("worker", told["worker"]["deploy"]["replicas"])):
            for k in range(count):
                program, *rest = command(name)
                path = shutil.which(program, path=environment(name)["PATH"])
                assert path, program
                process = running(f"{name}-{k}", [path, *rest], folder, env=environment(name))
                stack.enter_context(process)
        yield command("smoke"), environment("smoke")


def test_smoke_job_of_compose(store: S3Server, tmp_path: Path) -> None:
    """On an empty store: image put, patches written by two workers, found again, verified."""
    port = free_port()
    with services(store, tmp_path, port) as (command, environment):
        done = subprocess.run(
            command,
            env={**os.environ, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        logs = "".join(p.read_text(errors="replace")[-2000:] for p in tmp_path.glob("*.out"))
        assert done.returncode == 0, done.stdout + done.stderr + logs
    assert "nothing was left to do" in done.stdout
    assert "nothing is damaged" in done.stdout
    found = patchloom.open_patches("s3://smoke/train.zarr", storage_options=store.storage_options)
    assert found.complete


JOB = f"""\
images: {ROOT / "src/patchloom/demo/cardiomyocytes.ome.zarr"}
patching: {{name: sequential, patch_size: [128, 128]}}
rows_per_shard: 4
output: train.zarr
"""
PBSDSH = """\
#!/bin/bash
# As PBS does: the command once on each of two chunks, in an environment of its own.
shift
trap 'kill $(jobs -p)' TERM
for chunk in 0 1; do
    /usr/bin/env -i HOME=/ PBS_TASKNUM=$chunk "$@" &
done
wait
wait
"""
SRUN = """\
#!/bin/bash
# As Slurm does: the command once for each of two tasks, in the same environment.
shift
trap 'kill $(jobs -p)' TERM
for task in 0 1; do
    SLURM_PROCID=$task "$@" &
done
wait
wait
"""


@pytest.mark.parametrize(
    ("script", "player", "text", "told"),
    [
        ("pbs.sh", "pbsdsh", PBSDSH, {"PBS_JOBID": "17.host", "JOB": "job.yaml", "THREADS": "1"}),
        ("slurm.sbatch", "srun", SRUN, {"SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "1"}),
    ],
)
def test_batch_job(
    script: str, player: str, text: str, told: dict[str, str], tmp_path: Path
) -> None:
    """The script, with the launcher of its batch system played, writes the store and tidies up."""
    environment = {**os.environ, **programs(tmp_path), **told}
    environment |= {"PBS_O_WORKDIR": str(tmp_path)} if script == "pbs.sh" else {}
    launcher = tmp_path / "bin" / player
    launcher.write_text(text, encoding="utf-8")
    launcher.chmod(0o755)
    (tmp_path / "job.yaml").write_text(JOB, encoding="utf-8")
    more = [] if script == "pbs.sh" else ["job.yaml"]
    done = subprocess.run(
        ["bash", str(DEPLOY / script), *more],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert patchloom.open_patches(tmp_path / "train.zarr").complete
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".patchloom-")]
