"""Something fitted stands in for what goes."""

from hf_prune.method import Method

METHODS: tuple[Method, ...] = ()
