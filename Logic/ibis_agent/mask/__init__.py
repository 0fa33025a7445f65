"""Masks: run lengths, files, and the structures that we know by name."""
