"""Plans: what to take, in what order and at what cost, as pure values."""
