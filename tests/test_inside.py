"""Inside: what follows ``::`` is a path in a container, or a link of one of fsspec's chains."""

from __future__ import annotations

import fsspec.core
import pytest

from patchloom.errors import SourceError
from patchloom.sources.inside import split_inside

URLS = ["a.h5", "data", "zarr", "/data/a.zarr", "s3://bucket/a.h5", "data/*.h5", "https://h/a.h5"]
CHAINS = [
    "zip://a.zarr::s3://bucket/all.zip",
    "zip://a.zarr::all.zip",
    "zip://::/data/all.zip",
    "zip::all.zip",
    "simplecache::s3://bucket/a.h5",
    "simplecache::zip://a.zarr::s3://bucket/all.zip",
    "filecache::data/a.h5",
    "reference://::https://host/refs.json",
]


@pytest.mark.parametrize("url", [*URLS, *CHAINS])
def test_a_url_without_a_path_inside_stays_as_it_is(url: str) -> None:
    """Also a chain of fsspec's."""
    assert split_inside(url) == (url, None)


@pytest.mark.parametrize("url", [*URLS, *CHAINS])
@pytest.mark.parametrize("inside", ["raw", "raw/channel0", "a b/0", "zip", "file"])
def test_what_follows_the_last_colons_is_inside(url: str, inside: str) -> None:
    """Also after a chain; slashes at its ends are nothing."""
    assert split_inside(f"{url}::{inside}") == (url, inside)
    assert split_inside(f"{url}::/{inside}/") == (url, inside)


@pytest.mark.parametrize("chain", [c for c in CHAINS if "s3://" not in c and "https" not in c])
def test_chains_are_those_that_fsspec_takes_apart(chain: str) -> None:
    """fsspec finds the same last link in what is left of a URL as in the chain alone."""
    before, _ = split_inside(f"{chain}::raw")
    kinds = [[kind for _, kind, _ in fsspec.core._un_chain(url, {})] for url in (before, chain)]
    assert kinds[0] == kinds[1]
    assert len(kinds[0]) > 1


@pytest.mark.parametrize(
    "url", ["a.h5::", "a.h5:://", "::raw", "a.h5::../b", "a.h5::b/../../c", "a.h5::b\\..\\c", "::"]
)
def test_a_path_inside_stays_inside(url: str) -> None:
    """And is one: nothing before or after ``::`` is refused."""
    with pytest.raises(SourceError, match="'::'"):
        split_inside(url)


def test_a_wrong_path_inside_shows_no_secret() -> None:
    """As any URL in an error."""
    with pytest.raises(SourceError) as caught:
        split_inside("s3://key:geheim@bucket/a.h5?token=geheim::..")
    assert "geheim" not in str(caught.value)
