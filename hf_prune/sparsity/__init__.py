"""Sparsity: which weights of a model's linear maps become zero, by a score of each; no shape changes."""
