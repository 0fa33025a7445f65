"""Supervised fine-tuning of a policy on trajectories."""
