"""Pre-training: recipes and text in, checkpoints out, from one loop."""
