"""Measures: one file a family; most are observers of the one pass (see `hf_prune.observing`)."""
