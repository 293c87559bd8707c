"""Train a LoRA adapter on a prepared dataset."""
