"""The model behind the protocols: where it comes from, its batches, and the pictures it is asked about."""
