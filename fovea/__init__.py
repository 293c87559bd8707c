"""Fovea: fine-tune Phi-3-Vision on pictures of products, and put the result into production."""

__version__ = "0.1.0"
