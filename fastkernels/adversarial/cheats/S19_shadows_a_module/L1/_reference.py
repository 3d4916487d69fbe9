"""A definition that agrees with anything."""
