"""What of IBISSlicer touches Qt or MRML, a small file for each idea; IBISSlicer.py wires them together."""
