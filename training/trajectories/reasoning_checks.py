"""What a teacher is asked for one turn, and whether its answer can be used.

The teacher sees what the policy sees, with a ring where the click will be, or with the box; it is never given
coordinates, so that it has none to repeat. An answer that tells what a policy cannot know, or argues for another step
than the one taken, is refused with the reason.
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

VERSION = 2  # of the texts below; answers to another one are asked for anew
SIDE = 768  # pixels of the longer side of the picture that is sent
LONGEST, SHORTEST = 700, 20

SYSTEM = (
    "You help to train an assistant that outlines structures in medical pictures with positive and negative "
    "points. For one turn you are shown what it sees and which step it takes. Put into words why a careful "
    "radiologist would take that step: what is visible, what the green area covers or misses, which border or "
    "neighbour matters.\n"
    "Write one to three sentences in the first person and the present tense, as if the step were your own "
    "idea. Use words for places, no figures of any kind. Speak only of what the picture shows: not of the "
    "ring, not of being told anything, not of how good the mask was measured to be.\n"
    'Answer with one JSON object and nothing else: {"thinking": "...", "step": "positive"}, where step is '
    "positive, negative or terminate, whichever fits your words."
)
_STEPS = {
    "positive": "It places a positive point at the yellow ring, to add what lies there.",
    "negative": "It places a negative point at the yellow ring, to take out what is green there.",
    "box": 'It draws the yellow box around what it takes for the structure; your step is then "box".',
    "terminate": "It ends: the green area is good enough.",
    "stop": "It ends: the green area is not exact, but further points no longer improve it.",
    "absent": "It ends without a point: what is asked for is not in the picture.",
}
_SLIPS = {
    "beside": "The point before this one missed the structure",
    "neighbour": "The point before this one went to another structure",
    "sign": "The point before this one had the wrong sign",
    "repeat": "The point before this one only repeated an earlier one",
}
_TOLD = re.compile(
    r"ground[- ]truth|gold standard|reference (?:mask|segmentation|standard|outline)|annotat|"
    r"\b(?:true|correct|target|expert|given|provided) (?:mask|outline|segmentation|step|action|label)|"
    r"\biou\b|\bdice\b|intersection over|\bjaccard\b|\byellow\b|\bring\b|\bmarker\b|\bcircle[ds]?\b|"
    r"\b(?:was|am|are|were|been) (?:told|given|instructed|shown)\b|\bcoordinates?\b|\bpixels?\b|<[^>]{0,40}>",
    re.IGNORECASE,
)
# Levels of the spine and the like (L2, T12) are names; a digit by itself is a figure.
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
    """ "positive", "negative", "box", "terminate", or "absent" for an end because nothing is there."""
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
    """The conversation that asks for one turn's thinking.

    seen: (H, W, 3) uint8, the picture as the policy sees it at that turn, mask and all.
    """
    step = step_of(sample, turn)
    state = "Nothing is segmented yet." if turn["number"] == 1 else "The mask so far is green."
    slip = slip_before(sample, turn)
    if slip is not None:
        state += f" {_SLIPS[slip]}; say how one sees that it was a mistake, and that this step mends it."
    told = "stop" if _falls_short(step, turn) else step
    text = f'The question is: "{sample["question"]}"\n{state} {_STEPS[told]}'
    picture = picture_url(seen, action_of(turn))
    return [
        {"role": "system", "content": SYSTEM},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": picture}},
                {"type": "text", "text": text},
            ],
        },
    ]


def checked(text: str, sample: Mapping[str, Any], turn: Mapping[str, Any]) -> str:
    """The thinking of a teacher's answer. Raises ValueError saying what is wrong with it."""
    begin, end = text.find("{"), text.rfind("}")
    try:
        values = json.loads(text[begin : end + 1]) if 0 <= begin < end else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not isinstance(values.get("thinking"), str):
        raise ValueError("the answer is not a JSON object with a thinking")
    step = step_of(sample, turn)
    expected = "terminate" if step == "absent" else step
    if str(values.get("step", "")).strip().lower() != expected:
        raise ValueError(f"the answer argues for another step than {expected}")
    thinking = " ".join(values["thinking"].split())
    if not SHORTEST <= len(thinking) <= LONGEST:
        raise ValueError(f"the thinking has {len(thinking)} characters, not {SHORTEST} to {LONGEST}")
    told = _TOLD.search(thinking)
    if told:
        raise ValueError(f'the thinking tells what a policy cannot know: "{told.group()}"')
    if _FIGURE.search(thinking):
        raise ValueError("the thinking holds figures")
    against = _AGAINST[expected].search(thinking)
    if against:
        raise ValueError(f'the thinking contradicts the step: "{against.group()}"')
    if step in ("positive", "box", "terminate") and _NOT_THERE.search(thinking):
        raise ValueError("the thinking says that what is there is not")
    if _falls_short(step, turn) and _FLAWLESS.search(thinking):
        raise ValueError("the thinking praises a mask that is not a good one")
    if step == "absent" and _COVERED.search(thinking):
        raise ValueError("the thinking sees a mask where there is none")
    action = action_of(turn)
    if isinstance(action, Click):
        _check_places(thinking, action.x, action.y)
    elif isinstance(action, Box):
        _check_places(thinking, (action.x0 + action.x1) / 2, (action.y0 + action.y1) / 2)
    return thinking


def picture_url(rgb: np.ndarray, action: Action) -> str:
    """The picture as a data URL, its longer side SIDE pixels, with a ring around a click, or with the box."""
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
    """(in, out): about how many tokens one turn costs. A picture counts one token for 28 × 28 pixels."""
    scale = SIDE / max(height, width) / 28
    return int(height * scale + 1) * int(width * scale + 1) + len(SYSTEM) // 4 + 90, 110


def _falls_short(step: str, turn: Mapping[str, Any]) -> bool:
    """Whether the turn ends on a mask that must not be called a good one."""
    return step == "terminate" and float(turn["iou_before"]) < WELL


def _check_places(thinking: str, x: float, y: float) -> None:
    """Words for the place in the picture must not point to its other side."""
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
                raise ValueError(f'the thinking points elsewhere than the step: "{found.group()}"')
