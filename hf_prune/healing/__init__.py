"""Healing: what to train, against what loss, with whose loop."""
