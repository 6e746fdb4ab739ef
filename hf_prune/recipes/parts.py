"""Attention or MLP goes, the block stays."""

from hf_prune.method import Method

METHODS: tuple[Method, ...] = ()
