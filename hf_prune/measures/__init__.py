"""Measures: one file a family; each is an observer of the one pass (see `hf_prune.runner`)."""
