"""Exact curvature: what its instruments must satisfy, and what the curvature of a network does not tell."""
