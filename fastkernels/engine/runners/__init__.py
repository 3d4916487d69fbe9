"""One runner for each kind of computation."""
