"""Oct 8 and 19: what normalization layers do to optimization."""
