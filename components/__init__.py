"""The pipeline's steps: a folder for each, and none imports another."""
