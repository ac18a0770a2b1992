"""What reads and writes: surveys, the worker's functions, the graph and its execution."""
