"""The container image that every task runs in."""

# Set by the release; `fovea compile --image` puts another in its place, pinned by digest.
IMAGE = "ghcr.io/fovea-mlops/fovea:0.1.0"
