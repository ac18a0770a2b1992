"""A job file says what the Python verbs say, and a mistake in it is named with its line."""

from __future__ import annotations

import inspect
import json
import pickle
import typing
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import patchloom
from patchloom.config import Job, job_schema, load_job
from patchloom.errors import ConfigError
from patchloom.normalization import NORMALIZATIONS
from patchloom.store.schema import CODECS
from patchloom.summaries import METHODS
from patchloom.summaries.asked import EACH, OVER

ROOT = Path(__file__).parents[1]
GOOD = """\
images: data/*.zarr
patching:
  name: sequential
  patch_size: [64, 64]
output: patches.zarr
"""
RENAMED = {"urls": "images", "url": "output", "plan": None, "images": None, "progress": None}


def write(folder: Path, text: str) -> Path:
    """A job file with some text."""
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(folder: Path, text: str) -> list[str]:
    """What is said about a job file, line by line, without its path."""
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    return [line.removeprefix(f"{path}, ") for line in str(caught.value).splitlines()]


def test_a_job_has_the_defaults_of_the_verbs(tmp_path: Path) -> None:
    """What is not written means what the Python call means by leaving it out."""
    job = load_job(write(tmp_path, GOOD))
    seen = set()
    for verb in (patchloom.open_images, patchloom.plan, patchloom.materialize):
        for name, parameter in inspect.signature(verb).parameters.items():
            key = RENAMED.get(name, name)
            # Resuming is what the command does, checking an option of it; the output's options
            # have a name of their own; functions stand in no file.
            if key in (None, "resume", "verify", "read", "read_kwargs", "extension"):
                continue
            if parameter.default is inspect.Parameter.empty:
                continue
            seen.add(key)
            value = getattr(job, key)
            default = parameter.default
            if key == "storage_options":
                assert value == {}
                assert default is None
            elif isinstance(default, tuple):
                assert tuple(value) == default
            else:
                assert value == default, key
    assert set(Job.model_fields) - seen == {"images", "patching", "output", "output_options"}


def test_choices_are_those_of_the_verbs() -> None:
    """The literals of the model are the constants of the code."""
    fields = Job.model_fields

    def choices(name: str) -> set[Any]:
        found: set[Any] = set()
        parts: list[Any] = [fields[name].annotation]
        while parts:
            part = parts.pop()
            if typing.get_origin(part) is typing.Literal:
                found |= set(get_args(part))
            else:
                parts += get_args(part)
        return found

    assert choices("normalize") == choices("normalize_targets") == set(NORMALIZATIONS)
    assert choices("codec") == set(CODECS)
    assert choices("over") == set(OVER)
    assert choices("each") == set(EACH)
    assert choices("method") == set(METHODS)


def test_every_key_can_be_given(tmp_path: Path) -> None:
    """A job file with all keys loads, and keeps what it says."""
    job = load_job(
        write(
            tmp_path,
            """\
images: [a.zarr, s3://bucket/b.zarr]
mask: {a: m.zarr, b: null}
labels: [l.zarr, null]
target: targets/{stem}.zarr
targets: {edges: {from: e.zarr, channels: [1], resample: nearest}}
weights: "weights/*.zarr"
context: [2]
axes: cyx
level: 1
array: raw
sample: {a: {donor: 1}, b: {donor: 2}}
ids: [a, b]
nodata: {a: nan, b: 0}
stack: z{z}.png
channels: [DAPI, 2]
isel: {a: {t: 0, y: "8:"}, b: {t: [0, 2]}}
sel: {z: [10.0, null]}
time: {window: 2, step: 3}
storage_options: {anon: true, client_kwargs: {region_name: here}}
patching: {name: random, patch_size: [32, 32], n_patches: 10}
min_coverage: 1
min_pixels: 9
edge: shift
pad_mode: edge
align: none
filters: [{name: shannon, threshold: 3.5}, {name: range, score: std, min: 1}]
scores: [focus, {name: mean, channel: 1}]
split: {by: blocks, block_size: 512, guard: 32}
balance: {classes: {0: 1, 3: 2}}
quota: {n_patches: 50, per_image: 30}
survey: survey
order: spatial
group_by: null
seed: 7
rows_per_shard: 16
window: null
memory: 2 GiB
output: out.zarr
output_options: {anon: false}
percentiles: [0.5, 50, 99.5]
normalize: percentile
per: donor
normalize_targets: mean-std
over: image
each: once
exact: true
method: nearest
on_error: skip
codec: zstd
""",
        )
    )
    given_keys = job.model_fields_set
    assert given_keys == set(Job.model_fields)
    assert (job.seed, job.level, job.min_coverage, job.edge) == (7, 1, 1.0, "shift")
    assert job.storage_options["client_kwargs"] == {"region_name": "here"}
    assert pickle.loads(pickle.dumps(job)) == job


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "min_coverag: 0.5\n",
            ["line 6: unknown key 'min_coverag'; did you mean 'min_coverage'?"],
        ),
        (
            "edge: shfit\n",
            ["line 6: 'edge' should be 'drop', 'shift', 'pad' or 'shrink', got 'shfit'"],
        ),
        ("overlap: [1]\n", ["line 6: unknown key 'overlap'; did you mean 'overlaps' under"]),
        ("zzz: 1\n", ["line 6: unknown key 'zzz'; the keys are align, array, axes, balance,"]),
        ("seed: yes\n", ["line 6: 'seed' should be a whole number, got True"]),
        ("percentiles: [1, 101]\n", ["line 6: 'percentiles[1]' should be less than or equal to"]),
        ("memory: 0\n", ["line 6: 'memory' should be greater than or equal to 1, got 0"]),
        ("mask: {a: 5}\n", ["line 6: 'mask.a' should be text, got 5"]),
        ("nodata: zero\n", ["line 6: 'nodata' should be 'nan' or a number, got 'zero'"]),
        ("over: images\n", ["line 6: 'over' should be 'patches', 'mask' or 'image', got 'imag"]),
        (
            "seed: a\nlevell: 1\n",
            ["line 6: 'seed' should be", "line 7: unknown key 'levell'; did you mean 'level'?"],
        ),
        (
            "seed: 1\nedge: pad\nseed: 2\n",
            ["line 8: the key 'seed' stands twice; it was already given in line 6"],
        ),
        ("1: a\n", ["line 6: a key is text, got '1'; quote it"]),
        ("on: a\n", ["line 6: a key is text, got 'on'; quote it"]),
        ("? [a]\n: b\n", ["line 6: a key is text, not a list"]),
        ("mask: [a\n", ["line 7: not YAML: "]),
        ("mask: !!python/name:os.system\n", ["line 6: not YAML: could not determine a const"]),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, said: list[str]) -> None:
    """Key, nearest right one and line, one a line, in the order of the file."""
    found = mistakes(tmp_path, GOOD + text)
    assert len(found) == len(said)
    for line, start in zip(found, said, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{name: sequential, patch_sise: [4, 4]}", "unknown key 'patch_sise' in patching 'sequ"),
        ("{name: sequentail, patch_size: [4, 4]}", "'patching.name' should be 'sequential' or "),
        ("{patch_size: [4, 4]}", "the key 'name' is missing under 'patching'"),
        ("{name: random}", "the key 'patch_size' is missing under 'patching'"),
        ("{name: random, patch_size: [4, 0]}", "'patching.patch_size[1]' should be greater than"),
        ("{name: random, name: random}", "the key 'name' stands twice"),
        ("[4, 4]", "'patching' should be a mapping, got a list of 2"),
        (
            "&p {name: random, patch_size: 4, n_patches: *p}",
            "'patching.n_patches' should be a whole",
        ),
    ],
)
def test_mistakes_in_patching_are_named_too(tmp_path: Path, text: str, said: str) -> None:
    """Nested keys are checked like the others."""
    found = mistakes(tmp_path, f"images: a\noutput: b\n\npatching: {text}\n")
    assert len(found) == 1
    assert found[0].startswith(f"line 4: {said}")


def test_a_misspelled_key_is_not_missing_as_well(tmp_path: Path) -> None:
    """One mistake is said once."""
    found = mistakes(tmp_path, GOOD.replace("images", "image"))
    assert found == ["line 1: unknown key 'image'; did you mean 'images'?"]
    assert mistakes(tmp_path, "images: a\noutput: b\n") == ["line 1: the key 'patching' is missing"]


@pytest.mark.parametrize("text", ["", "- a\n", "hello\n", "# nothing\n"])
def test_a_job_is_a_mapping(tmp_path: Path, text: str) -> None:
    """Anything else is refused by name."""
    with pytest.raises(ConfigError, match=r"a job is a mapping.*job\.yaml"):
        load_job(write(tmp_path, text))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    """So is a folder in its place."""
    with pytest.raises(ConfigError, match=r"nope\.yaml' is not: No such file"):
        load_job(tmp_path / "nope.yaml")
    with pytest.raises(ConfigError, match="can be read"):
        load_job(tmp_path)


@pytest.mark.parametrize("data", [b"images: \xff\xfe\n", b"a: \x07\n", b"[" * 5000, b"a: b\n---\n"])
def test_what_is_no_yaml_is_said(tmp_path: Path, data: bytes) -> None:
    """Bad bytes, control characters, endless nesting and several documents."""
    path = tmp_path / "job.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="not YAML"):
        load_job(path)


@pytest.mark.parametrize(
    "text",
    [
        "storage_options: {key: HUSH}\n",
        "output_options: {key: {inner: HUSH}}\n",
        "mask: s3://me:HUSH@bucket/mask.zarr\n",
        "labels: [null, s3://me:HUSH@bucket/mask.zarr]\n",
    ],
)
def test_secrets_are_never_shown(tmp_path: Path, text: str) -> None:
    """Not by repr, str or dump of a job."""
    job = load_job(write(tmp_path, GOOD + text))
    assert "HUSH" not in repr(job)
    assert "HUSH" not in str(job)
    if "options" in text:
        assert "HUSH" not in str(job.model_dump())
        assert "HUSH" not in job.model_dump_json()


@pytest.mark.parametrize(
    "text",
    [
        "storage_options: HUSH\n",
        "storage_options: [HUSH]\n",
        "storage_options: {key: HUSH\n",
        "storage_options: {key: HUSH, key: HUSH}\n",
        "output_options: {1: HUSH}\n",
        "seed: s3://me:HUSH@bucket\n",
        "storage_options: {key: 'HUSH\n",
    ],
)
def test_secrets_are_never_part_of_a_mistake(tmp_path: Path, text: str) -> None:
    """Messages name keys and lines, not what stands in secret places."""
    assert "HUSH" not in "".join(mistakes(tmp_path, GOOD + text))


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_is_a_job_or_a_named_mistake(tmp_path_factory: Any, text: str) -> None:
    """No file, however odd, ends in anything but a Job or a ConfigError."""
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(GOOD + text, encoding="utf-8")
    try:
        found: object = load_job(path)
    except ConfigError as error:
        found = error
    assert isinstance(found, Job) or "any.yaml" in str(found)


def test_the_published_schema_is_the_models() -> None:
    """``patchloom schema > docs/job.schema.json`` was run after the last change."""
    published = json.loads((ROOT / "docs" / "job.schema.json").read_text("utf-8"))
    assert published == job_schema()


def test_the_schema_describes_every_key() -> None:
    """Editors show what a key means, and refuse unknown ones."""
    schema = job_schema()
    assert schema["additionalProperties"] is False
    for name, key in schema["properties"].items():
        assert key.get("description"), name
    for name, model in schema["$defs"].items():
        assert model["additionalProperties"] is False, name
