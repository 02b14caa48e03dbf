"""What else is a model? The cached sampler of the prior, and the sharp decoder."""
