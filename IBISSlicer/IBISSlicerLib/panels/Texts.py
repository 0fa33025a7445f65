"""Words and numbers as the panel shows them."""

from __future__ import annotations

import html
import re

MISSING = "Something is missing; see the top of the panel."
_TAGS = re.compile(r"<\s{0,4}/?\s{0,4}(?:think|action|answer)\s{0,4}>", re.IGNORECASE)
_ACTION = re.compile(r"<\s{0,4}action\s{0,4}>.*", re.IGNORECASE | re.DOTALL)
_SLICES = re.compile(r"slices? \d+(?: to \d+)?")
_BEGUN_TAG = re.compile(r"<[^<>]{0,12}$")


def readable(reply: str) -> str:
    """What a reply, or the beginning of one, says in words: without its tags, and without the click, which is shown."""
    return _BEGUN_TAG.sub("", _TAGS.sub("", _ACTION.sub("", reply))).strip()


def countedFromOne(words: str) -> str:
    """The agent's words with slices counted as Slicer's views count them; the agent counts voxels, from 0."""
    return _SLICES.sub(lambda found: re.sub(r"\d+", lambda n: str(int(n[0]) + 1), found[0]), words)


def thoughtOf(step: dict) -> str:
    """What a step says: the policy's thinking, or who acted."""
    if step["by"] == "person":
        return "You accepted the mask." if isEnd(step) else "Placed by you."
    said = (step["thinking"].strip(), countedFromOne(step.get("words", "")))
    return "\n".join(filter(None, said)) or "(no words)"


def isEnd(step: dict) -> bool:
    return step["action"]["kind"] in ("terminate", "end")


def actionOf(step: dict) -> str:
    """What a step did, in one or two words."""
    if isEnd(step):
        return "Finished"
    if step["action"]["kind"] != "click":
        return "Followed"
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


def volumeOf(step: dict) -> str:
    """The volume of the mask in mL, for a step of a volume's run."""
    return f"{step['ml']:.1f}"


def volumeChangeOf(step: dict, before: dict | None) -> str:
    """How that has changed since the step before."""
    change = step["ml"] - (before["ml"] if before else 0.0)
    if abs(change) < 0.05:
        return "="
    return f"{'+' if change > 0 else '−'}{abs(change):.1f}"


def millilitres(value: float) -> str:
    return f"{value:.1f} mL"


def timeLeft(seconds: float) -> str:
    """Roughly, as people say it."""
    if seconds < 60:
        return f"about {max(1, round(seconds))} s left"
    return f"about {round(seconds / 60)} min left"


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
