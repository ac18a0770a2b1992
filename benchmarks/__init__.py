"""Benchmarks of patchloom against a floor: the least work that does the same job.

Run ``python -m benchmarks --help`` from the root of the repository; ``README.md`` in this folder
says what each number means.
"""
