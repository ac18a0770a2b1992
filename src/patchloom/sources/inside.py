"""Inside: a path in a container, after ``::`` in a URL."""

from __future__ import annotations

from patchloom.errors import SourceError
from patchloom.location import CHAINED, Location

__all__ = ["split_inside"]


def split_inside(url: str) -> tuple[str, str | None]:
    """A URL, and the path inside what stands there.

    What follows the last ``::`` is a path inside, unless it is a link of one of fsspec's chains: a
    URL with a protocol of its own, or what follows a protocol that lies over another URL
    (``zip``, ``simplecache``, ...).

    Parameters
    ----------
    url
        A path or URL, of one container or of several (a glob).

    Returns
    -------
    tuple of str and (str or None)
        The URL of the container; the path in it without slashes at its ends, None if there is none.

    Raises
    ------
    SourceError
        If the path inside is empty or leads out of the container.

    Examples
    --------
    >>> split_inside("s3://bucket/a06.h5::raw/channel0")
    ('s3://bucket/a06.h5', 'raw/channel0')
    >>> split_inside("zip://a06.zarr::s3://bucket/all.zip")
    ('zip://a06.zarr::s3://bucket/all.zip', None)
    >>> split_inside("zip://a06.zarr::all.zip::labels")
    ('zip://a06.zarr::all.zip', 'labels')
    """
    head, mark, tail = url.rpartition("::")
    if not mark or "://" in tail or head.rpartition("::")[2].partition("://")[0] in CHAINED:
        return url, None
    inside = tail.strip("/")
    if not head or not inside or {"..", "."} & {*inside.replace("\\", "/").split("/")}:
        raise SourceError(
            "a URL with '::' is that of a container, '::' and the path of an array inside it, got "
            f"{Location(url).shown if '://' in url else url!r}; write for example a06.zarr::raw"
        )
    return head, inside
