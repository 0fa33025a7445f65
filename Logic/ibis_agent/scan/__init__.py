"""Scans: read, checked, placed in the patient, cut into pictures."""
