"""What both ops of the set know."""

CALLED: set[str] = set()
