"""Sept 17: which of the many interpolating solutions training picks, and why."""
