"""Where studies run: local processes, or a cluster."""
