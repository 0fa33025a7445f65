"""Records of runs: write, read, replay, and show them as a page."""
