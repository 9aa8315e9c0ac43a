"""Sept 10 and 15: why networks that can fit anything still generalize, and what can be certified."""
