"""Tests of sparsity by scores."""
