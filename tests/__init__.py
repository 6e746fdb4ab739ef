"""The tests of hf_prune."""
