"""The fault matrix: one row of docs/faults.md a test, with real processes and a real store.

Each row ends byte for byte as the undisturbed run, or with an error that names the object, the
patches and the way out, after which the same call completes. Those that take longer are `slow`.
"""
