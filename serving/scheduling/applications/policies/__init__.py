"""Orders of work, by name."""
