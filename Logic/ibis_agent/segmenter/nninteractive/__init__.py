"""nnInteractive on a server: a click becomes a mask in three dimensions at once."""
