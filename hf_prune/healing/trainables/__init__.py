"""What healing may train, one choice a file; see `registries.py`."""
