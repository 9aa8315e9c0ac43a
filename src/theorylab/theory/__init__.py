"""Closed-form predictions, one file a topic: no training, no autograd of a network, no instrument."""
