"""Sweeps: quality against what is removed, for several methods and amounts of one model."""
