"""A run on this machine: its state folder, S3 server, processes and log."""
