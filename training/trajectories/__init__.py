"""Trajectories to learn from: simulated clicks with reasoning."""
