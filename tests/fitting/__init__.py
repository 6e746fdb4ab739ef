"""Tests of surgery that is fitted to the model."""
