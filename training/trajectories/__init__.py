"""Trajectories for training: simulated clicks with reasoning."""
