"""A run on this machine: its state, its S3 server, its processes and its log."""
