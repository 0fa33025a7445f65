"""Reinforcement learning of a policy from its own episodes."""
