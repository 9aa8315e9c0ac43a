"""The report card of a user's own model: which instruments, how their results become readings, and what they will cost."""
