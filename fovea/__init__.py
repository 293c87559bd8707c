"""Fovea: fine-tune Phi-3-Vision on product pictures and deploy the result."""

__version__ = "0.1.0"
