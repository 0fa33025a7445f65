"""IBIS agent: ask a scan a question and watch the answer being worked out, click by click.

Importing it is cheap and needs no torch. The way through: scan → picture → policy and segmenter → episode →
trajectory; each module's docstring says what lives there.
"""

from __future__ import annotations

__version__ = "0.1.0"
