"""The training side: in which order patches are visited, and how they become batches."""
