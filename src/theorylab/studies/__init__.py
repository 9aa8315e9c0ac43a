"""Prediction meets measurement: one study a file, each declaring the claims that it checks."""
