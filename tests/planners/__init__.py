"""Planners: what goes, from scores, from a judge, or from nothing."""
