"""Deployment: the model is served, asked about pictures it never saw, and only then made known."""
