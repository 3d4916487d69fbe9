"""Studies of what inputs do to ops whose work depends on them."""
