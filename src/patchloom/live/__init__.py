"""Training straight from the sources of a plan, without a second copy of the pixels."""
