"""Algorithms over any Operator: they see products only."""
