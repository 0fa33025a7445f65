"""Training of the demo policy and segmenter."""
