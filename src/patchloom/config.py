"""Job: the whole walk, from images to a patch store, as one YAML file.

A wrong key or value is an error that names the key, the nearest right one and the line.
"""

from __future__ import annotations

import difflib
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from patchloom.configs import Strict, parsed_as
from patchloom.errors import ConfigError
from patchloom.location import Location, StorageOptions
from patchloom.mask_config import (
    AutoMask,
    BoxesMask,
    LabelsMask,
    NodataMask,
    PolygonsMask,
    parse_mask,
)
from patchloom.overrides import Override, overridden
from patchloom.patching.config import PatchingConfig, PointsTable
from patchloom.planning.filters import FilterConfig
from patchloom.planning.quotas import BalanceConfig, QuotaConfig
from patchloom.planning.split_config import SplitConfig
from patchloom.windows import Windows

__all__ = ["MODELINE", "SECRET", "Job", "job_schema", "load_job", "shown_values"]

_SCHEMA = "https://raw.githubusercontent.com/patchloom/patchloom/main/docs/job.schema.json"
MODELINE = f"# yaml-language-server: $schema={_SCHEMA}"
"""The line of a job file by which editors find its schema."""

Options = Annotated[dict[str, Any], AfterValidator(StorageOptions)]
Scalar = str | int | float | bool
_Kind = (
    str
    | InstanceOf[LabelsMask]
    | InstanceOf[PolygonsMask]
    | InstanceOf[BoxesMask]
    | InstanceOf[AutoMask]
    | InstanceOf[NodataMask]
)
Whole = Annotated[int, Field(strict=True)]
_Nodata = Literal["nan"] | Annotated[float, Field(strict=True)]
AtLeastOne = Annotated[int, Field(strict=True, ge=1)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Percent = Annotated[float, Field(strict=True, ge=0, le=100)]
_Channel = Whole | str
_Taken = Whole | str | list[Whole]
_Between = float | Annotated[list[float | None], Field(min_length=2, max_length=2)]

SECRET = ("storage_options", "output_options")
"""Keys whose values are never repeated in a message."""

_TEXT = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")

_INT = "tag:yaml.org,2002:int"

_NUMBER = "float_type"

_PLAIN = {
    "a valid dictionary or object to extract fields from": "a mapping",
    "a valid dictionary": "a mapping",
    "a valid string": "text",
    "a valid list": "a list",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    " after validation": "",
}
"""Pydantic's words for Python programmers, in words for people who write YAML."""

_Path = tuple[str | int, ...]
_Place = tuple[int, str]
"""Where something is said: a number that places are in order by, and what to call it."""


def _kinds(given: Any) -> Any:
    """Masks with those that are made of something as models of their kinds."""
    try:
        found = parse_mask(given)
        if found is not None:
            return found
        if isinstance(given, list):
            return [parse_mask(item) or item for item in given]
        if isinstance(given, dict):
            return {key: parse_mask(item) or item for key, item in given.items()}
    except ConfigError as error:
        raise PydanticCustomError("mask", "{text}", {"text": str(error)}) from None
    return given


class _Part(Strict):
    """Part of an array that stands somewhere."""

    source: str | list[str | None] | dict[str, str | None] = Field(alias="from")
    """Where it stands; given like a role."""
    channels: _Channel | list[_Channel] | None = None
    """Its channels to take, by number or name, in this order."""
    isel: dict[str, _Taken] | None = None
    """What is taken along its axes, in pixels."""
    resample: Literal["nearest"] | None = None
    """Whether it is brought to the pixels of its image."""


def _parts(given: Any) -> Any:
    """Roles with those that are parts of something as models."""
    if isinstance(given, Mapping) and "from" in given:
        try:
            return parsed_as(_Part, "part of an array", given)
        except ConfigError as error:
            raise PydanticCustomError("mask", "{text}", {"text": str(error)}) from None
    if isinstance(given, list):
        return [_parts(item) for item in given]
    if isinstance(given, dict):
        return {key: _parts(item) for key, item in given.items()}
    return given


def _plain(given: Any) -> Any:
    """The same as the verbs of Python take it."""
    if isinstance(given, _Part):
        return given.model_dump(by_alias=True, exclude_none=True)
    if isinstance(given, list):
        return [_plain(item) for item in given]
    return {k: _plain(v) for k, v in given.items()} if isinstance(given, dict) else given


_APart = InstanceOf[_Part]
_Masks = Annotated[
    _Kind | _APart | list[_Kind | _APart | None] | dict[str, _Kind | _APart | None],
    AfterValidator(_plain),
    BeforeValidator(_kinds),
    BeforeValidator(_parts),
]
PerImage = Annotated[
    str | _APart | list[str | _APart | None] | dict[str, str | _APart | None],
    AfterValidator(_plain),
    BeforeValidator(_parts),
]


class Job(BaseModel):
    """What to take from which images, and where to put it: the arguments of the Python verbs.

    Relative paths are relative to the current directory, as in Python.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    images: str | Annotated[list[str], Field(min_length=1)]
    """Path, URL or glob of the images, or a list of these."""
    patching: PatchingConfig
    """How patches are laid out: docs/strategies.md draws them by `name`."""
    output: str
    """Path or URL of the patch store to write."""

    mask: _Masks | None = None
    """Where patches may lie: a URL, a pattern with `{stem}`, the name of an OME-Zarr label group or
    what it is made of (docs/masks.md); one of these for all, per image in a list, or per image id
    in a mapping."""
    labels: PerImage | None = None
    """Label images to cut along; given like `mask`."""
    target: PerImage | None = None
    """Target images to cut along; given like `mask`."""
    targets: dict[Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")], PerImage] | None = None
    """Further targets by name, each given like `target`; `targets_NAME` in the store."""
    weights: PerImage | None = None
    """What each pixel counts in a loss, to cut along; given like `target`."""
    context: list[Annotated[int, Field(strict=True, ge=1)]] = []
    """Coarser levels, by number, of which as many pixels are cut around the same centre:
    `context_N` in the store; docs/context.md."""
    axes: str | None = None
    """The dimensions as stored, one letter each, for example `CZYX`; by default what the metadata
    say."""
    level: str | Whole = 0
    """The pyramid level to open: its number (0 is the finest) or its path."""
    array: str | None = None
    """The path of the array or image inside each container, as after `::` in a URL."""
    sample: str | dict[str, Scalar | dict[str, Scalar]] | list[dict[str, Scalar]] | None = None
    """Axes whose every index is a sample of its own (text), or metadata columns of the images."""
    ids: list[str] | None = None
    """One name an image; by default its stem."""
    nodata: _Nodata | list[_Nodata | None] | dict[str, _Nodata | None] | None = None
    """The value of pixels that tell nothing (a number or `nan`), which statistics leave out; one of
    these for all, per image in a list, or per image id in a mapping. By default what the metadata
    say."""
    stack: str | None = None
    """Makes one image of files that are its planes: an axis (`z`, `c`, `t`, `sample`) along which
    they lie in order, or a pattern of their names such as `img_z{z}_c{c}.png`."""
    channels: _Channel | list[_Channel] | None = None
    """The channels to take, by number or name, in this order; by default all."""
    isel: dict[str, _Taken | dict[str, _Taken] | None] | list[dict[str, _Taken] | None] | None = (
        None
    )
    """What is taken along other axes, in pixels: an index (the axis goes), text like `"10:50"` or a
    list of indices; by axis for all images, for each in a list, or per image id in a mapping."""
    sel: (
        dict[str, _Between | dict[str, _Between] | None] | list[dict[str, _Between] | None] | None
    ) = None
    """The same in physical units: a pair of coordinates, or one (the axis goes); docs/axes.md."""
    time: Windows | None = None
    """Several frames as the channels of one sample; docs/axes.md."""
    storage_options: Options = Field(default_factory=StorageOptions, exclude=True)
    """Options of the images' file system (fsspec); never shown, saved or written to a store."""

    min_coverage: Share = 0.0
    """Share of a patch that its mask must cover, from 0 to 1."""
    min_pixels: Annotated[int, Field(strict=True, ge=0)] = 0
    """Area of a patch that its mask must cover, in pixels of the image; asked besides."""
    edge: Literal["drop", "shift", "pad", "shrink"] = "drop"
    """What happens at the border of an image."""
    filters: list[FilterConfig] = []
    """What the pixels of a patch must show; docs/filters.md has all by `name`."""
    scores: list[str | dict[str, Any]] = []
    """Numbers that become columns of the manifest, besides those that `filters` look at."""
    split: SplitConfig | None = None
    """How patches are dealt out to training and validation; by default all are `train`."""
    balance: BalanceConfig | None = None
    """Classes of the labels in given proportions, met exactly."""
    quota: QuotaConfig | None = None
    """At most so many patches, of all, of each image or of each group, spread evenly."""
    survey: str | None = None
    """A folder that keeps what masks, labels and pixels show, so that planning again with other
    thresholds reads only what is new."""
    pad_mode: Literal["constant", "edge", "reflect", "symmetric"] = "constant"
    """What patches show beyond the image, as NumPy names it; constant is 0."""
    align: Literal["none", "chunk", "shard", "auto"] = "none"
    """How patches lie to what is stored: as they are placed, inside chunks, inside shards, or where
    the fewest bytes are decoded."""
    order: Literal["spatial", "grouped", "shuffled"] = "spatial"
    """Order of the patches in the store."""
    seed: Whole = 0
    """Fixes every random draw."""
    rows_per_shard: AtLeastOne | None = None
    """Patches of one output shard; by default near 32 MiB, or fewer that fit into the memory."""
    window: AtLeastOne | None = None
    """Groups of chunks that are mixed under `shuffled`; by default as many as memory admits."""
    group_by: str | None = None
    """What `grouped` goes by: `image_id`, `split` or a column."""
    memory: str | AtLeastOne | None = None
    """Bytes that one task may use, as a number or text such as `512 MiB`; by default what Dask's
    configuration says under `patchloom.memory`, 1 GiB unless somebody changed it."""

    output_options: Options | None = Field(default=None, exclude=True)
    """Options of the output's file system; by default `storage_options`."""
    percentiles: list[Percent] = [1.0, 99.0]
    """Percentiles of the statistics, in percent."""
    normalize: Literal["percentile", "mean-std", "min-max", "none"] | None = None
    """Whether to scale pixels when writing; by default the source's pixels are stored."""
    per: str = "image"
    """What has numbers of its own when pixels are scaled: `image`, `channel` (all images
    together), `all` (all channels too), or a metadata column."""
    normalize_targets: Literal["percentile", "mean-std", "min-max", "none"] | None = None
    """Whether to scale targets when writing, by their own grey levels."""
    over: Literal["patches", "mask", "image"] = "patches"
    """What the statistics are of: pixels of kept patches, under the masks, or of whole images."""
    each: Literal["once", "taken"] = "once"
    """How often a pixel counts that lies in several patches: once, or as often as it is taken."""
    exact: Annotated[bool, Field(strict=True)] = False
    """Whether percentiles of types above 16 bits are exact too; what counts is then read again."""
    method: Literal[
        "linear",
        "lower",
        "higher",
        "nearest",
        "midpoint",
        "inverted_cdf",
        "averaged_inverted_cdf",
        "interpolated_inverted_cdf",
        "hazen",
        "weibull",
        "median_unbiased",
        "normal_unbiased",
    ] = "linear"
    """How a percentile between two values is told, as NumPy names it."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do about a chunk that cannot be read."""
    codec: Literal["blosc-zstd", "blosc-lz4", "zstd", "none"] | None = None
    """How patches are compressed; by default `blosc-zstd`."""

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        # A URL may carry a user and a password.
        for name, value in super().__repr_args__():
            yield name, shown_values(value)


def load_job(path: str | os.PathLike[str], overrides: Sequence[Override] = ()) -> Job:
    r"""Read a job file.

    Parameters
    ----------
    path
        A YAML file, or its URL, which is reached with ambient credentials; see `Job` for its keys.
    overrides
        Values that stand in for those of the file; later ones go before earlier ones.

    Returns
    -------
    Job

    Raises
    ------
    ConfigError
        If there is no such file, it is no YAML mapping, or a key or value in it is wrong: one
        line a mistake, with the line of the file, or the override, and the nearest right key.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
    ...     _ = file.write("images: a.zarr\noutput: patches.zarr\n")
    ...     _ = file.write("patching: {name: random, patch_size: [64, 64]}\n")
    >>> load_job(file.name).patching.patch_size
    [64, 64]
    """
    data, shown = _file(os.fspath(path))
    node, document = _parsed(data, shown)
    places = _places(node, shown)
    for number, override in enumerate(overrides, len(data)):
        document = overridden(document, [override])
        own = override.path
        places = {key: place for key, place in places.items() if key[: len(own)] != own}
        places[own] = (number, override.source)
    try:
        return Job.model_validate(document)
    except ValidationError as error:
        found = sorted(_mistakes(error, document, places))
    # Raised outside the handler: pydantic's own message would repeat values of secret keys.
    raise ConfigError("\n".join(f"{place}: {text}" for (_, place), text in found))


def job_schema() -> dict[str, Any]:
    """The JSON schema of a job file (draft 2020-12), as published in ``docs/job.schema.json``."""
    found = Job.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": _SCHEMA, **found}


def shown_values(value: Any) -> Any:
    """A value of a job with its URLs as they may be shown."""
    if isinstance(value, str) and "://" in value:
        return Location(value).shown
    if isinstance(value, list):
        return [shown_values(item) for item in value]
    if isinstance(value, dict) and not isinstance(value, StorageOptions):
        return {key: shown_values(item) for key, item in value.items()}
    return value


def _file(path: str) -> tuple[bytes, str]:
    """What a job file holds, and what to call it."""
    if "://" in path:
        location = Location(path)
        data = location.read()
        if data is None:
            raise ConfigError(
                f"a job is a YAML file that can be read, but nothing stands at {location.shown!r}; "
                "check the URL"
            )
        return data, location.shown
    try:
        return Path(path).read_bytes(), path
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"a job is a YAML file that can be read, but {path!r} is not: "
            f"{getattr(error, 'strerror', None) or error}; check the path"
        ) from None


def _parsed(data: bytes, shown: str) -> tuple[yaml.Node, dict[Any, Any]]:
    """The nodes of a YAML file, which know their lines, and its value."""
    try:
        loader = yaml.SafeLoader(data)
        try:
            node = loader.get_single_node()
            if not isinstance(node, yaml.MappingNode):
                kind = "sequence" if isinstance(node, yaml.SequenceNode) else "single value"
                raise ConfigError(
                    "a job is a mapping of keys such as 'images', 'patching' and 'output', but "
                    f"{shown!r} holds {'nothing' if node is None else f'a {kind}'}"
                )
            _check_keys(node, shown)
            document: dict[Any, Any] = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        # Not str(error): it repeats the line, which may hold a credential.
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f", line {mark.line + 1}"
        raise ConfigError(f"{shown}{where}: not YAML: {error.problem}") from None
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise ConfigError(f"{shown}: not YAML: {reason}") from None
    return node, document


def _nodes(root: yaml.Node) -> Iterator[tuple[_Path, yaml.MappingNode | yaml.SequenceNode]]:
    """All mappings and sequences with their paths, each once: aliases may repeat or loop."""
    waiting: list[tuple[_Path, yaml.Node]] = [((), root)]
    seen = set()
    while waiting:
        path, node = waiting.pop()
        if id(node) in seen or not isinstance(node, yaml.MappingNode | yaml.SequenceNode):
            continue
        seen.add(id(node))
        yield path, node
        if isinstance(node, yaml.MappingNode):
            waiting += [((*path, str(key.value)), value) for key, value in node.value]
        else:
            waiting += [((*path, k), value) for k, value in enumerate(node.value)]


def _check_keys(root: yaml.Node, shown: str) -> None:
    """Refuse keys that are no text, or stand twice."""
    for path, node in _nodes(root):
        if not isinstance(node, yaml.MappingNode):
            continue
        # Classes are numbers.
        allowed = (*_TEXT, _INT) if path[:1] == ("balance",) else _TEXT
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag not in allowed:
                got = f"got {key.value!r}; quote it" if isinstance(key, yaml.ScalarNode) else ""
                raise ConfigError(f"{shown}, line {line}: a key is text, {got or 'not a list'}")
            if key.value in first:
                raise ConfigError(
                    f"{shown}, line {line}: the key {key.value!r} stands twice; it was already "
                    f"given in line {first[key.value]}"
                )
            first[key.value] = line


def _places(root: yaml.Node, shown: str) -> dict[_Path, _Place]:
    """Line of each key and item, counted from 1."""
    found: dict[_Path, int] = {(): root.start_mark.line + 1}
    for path, node in _nodes(root):
        if isinstance(node, yaml.MappingNode):
            for key, _ in node.value:
                found[(*path, str(key.value))] = key.start_mark.line + 1
        else:
            for k, item in enumerate(node.value):
                found[(*path, k)] = item.start_mark.line + 1
    return {path: (line, f"{shown}, line {line}") for path, line in found.items()}


def _mistakes(
    error: ValidationError, document: Mapping[Any, Any], places: Mapping[_Path, _Place]
) -> set[tuple[_Place, str]]:
    """One sentence for each key that is wrong, with its place."""
    found: set[tuple[_Place, str]] = set()
    missing: list[tuple[_Path, str]] = []
    meant: set[tuple[_Path, str]] = set()
    wrong: dict[_Path, list[tuple[str, str]]] = {}
    for item in error.errors(include_url=False, include_context=False):
        kind, path = item["type"], _in_document(item["loc"], document)
        if kind == "missing":
            missing.append((path, str(item["loc"][-1])))
        elif kind == "union_tag_not_found":
            missing.append((path, "name"))
        elif kind == "union_tag_invalid":
            names = " or ".join(repr(name) for name in _strategies())
            wrong.setdefault((*path, "name"), []).append((kind, f"Input should be {names}"))
        elif kind == "extra_forbidden":
            near, text = _nearest(path, item["loc"])
            meant.add((path[:-1], near))
            found.add((_place(path, places), text))
        else:
            wrong.setdefault(path, []).append((kind, item["msg"]))
    for path, key in missing:
        # A misspelled key that means this one has been named already.
        if (path, key) not in meant:
            inside = f" under {_dotted(path)}" if path else ""
            found.add((_place(path, places), f"the key {key!r} is missing{inside}"))
    for path, said in wrong.items():
        # Where several types are allowed, the branch that came closest explains best.
        if not any(len(other) > len(path) and other[: len(path)] == path for other in wrong):
            found.add((_place(path, places), _wrong(path, said, _value(path, document))))
    return found


def _wrong(path: _Path, said: Sequence[tuple[str, str]], value: Any) -> str:
    """What is wrong about a value."""
    if all(kind == "mask" for kind, _ in said):
        return f"{_dotted(path)} is wrong: {said[0][1]}"
    said = [item for item in said if item[0] != "is_instance_of"]
    closest = [item for item in said if not item[0].endswith("_type")]
    # Where a name is no choice, a number may still be one.
    told = [item[1] for item in said if item in (closest or said) or item[0] == _NUMBER]
    expected = [text.removeprefix("Input should be ") for text in told]
    for long, short in _PLAIN.items():
        expected = [text.replace(long, short) for text in expected]
    verb = "should be" if all(text.startswith("Input should be ") for text in told) else "is wrong:"
    text = f"{_dotted(path)} {verb} {' or '.join(dict.fromkeys(expected))}"
    if {*path} & {*SECRET}:
        return text
    return f"{text}, got {_brief(value)}{_nearest_value(value, path)}"


def _in_document(loc: Sequence[str | int], document: Any) -> _Path:
    """The part of pydantic's path that the file has; the rest names branches of unions."""
    path: list[str | int] = []
    for step in loc:
        keys: Any = range(len(document)) if isinstance(document, list) else document
        if isinstance(document, Mapping | list) and step in keys:
            document = _value((step,), document)
            path.append(step)
    return tuple(path)


def _value(path: _Path, document: Any) -> Any:
    for step in path:
        document = document[step]
    return document


def _place(path: _Path, places: Mapping[_Path, _Place]) -> _Place:
    while path not in places:
        path = path[:-1]
    return places[path]


def _strategies() -> dict[str, type[BaseModel]]:
    """The models of `PatchingConfig` by their names."""
    models: tuple[type[BaseModel], ...] = typing.get_args(typing.get_args(PatchingConfig)[0])
    return {str(model.model_fields["name"].default): model for model in models}


def _nearest(path: _Path, loc: Sequence[str | int]) -> tuple[str, str]:
    """The right key that an unknown one comes closest to, and what to say."""
    key = str(loc[-1])
    strategies = _strategies()
    nested = _models_at(path[:-1])
    if nested and path[:1] != ("patching",):
        known = dict.fromkeys((name for m in nested for name in m.model_fields), "")
        inside = f" in {_dotted(path[:-1])}"
    elif path[:1] == ("patching",):
        fields = PointsTable.model_fields if "points" in path[1:-1] else None
        known = dict.fromkeys(fields or strategies[str(loc[1])].model_fields, "")
        inside = f" in {_dotted(path[:-1])}" if fields else f" in patching {str(loc[1])!r}"
    else:
        # A key of the strategy often stands one level too high.
        known = {name: " under 'patching'" for m in strategies.values() for name in m.model_fields}
        known |= dict.fromkeys(Job.model_fields, "")
        inside = ""
    near = difflib.get_close_matches(key, known, 1)
    if near:
        return near[0], f"unknown key {key!r}{inside}; did you mean {near[0]!r}{known[near[0]]}?"
    own = sorted(name for name, place in known.items() if not place)
    return "", f"unknown key {key!r}{inside}; the keys are {', '.join(own)}"


def _models_at(path: _Path) -> list[type[BaseModel]]:
    """The models that may stand at a path of a job."""
    if not path:
        return []
    field = Job.model_fields.get(str(path[0]))
    return [] if field is None else list(_models_in(field.annotation))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models_in(part)


def _nearest_value(value: Any, path: _Path) -> str:
    """The choice that a misspelled value comes closest to."""
    if path == ("patching", "name"):
        choices = list(_strategies())
    else:
        field = Job.model_fields.get(str(path[0]))
        choices = [] if field is None or len(path) > 1 else _choices(field.annotation)
    near = difflib.get_close_matches(str(value), choices, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _choices(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is Literal:
        return [str(choice) for choice in typing.get_args(annotation)]
    return [choice for part in typing.get_args(annotation) for choice in _choices(part)]


def _dotted(path: _Path) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return repr(text)


def _brief(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    text = repr(shown_values(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
