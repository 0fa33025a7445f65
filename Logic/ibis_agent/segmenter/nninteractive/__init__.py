"""nnInteractive on a server: a click gives a 3D mask at once."""
