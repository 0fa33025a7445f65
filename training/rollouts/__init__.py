"""Rollouts of a policy in training, many at a time, and the token-by-token requests they are made of."""
