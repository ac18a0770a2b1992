"""Values beside a job file: by --set before the environment before the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zarr
from click.testing import Result

from patchloom.config import load_job
from patchloom.errors import ConfigError
from patchloom.overrides import Override, overridden
from tests.test_cli import call

JOB = """\
images: [a.zarr]
patching: {name: sequential, patch_size: [64, 64]}
storage_options: {key: old}
seed: 1
output: patches.zarr
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job file."""
    (tmp_path / "job.yaml").write_text(JOB, encoding="utf-8")
    return tmp_path / "job.yaml"


def said(job: Path, *texts: str) -> str:
    """What is said about wrong overrides."""
    with pytest.raises(ConfigError) as caught:
        load_job(job, [Override.parse(text) for text in texts])
    return str(caught.value)


def test_values_replace_those_of_the_file(job: Path) -> None:
    """At any depth, by YAML; what is not named stays."""
    texts = ["patching.patch_size[1]=32", "images[1]=b.zarr", "memory=2 GiB", "quota.n_patches=5"]
    found = load_job(job, [Override.parse(text) for text in texts])
    assert found.patching.model_dump()["patch_size"] == [64, 32]
    assert found.images == ["a.zarr", "b.zarr"]
    assert (found.memory, found.seed) == ("2 GiB", 1)
    assert found.quota is not None
    assert found.quota.n_patches == 5


def test_later_ones_go_first(job: Path) -> None:
    """Also where one replaces what an earlier one went into."""
    texts = ["seed=2", "seed=3", "patching.patch_size=[1,1]", "patching={name: whole}"]
    found = load_job(job, [Override.parse(text) for text in texts])
    assert found.seed == 3
    assert found.patching.name == "whole"


def test_the_document_is_not_touched() -> None:
    """An alias in YAML is one list in two places: only one of them changes."""
    shared = [64, 64]
    document = {"a": shared, "b": shared}
    changed = overridden(document, [Override.parse("a[0]=1")])
    assert (changed["a"], changed["b"], shared) == ([1, 64], [64, 64], [64, 64])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sed=3", ["--set sed: unknown key 'sed'", "did you mean 'seed'?"]),
        ("patching.patch_sise=[1]", ["--set patching.patch_sise", "did you mean 'patch_size'?"]),
        ("patching.patch_size=[1,a]", ["'patching.patch_size[1]' should be a whole number"]),
        ("images[5]=b.zarr", ["'images' is a list of 1", "'images[1]'"]),
        ("output.x=3", ["'output' is text"]),
        ("seed=[1", ["--set seed: the value is YAML"]),
        ("seed", ["KEY=VALUE", "no '='"]),
        ("..=3", ["KEY=VALUE"]),
        ("a b=3", ["KEY=VALUE"]),
        ("edge=shft", ["did you mean 'shift'?"]),
    ],
)
def test_mistakes_name_the_override(job: Path, text: str, words: list[str]) -> None:
    """And the nearest right key."""
    told = said(job, text)
    assert all(word in told for word in words), told
    assert "line" not in told


def test_mistakes_of_the_file_keep_their_line(job: Path) -> None:
    """Beside those of overrides."""
    job.write_text(JOB + "sed: 1\n", encoding="utf-8")
    first, second = said(job, "edge=shft").splitlines()
    assert first.startswith(f"{job}, line 6: unknown key 'sed'")
    assert second.startswith("--set edge:")


def test_a_credential_is_never_repeated(job: Path) -> None:
    """Not in what is wrong, nor in how an override is written."""
    for text in ("storage_options=s3cr3t", "storage_options.key=[s3cr3t", "storage_optons=s3cr3t"):
        with pytest.raises(ConfigError) as caught:
            load_job(job, [Override.parse(text)])
        assert "s3cr3t" not in str(caught.value).replace("got 's3cr3t'", "")
    assert "s3cr3t" not in repr(Override.parse("storage_options.key=s3cr3t"))


def plan_of(job: Path, *more: str) -> Result:
    """The plan of a real job."""
    return call("plan", job, "--json", *more)


@pytest.mark.usefixtures("image")
def test_set_goes_before_the_environment_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the environment says is told: nobody sees it on the command line."""
    job = tmp_path / "real.yaml"
    job.write_text(
        f"images: {tmp_path / 'a.zarr'}\noutput: {tmp_path / 'p.zarr'}\n"
        "patching: {name: sequential, patch_size: [64, 64]}\n"
    )
    assert json.loads(plan_of(job).stdout)["n_patches"] == 4
    monkeypatch.setenv("PATCHLOOM_JOB__PATCHING__PATCH_SIZE", "[32, 32]")
    told = plan_of(job)
    assert json.loads(told.stdout)["n_patches"] == 16
    assert "from the environment: PATCHLOOM_JOB__PATCHING__PATCH_SIZE" in told.stderr
    told = plan_of(job, "--set", "patching.patch_size=[128, 128]")
    assert json.loads(told.stdout)["n_patches"] == 1
    monkeypatch.setenv("PATCHLOOM_JOB__SED", "3")
    told = plan_of(job)
    assert told.exit_code == 2
    assert "PATCHLOOM_JOB__SED: unknown key 'sed'; did you mean 'seed'?" in told.stderr


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of 128 x 128 pixels."""
    path = tmp_path / "a.zarr"
    zarr.create_array(path, shape=(128, 128), chunks=(128, 128), dtype="uint16")[:] = 1
    return path


@pytest.mark.usefixtures("image")
def test_every_command_that_takes_a_job_takes_set(tmp_path: Path) -> None:
    """Plan, run, verify, stats and doctor; without a job it is refused."""
    job = tmp_path / "job.yaml"
    job.write_text(
        f"images: {tmp_path / 'a.zarr'}\noutput: nowhere.zarr\n"
        "patching: {name: sequential, patch_size: [64, 64]}\n"
    )
    store = tmp_path / "p.zarr"
    change = ("--set", f"output={store}")
    assert call("run", job, *change, "-q").exit_code == 0
    assert call("verify", store, "--job", job, *change).exit_code == 0
    assert call("stats", job, *change).exit_code == 0
    assert call("doctor", job, *change).exit_code == 0
    assert "add --job" in call("verify", store, *change).stderr
    assert "--set is of a job" in call("stats", store, *change).stderr
