"""Doctor: looks at an installation, its places and its workers before a job needs them."""
