"""The `fovea` command, with one module for each subcommand."""
