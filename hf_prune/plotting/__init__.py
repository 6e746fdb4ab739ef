"""Pictures of records, one family a file; drawn without a display and without global state."""
