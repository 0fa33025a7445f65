"""Scans: read them, check them, find their position in the patient, and cut them into pictures."""
