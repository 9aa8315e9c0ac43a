"""Seeded synthetic tasks, small real data that ships with a dependency, and files of a data folder."""
