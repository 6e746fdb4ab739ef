"""Comparisons of methods on equal terms: one model, the same text, the same amount, the same healing."""
