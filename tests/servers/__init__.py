"""Servers the tests talk to: an S3, a Google Cloud Storage and a plain web server.

Each module has one context manager that starts its server on a free loopback port, yields a small
frozen face of it and stops it again, whatever happened in between:

- ``s3.serve_s3()`` yields an ``S3Server``: a Ceph RADOS gateway, or else moto;
- ``gcs.serve_gcs()`` yields a ``GcsServer``: the emulator in ``gcs_emulator.py``;
- ``http.serve_http(folder)`` yields an ``HttpServer``: files of one folder, with ranges.

Nothing here imports s3fs, gcsfs, moto or aiohttp until a server is started.
"""
