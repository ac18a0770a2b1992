"""Bad files: damaged, lying and hostile ones end in an error of ours, soon and in little memory.

They are opened and read in a process of its own, which may not take much memory or time, and in
which nothing may be run, nothing warned of, and no other file opened.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr

from tests.test_format_matrix import ROWS, pixels_of
from tests.test_nifti import header
from tests.test_pillow import png

MEMORY = 3 * 2**30
"""Address space that such a process may take besides what its packages take."""
SECONDS = 120
PROGRAM = """
import json, resource, sys, warnings
from pathlib import Path

import numpy as np
import patchloom, patchloom.sources.hdf5, patchloom.sources.pillow, patchloom.sources.nifti
import h5py, PIL.Image, zarr, dask.array
from patchloom.errors import PatchloomError

warnings.simplefilter("error")
folder = Path(sys.argv[1])
for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmSize"):
        size = int(line.split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[2]),) * 2)
opened = []
def watch(event, args):
    if event == "open" and isinstance(args[0], str):
        opened.append(args[0])
    if event in ("os.system", "subprocess.Popen", "pickle.find_class"):
        raise SystemExit(f"{event} {args}")
sys.addaudithook(watch)
found = {}
for path in sorted(folder.iterdir()):
    opened.clear()
    try:
        images = patchloom.open_images(path)
        for image in images:
            reader = image.source.reader()
            last = np.array(image.grid.counts) - 1
            for chunk in (last * 0, last):
                reader.read(chunk[None])
        found[path.name] = "read"
    except PatchloomError as error:
        found[path.name] = f"{type(error).__name__}: {error}"
    beside = [p for p in opened if p.startswith(str(folder.parent)) and not p.startswith(str(path))]
    if beside:
        raise SystemExit(f"{path} made {beside} be opened")
print(json.dumps(found))
"""


def outcomes(folder: Path) -> dict[str, str]:
    """What came of each file: ``read``, or the error. Anything but ours ends the process."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(MEMORY)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {path.name for path in folder.iterdir()}
    return found


FILES = [row for row in ROWS if not row.suffix.endswith("zarr")]


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    """Cut off anywhere, and with bytes changed, most of them where a file describes itself."""
    folder = tmp_path / "bad"
    folder.mkdir()
    for row in FILES:
        chance = random.Random(row.suffix)
        row.write(tmp_path / f"good.{row.suffix}", pixels_of(row.holds[0]))
        good = (tmp_path / f"good.{row.suffix}").read_bytes()
        for k in range(20):
            cut = good[: chance.randrange(len(good))]
            (folder / f"cut{k}.{row.suffix}").write_bytes(cut)
        for k in range(60):
            data = bytearray(good)
            top = chance.choice([min(len(data), 2048), len(data)])
            for _ in range(chance.choice([1, 1, 2, 4, 16])):
                data[chance.randrange(top)] = chance.choice([0, 1, 127, 128, 255])
            (folder / f"changed{k}.{row.suffix}").write_bytes(data)
        (folder / f"empty.{row.suffix}").write_bytes(b"")
    found = outcomes(folder)
    for row in FILES:
        assert found[f"empty.{row.suffix}"] != "read"
        assert {found[f"cut{k}.{row.suffix}"] for k in range(20)} != {"read"}
    assert all(len(text) < 2000 for text in found.values())


# --- Each lie by itself ---------------------------------------------------------------------


class Boom:
    """Makes a file if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return self.path.with_suffix(".was-run").touch, ()


def pickled_npy(path: Path) -> None:
    np.save(path, np.array([Boom(path)], object), allow_pickle=True)


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def npy(descr: str, shape: str) -> Callable[[Path], None]:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n"
    return lambda path: _write(path, npy_header(text) + bytes(64))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def hdf5(make: Callable[[Any], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            make(file)

    return write


def hdf5_bomb(file: Any) -> None:
    dataset = file.create_dataset("raw", (512, 512), "u1", chunks=(512, 512), compression="gzip")
    dataset.id.write_direct_chunk((0, 0), zlib.compress(bytes(2**29)))


def hdf5_nests(file: Any) -> None:
    group = file
    for _ in range(200):
        group = group.create_group("deeper")
    group["root"] = file["/"]


def nifti(at: int, form: str, *values: Any, zipped: bool = False) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import nibabel

        image = nibabel.Nifti1Image(np.ones((5, 4, 3), np.int16), np.eye(4))
        content = header(image.to_bytes(), at, form, *values)
        path.write_bytes(gzip.compress(content) if zipped else content)

    return write


def gzip_bomb(path: Path) -> None:
    """2 GiB of zeros behind a header that claims 60 voxels."""
    import nibabel

    plain = nibabel.Nifti1Image(np.ones((5, 4, 3), np.int16), np.eye(4)).to_bytes()
    with gzip.open(path, "wb", 1) as file:
        file.write(plain)
        for _ in range(32):
            file.write(bytes(2**26))


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", bytes(2**28))


def json_zarr(**wrong: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        zarr.create_array(path, shape=(8, 8), dtype="u1", chunks=(4, 4))
        document = json.loads((path / "zarr.json").read_text())
        (path / "zarr.json").write_text(json.dumps({**document, **wrong}))

    return write


LIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickle.npy": (pickled_npy, "dtype object"),
    "objects.npy": (npy("'|O'", "(3,)"), "dtype object"),
    "call.npy": (npy("__import__('os').system('true')", "(3,)"), "cannot be read"),
    "huge.npy": (npy("'<f8'", "(1000000, 1000000, 1000000)"), "holds all of its array"),
    "below.npy": (npy("'<f8'", "(-1, 3)"), "cannot be read"),
    "none.npy": (npy("'<f8'", "(0, 3)"), "at least one pixel"),
    "point.npy": (npy("'<f8'", "()"), "1 to 5 dimensions"),
    "wide.npy": (npy("'<f8'", "(1,) * 9"), "cannot be read"),
    "fields.npy": (npy("[('a', '<i4')]", "(3,)"), "dtype"),
    "keys.npy": (lambda path: _write(path, npy_header("{'descr': '<f8'}")), "cannot be read"),
    "bomb.h5": (hdf5(hdf5_bomb), "for a chunk of 262,144"),
    "nests.h5": (hdf5(hdf5_nests), "holds none"),
    "empty.h5": (hdf5(lambda file: None), "holds none"),
    "text.h5": (hdf5(lambda file: file.create_dataset("a", data=["x"])), "holds none"),
    "objects.h5": (
        hdf5(lambda file: file.create_dataset("a", (3,), h5py.ref_dtype)),
        "holds none",
    ),
    "none.h5": (hdf5(lambda file: file.create_dataset("a", (0, 3), "u1")), "at least one pixel"),
    "complex.h5": (hdf5(lambda file: file.create_dataset("a", (3, 3), "c8")), "holds none"),
    "link.h5": (
        hdf5(lambda file: file.__setitem__("a", h5py.ExternalLink("secret.h5", "/a"))),
        "holds none",
    ),
    "outside.h5": (
        hdf5(lambda file: file.create_dataset("a", (3, 3), "u1", external=[("/etc/passwd", 0, 9)])),
        "stored in other files",
    ),
    "huge.png": (lambda path: _write(path, png(2**31 - 1, 2**31 - 1, 8, 2)), "at most 268,435,456"),
    "short.png": (lambda path: _write(path, png(2**14, 2**14, 8, 0)), "does not"),
    "bomb.png": (
        lambda path: _write(path, png(64, 64, 8, 0, bytes(2**28))),
        "read",  # what is behind the last row is never inflated
    ),
    "huge.nii": (nifti(40, "<8h", 7, *[32767] * 5, 1, 1), "all of its array"),
    "huge.nii.gz": (nifti(40, "<8h", 7, *[32767] * 5, 1, 1, zipped=True), "all of its array"),
    "nan.nii": (nifti(112, "<2f", np.inf, np.nan), "two finite numbers"),
    "spacing.nii": (nifti(76, "<8f", *[np.nan] * 8), "read"),
    "bomb.nii.gz": (gzip_bomb, "read"),  # as much as the header claims is inflated
    "bomb.npz.npy": (zip_bomb, "NumPy's mark"),
    "huge.zarr": (json_zarr(shape=[2**62, 2**62]), "read"),  # chunks that are absent are blank
    "below.zarr": (json_zarr(shape=[-1, 8]), "SourceError|NotAnArrayError"),
    "shape.zarr": (json_zarr(shape="8"), "NotAnArrayError"),
    "type.zarr": (json_zarr(data_type="object"), "NotAnArrayError"),
    "codec.zarr": (json_zarr(codecs=[{"name": "pickle"}]), "NotAnArrayError"),
    "text.png": (lambda path: _write(path, b"GIF89a" + bytes(99)), "begins like none"),
}


def test_lies_are_refused(tmp_path: Path) -> None:
    """Objects, bombs, absurd shapes, links and programs: each its error, or the honest part."""
    import re

    folder = tmp_path / "bad"
    folder.mkdir()
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["a"] = np.ones((3, 3))
    for name, (write, _) in LIES.items():
        write(folder / name)
    found = outcomes(folder)
    wrong = {
        name: found[name] for name, (_, what) in LIES.items() if not re.search(what, found[name])
    }
    assert not wrong


def test_a_folder_that_holds_itself_is_opened_once(tmp_path: Path) -> None:
    """A folder is not searched below; a link to itself is a folder like others."""
    folder = tmp_path / "bad" / "images"
    folder.mkdir(parents=True)
    buffer = io.BytesIO()
    np.save(buffer, np.ones((3, 3)))
    (folder / "a.npy").write_bytes(buffer.getvalue())
    (folder / "again").symlink_to(folder)
    (folder / "loop.npy").symlink_to(folder / "loop.npy")
    assert "no file was found" in outcomes(tmp_path / "bad")["images"]
    (folder / "loop.npy").unlink()
    assert outcomes(tmp_path / "bad") == {"images": "read"}
