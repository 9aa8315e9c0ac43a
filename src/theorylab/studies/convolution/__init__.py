"""Oct 6: why architecture matters before any training trick."""
