"""The demo: the whole walk on a small real image that ships with patchloom."""
