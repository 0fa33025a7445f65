"""Procedural abdominal-CT phantoms."""
