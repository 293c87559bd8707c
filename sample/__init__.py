"""The sample catalogue and the sample model for a first run."""
