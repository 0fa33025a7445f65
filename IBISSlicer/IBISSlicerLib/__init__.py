"""The parts of IBISSlicer that use Qt or MRML; IBISSlicer.py connects them."""
