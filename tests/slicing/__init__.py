"""Tests of slicing."""
