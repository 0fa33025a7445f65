"""Promptable segmenters, and the embeddings of slices that are kept for them; one package a kind."""
