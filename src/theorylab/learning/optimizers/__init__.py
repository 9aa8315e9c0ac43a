"""Optimizers as pairs of pure functions, one algorithm a file."""
