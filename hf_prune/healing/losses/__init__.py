"""What healing is to bring down, one loss a file; see `registries.py`."""
