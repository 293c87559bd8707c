"""Deployment: the model is served and verified with held-out pictures, and only then becomes the champion."""
