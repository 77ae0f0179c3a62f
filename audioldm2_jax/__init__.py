"""AudioLDM 2 in JAX: every stage trainable, the weights readable both ways with PyTorch."""
