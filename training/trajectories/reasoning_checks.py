"""The request to a teacher for one turn, and the checks of its answer.

The teacher sees what the policy sees, plus a ring where the click will be, or the box. It never gets coordinates, so
it cannot repeat them. An answer is refused, with the reason, if it contains what a policy cannot know or argues for
another step than the one taken.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from ibis_agent.actions import Action, Box, Click

from training.trajectories.templates import WELL
from training.trajectories.turns import action_of

VERSION = 3  # of the prompts below; cached answers to other versions are not used
SIDE = 768  # longer side in pixels of the picture sent
LONGEST, SHORTEST = 700, 20

SYSTEM = (
    "You help to train an assistant that segments structures in medical pictures with positive and negative "
    "points. For one turn you are shown what it sees and which step it takes. Explain why a careful "
    "radiologist would take that step: what is visible, what the green area covers or misses, which border or "
    "neighbour matters.\n"
    "Write one to three sentences in the first person and the present tense, as if the step were your own "
    "idea. Describe places in words, without any numbers. Mention only what the picture shows: not the ring, "
    "not that you were told anything, not any measurement of the mask.\n"
    'Answer with one JSON object and nothing else: {"thinking": "...", "step": "positive"}, where step is '
    "positive, negative or terminate, whichever fits your words."
)
_STEPS = {
    "positive": "It places a positive point at the yellow ring, to add what is there.",
    "negative": "It places a negative point at the yellow ring, to remove what is green there.",
    "box": 'It draws the yellow box around what it takes for the structure; step is then "box".',
    "terminate": "It ends: the green area is good enough.",
    "stop": "It ends: the green area is not exact, but further points no longer improve it.",
    "absent": "It ends without a point: the structure is not in the picture.",
}
_SLIPS = {
    "beside": "The previous point missed the structure",
    "neighbour": "The previous point was on another structure",
    "sign": "The previous point had the wrong sign",
    "repeat": "The previous point only repeated an earlier one",
}
_LEAK = re.compile(
    r"ground[- ]truth|gold standard|reference (?:mask|segmentation|standard|outline)|annotat|"
    r"\b(?:true|correct|target|expert|given|provided) (?:mask|outline|segmentation|step|action|label)|"
    r"\biou\b|\bdice\b|intersection over|\bjaccard\b|\byellow\b|\bring\b|\bmarker\b|\bcircle[ds]?\b|"
    r"\b(?:was|am|are|were|been) (?:told|given|instructed|shown)\b|\bcoordinates?\b|\bpixels?\b|<[^>]{0,40}>",
    re.IGNORECASE,
)
# Names such as L2 or T12 are allowed; other digits are not.
_FIGURE = re.compile(r"(?<![A-Za-z])\d")
_END = r"\bterminat|\bstop(?:ping)? here\b|\bi (?:am|'m) done\b|\bno (?:further|more) (?:points?|clicks?)"
_AGAINST = {
    "positive": re.compile(rf"negative (?:point|click)|{_END}", re.IGNORECASE),
    "negative": re.compile(rf"positive (?:point|click)|{_END}", re.IGNORECASE),
    "box": re.compile(rf"(?:positive|negative) (?:point|click)|{_END}", re.IGNORECASE),
    "terminate": re.compile(
        r"(?:positive|negative) (?:point|click)|\b(?:place|add|put|need|needs|set) (?:a|an|one|another|one more) "
        r"(?:point|click)",
        re.IGNORECASE,
    ),
}
_NOT_THERE = re.compile(
    r"\b(?:not|isn't|cannot be|can't be) (?:\w+ )?(?:visible|present|there|seen|found|shown)\b|\babsent\b|"
    r"\b(?:do not|don't) (?:see|find)\b",
    re.IGNORECASE,
)
_COVERED = re.compile(
    r"\b(?:green|mask|segmentation) (?:area )?(?:covers|fits|follows|matches)|well covered", re.IGNORECASE
)
_FLAWLESS = re.compile(
    r"\b(?:well|fully|completely|entirely|exactly) (?:covered|outlined|segmented)\b|"
    r"\b(?:covers|fits|follows|matches)\b[^.]*\b(?:well|exactly|completely|fully)\b",
    re.IGNORECASE,
)
_PLACES = re.compile(
    r"\b(left|right|upper|top|lower|bottom)(?:[- ](?:left|right))?(?:[- ]?hand)? "
    r"(?:side|half|part|edge|corner|third|quadrant)?\s?of the (?:picture|image|slice|frame)",
    re.IGNORECASE,
)


def step_of(sample: Mapping[str, Any], turn: Mapping[str, Any]) -> str:
    """ "positive", "negative", "box", "terminate", or "absent" for terminating without a mask."""
    if turn["kind"] == "box":
        return "box"
    if turn["kind"] == "click":
        return "positive" if turn["positive"] else "negative"
    return "terminate" if sample["target_rle"] else "absent"


def slip_before(sample: Mapping[str, Any], turn: Mapping[str, Any]) -> str | None:
    """The kind of the deliberate mistake that this turn recovers from, or None."""
    before = next((each for each in sample["turns"] if each["number"] == turn["number"] - 1), None)
    return None if before is None else before["mistake"]


def messages_for(
    sample: Mapping[str, Any], turn: Mapping[str, Any], seen: np.ndarray
) -> list[dict[str, Any]]:
    """The messages that ask for the thinking of one turn.

    seen: (H, W, 3) uint8, the picture as the policy sees it at that turn, with the mask.
    """
    step = step_of(sample, turn)
    state = "Nothing is segmented yet." if turn["number"] == 1 else "The mask so far is green."
    slip = slip_before(sample, turn)
    if slip is not None:
        state += (
            f" {_SLIPS[slip]}; say how one can see that it was a mistake, and that this step corrects it."
        )
    shown = "stop" if _falls_short(step, turn) else step
    text = f'The question is: "{sample["question"]}"\n{state} {_STEPS[shown]}'
    picture = picture_url(seen, action_of(turn))
    return [
        {"role": "system", "content": SYSTEM},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": text}],
        },
    ]


def checked(text: str, sample: Mapping[str, Any], turn: Mapping[str, Any]) -> str:
    """The thinking in a teacher's answer. Raises ValueError with the reason if it cannot be used."""
    begin, end = text.find("{"), text.rfind("}")
    try:
        values = json.loads(text[begin : end + 1]) if 0 <= begin < end else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not isinstance(values.get("thinking"), str):
        raise ValueError("the answer is not a JSON object with thinking")
    step = step_of(sample, turn)
    expected = "terminate" if step == "absent" else step
    if str(values.get("step", "")).strip().lower() != expected:
        raise ValueError(f"the answer argues for another step than {expected}")
    thinking = " ".join(values["thinking"].split())
    if not SHORTEST <= len(thinking) <= LONGEST:
        raise ValueError(f"the thinking has {len(thinking)} characters, not {SHORTEST} to {LONGEST}")
    leak = _LEAK.search(thinking)
    if leak:
        raise ValueError(f'the thinking mentions what a policy cannot know: "{leak.group()}"')
    if _FIGURE.search(thinking):
        raise ValueError("the thinking contains numbers")
    against = _AGAINST[expected].search(thinking)
    if against:
        raise ValueError(f'the thinking contradicts the step: "{against.group()}"')
    if step in ("positive", "box", "terminate") and _NOT_THERE.search(thinking):
        raise ValueError("the thinking says that a structure which is present is not")
    if _falls_short(step, turn) and _FLAWLESS.search(thinking):
        raise ValueError("the thinking praises a mask that is not good")
    if step == "absent" and _COVERED.search(thinking):
        raise ValueError("the thinking mentions a mask, but there is none")
    action = action_of(turn)
    place = action.middle if isinstance(action, Box) else action
    if isinstance(place, Click):
        _check_places(thinking, place.x, place.y)
    return thinking


def picture_url(rgb: np.ndarray, action: Action) -> str:
    """A data URL of the (H, W, 3) uint8 picture at SIDE pixels, with a ring around the click, or with the box."""
    from PIL import Image, ImageDraw

    scale = SIDE / max(rgb.shape[:2])
    size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
    image = Image.fromarray(np.ascontiguousarray(rgb)).resize(size, Image.Resampling.BICUBIC)
    if isinstance(action, Click):
        x, y, radius = action.x * size[0], action.y * size[1], SIDE / 50
        ring = (x - radius, y - radius, x + radius, y + radius)
        ImageDraw.Draw(image).ellipse(ring, outline=(255, 220, 0), width=3)
    elif isinstance(action, Box):
        edges = (action.x0 * size[0], action.y0 * size[1], action.x1 * size[0], action.y1 * size[1])
        ImageDraw.Draw(image).rectangle(edges, outline=(255, 220, 0), width=3)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def tokens_of(height: int, width: int) -> tuple[int, int]:
    """(input, output) tokens of one turn, estimated with one token per 28 × 28 pixels of the picture."""
    scale = SIDE / max(height, width) / 28
    return int(height * scale + 1) * int(width * scale + 1) + len(SYSTEM) // 4 + 90, 110


def _falls_short(step: str, turn: Mapping[str, Any]) -> bool:
    """Whether the turn terminates on a mask that must not be called good."""
    return step == "terminate" and float(turn["iou_before"]) < WELL


def _check_places(thinking: str, x: float, y: float) -> None:
    """Raises ValueError if words for a place in the picture contradict (x, y)."""
    for found in _PLACES.finditer(thinking):
        for word in re.findall(r"left|right|upper|top|lower|bottom", found.group().lower()):
            wrong = {
                "left": x > 0.6,
                "right": x < 0.4,
                "upper": y > 0.6,
                "top": y > 0.6,
                "lower": y < 0.4,
                "bottom": y < 0.4,
            }[word]
            if wrong:
                raise ValueError(f'the thinking names another place than the step: "{found.group()}"')
