"""The named recipes: one file a kind, each with a tuple `METHODS`."""
