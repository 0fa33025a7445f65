"""The panel, one section of it a file, with its keys and its words."""
