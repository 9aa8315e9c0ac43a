"""Reference networks and objectives, one class of model a file."""
