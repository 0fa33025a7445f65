"""IBIS agent: ask a scan a question and watch the answer being worked out, click by click.

Importing this package is cheap and needs no torch; see `docs` of each module for what lives there.
"""

from __future__ import annotations

__version__ = "0.1.0"
