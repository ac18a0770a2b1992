"""What reads and writes: surveys, the worker's functions, the graph and its execution."""

# Dask's configuration has our defaults as soon as anything here is imported.
from patchloom.run import settings as _settings

__all__: list[str] = []
del _settings
