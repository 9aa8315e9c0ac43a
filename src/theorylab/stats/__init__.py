"""Intervals, fits and rank correlations beyond the mean interval of core."""
