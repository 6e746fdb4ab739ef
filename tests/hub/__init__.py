"""A small Hub on the loopback address, for tests and `make demo`: no network, no account, real clients."""

from .server import LoopbackHub

__all__ = ["LoopbackHub"]
