"""Fixtures of tests elsewhere that slicing needs too."""

from ..test_transformers4 import older

__all__ = ["older"]
