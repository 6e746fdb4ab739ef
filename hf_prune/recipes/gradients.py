"""Chosen by gradients, weights, or what tasks and coalitions of layers tell."""

from hf_prune.method import Method

METHODS: tuple[Method, ...] = ()
