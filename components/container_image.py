"""The container image that every task runs in."""

# Set by the release.
IMAGE = "ghcr.io/fovea-mlops/fovea:0.1.0"
