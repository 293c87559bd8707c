"""The `fovea` command: a module for each subcommand."""
