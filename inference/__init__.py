"""What does a trained run do with data? It encodes and decodes slices, and draws new ones."""
