"""Words and numbers as the panel shows them."""

from __future__ import annotations

import html
import re

_TAGS = re.compile(r"<\s{0,4}/?\s{0,4}(?:think|action|answer)\s{0,4}>", re.IGNORECASE)
_BEGUN_TAG = re.compile(r"<[^<>]{0,12}$")


def readable(reply: str) -> str:
    """A reply, or the beginning of one, without its tags."""
    return _BEGUN_TAG.sub("", _TAGS.sub("", reply)).strip()


def thoughtOf(step: dict) -> str:
    """What a step says: the policy's thinking, or who acted."""
    if step["by"] == "person":
        return "You accepted the mask." if isEnd(step) else "Placed by you."
    return step["thinking"].strip() or "(no words)"


def isEnd(step: dict) -> bool:
    return step["action"]["kind"] == "terminate"


def actionOf(step: dict) -> str:
    """What a step did, in one or two words."""
    if isEnd(step):
        return "Finished"
    return "Include" if step["action"]["positive"] else "Exclude"


def areaOf(step: dict) -> str:
    """The mask's area in mm², or in pixels where nobody knows their size."""
    area = step["area_mm2"]
    return f"{step['area_px']} px" if area is None else number(area)


def changeOf(step: dict, before: dict | None) -> str:
    """How the area has changed since the step before."""
    key = "area_px" if step["area_mm2"] is None else "area_mm2"
    change = step[key] - (before[key] if before else 0)
    if abs(change) < 0.5:
        return "="
    return f"{'+' if change > 0 else '−'}{number(abs(change))}"


def secondsOf(step: dict) -> str:
    seconds = step["seconds"].get("total")
    return "" if seconds is None else f"{seconds:.1f}"


def number(value: float) -> str:
    """With a narrow space between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")


def gigabytes(value: float) -> str:
    return f"{value / 1e9:.1f} GB"


def plain(text: str) -> str:
    """Any text as a tool tip: a reply of the policy must not be taken for rich text."""
    return f"<p>{html.escape(text)}</p>"
