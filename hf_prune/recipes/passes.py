"""Chosen by what one pass of text through the blocks shows."""

from hf_prune.method import Method

METHODS: tuple[Method, ...] = ()
