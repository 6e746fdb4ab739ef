"""What is measured of original, pruned and healed model."""
