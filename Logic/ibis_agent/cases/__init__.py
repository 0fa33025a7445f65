"""Labelled data: folders and manifests of scans with masks, and checking them."""
