"""The decision process: what happens between a question and its mask, one action at a time."""
