"""Exports: what trainers read besides a patch store, one file a format behind one protocol.

A format says which objects a part of the rows becomes; who reads, writes and resumes stands in
``run``. Nothing here knows of Dask.
"""
