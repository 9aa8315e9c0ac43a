"""Sept 3 and 8: what first-order theory promises, and what it cannot explain."""
