"""The pipeline steps: a room for each, and no room imports another."""
