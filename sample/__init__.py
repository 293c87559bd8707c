"""The sample catalogue and the sample model: what a first run needs and no machine has."""
