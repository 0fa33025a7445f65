"""Formatting of texts and numbers in the panel."""

from __future__ import annotations

import html
import re

MISSING = "Required packages are not installed. See the top of the panel."
STEP_FIRST = "Press Step first"
_TAGS = re.compile(r"<\s{0,4}/?\s{0,4}(?:think|action|answer)\s{0,4}>", re.IGNORECASE)
_ACTION = re.compile(r"<\s{0,4}action\s{0,4}>.*", re.IGNORECASE | re.DOTALL)
_SLICES = re.compile(r"slices? (?:of the \w+ \()?\d+(?:(?: to |, | and )\d+)*")
_BEGUN_TAG = re.compile(r"<[^<>]{0,12}$")


def readable(reply: str) -> str:
    """The text of a reply, or of its beginning, without tags and without the click."""
    return _BEGUN_TAG.sub("", _TAGS.sub("", _ACTION.sub("", reply))).strip()


def countedFromOne(words: str) -> str:
    """The agent's text with slice numbers from 1, as in Slicer's views; the agent counts from 0."""
    return _SLICES.sub(lambda found: re.sub(r"\d+", lambda n: str(int(n[0]) + 1), found[0]), words)


def thoughtOf(step: dict) -> str:
    """The text of a step: the policy's thinking, or who acted."""
    if step["by"] == "person":
        if isEnd(step):
            return "You accepted the mask."
        return "Your box." if step["action"]["kind"] == "box" else "Your click."
    said = (step["thinking"].strip(), countedFromOne(step.get("words", "")))
    return "\n".join(filter(None, said)) or "(no text)"


def isEnd(step: dict) -> bool:
    return step["action"]["kind"] in ("terminate", "end")


def actionOf(step: dict) -> str:
    """The action of a step, in one or two words."""
    if isEnd(step):
        return "Finished"
    if step["action"]["kind"] == "box":
        return "Box"
    if step["action"]["kind"] != "click":
        return "Propagated"
    return "Include" if step["action"]["positive"] else "Exclude"


def measureOf(step: dict, before: dict | None, volume: bool) -> str:
    """The size of the mask after a step and, in a second line, how it has changed.

    In mL for a run over a volume, otherwise in mm², or in pixels if their size is unknown. Empty if there is no mask
    yet, for example after a look at a slice.
    """
    if volume:
        key, digits = "ml", 1
    else:
        key, digits = ("area_px" if step["area_mm2"] is None else "area_mm2"), 0
    value, earlier = step[key], before[key] if before else 0
    if not value and not earlier:
        return ""
    unit = " px" if key == "area_px" else ""
    change = round(value - earlier, digits)
    if not change:
        return f"{number(value, digits)}{unit}"
    return f"{number(value, digits)}{unit}\n{'+' if change > 0 else '−'}{number(abs(change), digits)}"


def timeLeft(seconds: float) -> str:
    """The remaining time, rounded."""
    if seconds < 60:
        return f"about {max(1, round(seconds))} s left"
    return f"about {round(seconds / 60)} min left"


def secondsOf(step: dict) -> str:
    seconds = step["seconds"].get("total")
    return "" if seconds is None else f", {seconds:.1f} s"


def number(value: float, digits: int = 0) -> str:
    """With a narrow space as the thousands separator."""
    return f"{value:,.{digits}f}".replace(",", "\u202f")


def gigabytes(value: float) -> str:
    return f"{value / 1e9:.1f} GB"


def plain(text: str) -> str:
    """Any text as a tooltip: a reply of the policy must not be interpreted as rich text."""
    return f"<p>{html.escape(text)}</p>"
