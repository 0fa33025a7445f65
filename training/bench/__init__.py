"""Benchmarks: where the seconds go."""
