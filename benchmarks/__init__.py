"""Timings that the project promises, as ratios measured in one process: ``python -m benchmarks``."""
