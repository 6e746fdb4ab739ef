"""Tests of the healing stage."""
