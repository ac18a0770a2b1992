"""Make the bucket of the smoke job and put the demo's image there: ``python prepare.py``.

The store and its keys come from the environment: ``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``.
"""

from __future__ import annotations

from importlib.resources import as_file, files

import fsspec

BUCKET = "smoke"
IMAGE = "cardiomyocytes.ome.zarr"


def main() -> None:
    """Make the bucket, unless it is there, and copy the image."""
    store = fsspec.filesystem("s3")
    if not store.exists(BUCKET):
        store.mkdir(BUCKET)
    with as_file(files("patchloom") / "demo" / IMAGE) as image:
        store.put(str(image), f"{BUCKET}/{IMAGE}", recursive=True)
    print(f"{len(store.find(f'{BUCKET}/{IMAGE}'))} objects in s3://{BUCKET}/{IMAGE}")


if __name__ == "__main__":
    main()
