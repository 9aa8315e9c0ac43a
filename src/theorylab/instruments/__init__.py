"""Measurements of a Problem: any PyTorch model, loss and data."""
