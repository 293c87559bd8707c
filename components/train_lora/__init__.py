"""Trains a LoRA adapter on a prepared dataset."""
