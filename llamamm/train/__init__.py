"""Training: settings, the loop, checkpoints that resume bit for bit, and the same under torchrun. Notebook 10."""
