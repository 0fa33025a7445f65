"""Records of runs: written, read, replayed, and shown as a page."""
