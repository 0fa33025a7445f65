"""Qwen2.5-VL on this machine, with our own decoder."""
