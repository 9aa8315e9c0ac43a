"""Nov 17: the norms that optimizers descend in, how they fail, and where weight decay leads them."""
