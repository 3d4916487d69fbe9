"""Known cheats as candidates that the judge must reject, and honest twins that it must pass."""
