"""Chosen without measuring."""

from hf_prune.method import Method

METHODS: tuple[Method, ...] = ()
