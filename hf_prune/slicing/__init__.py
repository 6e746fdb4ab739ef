"""Slicing: a narrower residual stream in a basis that keeps what matters most."""
