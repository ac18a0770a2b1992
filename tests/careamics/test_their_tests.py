"""CAREamics' own tests of its patching, on our classes. Nothing of theirs is kept here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import patchloom

careamics = pytest.importorskip("careamics")

SOURCE_VARIABLE = "PATCHLOOM_CAREAMICS_SOURCE"
SUITES = (
    "tests/dataset/patching",
    "tests/dataset/dataset/test_dataset.py",
    "tests/unit/dataset/patching",
    "tests/functional/dataset/patching_strategies",
    "tests/functional/dataset/factory/test_val_split.py",
    "tests/functional/dataset/factory/test_factory.py",
    "tests/functional/dataset/factory/test_filter_bg.py",
    "tests/lightning/data/test_grouped_index_sampler.py",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their sources of the installed version: a checkout, or the published archive."""
    if given := os.environ.get(SOURCE_VARIABLE):
        return Path(given)
    folder = tmp_path_factory.mktemp("careamics")
    wanted = f"careamics=={careamics.__version__}"
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "careamics"]
    done = subprocess.run(
        [*pip, "-d", str(folder), wanted], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"the sources of {wanted} cannot be fetched; ${SOURCE_VARIABLE} names a copy")
    (archive,) = folder.glob("careamics-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return archive.with_name(archive.name.removesuffix(".tar.gz"))


@pytest.mark.timeout(1500)
def test_their_tests_pass_on_ours(source: Path) -> None:
    """What they document holds for ours; what differs is listed in the shim, each with a reason."""
    here = [str(Path(patchloom.__file__).parents[1]), str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "shim", "--timeout", "300", *SUITES],
        cwd=source,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(here)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout[-4000:])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) > 100
