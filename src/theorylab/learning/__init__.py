"""How networks are trained: populations, and the optimizers that drive them."""
