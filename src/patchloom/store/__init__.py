"""Patch stores: Zarr v3 with one patch a chunk, a Parquet manifest and statistics.

Knows rows, not why they were chosen: neither Dask nor the planner is imported here.
"""
