"""IBIS agent: ask a question about a scan and watch an agent answer it, click by click.

Importing this package is cheap and needs no torch. The main path: scan → picture → policy and segmenter → run →
record.
"""

from __future__ import annotations

__version__ = "0.1.0"
