"""Evaluate one labelled picture: the agent, simulated clicks on the segmenter alone, and a box from the truth.

The picture is embedded once for all of them. The result is a row of JSON values; figures over rows are in
training.evaluation.figures.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from ibis_agent.actions import Box, Click, Prompt
from ibis_agent.mask.masks import dice, encode_rle, iou
from ibis_agent.policy.contract import Policy
from ibis_agent.record.steps import click_to_json
from ibis_agent.run.episode import Limits
from ibis_agent.run.run import Run
from ibis_agent.run.settings import Settings
from ibis_agent.scan.picture import Picture
from ibis_agent.segmenter.contract import Embedding, PictureSegmenter, Prediction, Segmenter
from ibis_agent.segmenter.framed import framed

from training.common.pictures import Shown
from training.common.placing import points_at
from training.evaluation.box import box_of, predict_box
from training.evaluation.sources import Pictures
from training.trajectories.clicks import simulate

CLICKS = 5
Row = dict[str, Any]


@dataclass(frozen=True)
class Measures:
    """The settings of an evaluation that a row depends on.

    Attributes:
        questions: number of present structures asked for per picture; None for all.
        seed: of the choice of structures and wordings.
        limits: of an episode.
    """

    questions: int | None
    seed: int
    limits: Limits


class OnePicture(PictureSegmenter):
    """A segmenter with the embedding of one picture already computed. Records the time of its predictions."""

    def __init__(self, segmenter: Segmenter, picture: Picture) -> None:
        self.identity = segmenter.identity
        self._segmenter, self._rgb = framed(segmenter, picture.frame), picture.rgb
        self.frame = picture.frame  # so that a run does not crop to it again
        begun = time.perf_counter()
        self.embedding = self._segmenter.embed(picture.rgb)
        self.embedded = time.perf_counter() - begun
        self.spent: list[float] = []

    def embed(self, rgb: np.ndarray) -> Embedding:
        return self.embedding if rgb is self._rgb else self._segmenter.embed(rgb)

    def predict(
        self, embedding: Embedding, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Prediction:
        begun = time.perf_counter()
        found = self._segmenter.predict(embedding, clicks, previous_logits)
        self.spent.append(time.perf_counter() - begun)
        return found


def measure(
    pictures: Pictures, index: int, policy: Policy | None, segmenter: Segmenter, how: Measures
) -> Row:
    """The row of one labelled picture; depends only on its `index`, not on what was evaluated before.

    "prompted" has an entry for each structure shown, "asked" one for each question (none without a policy).
    Raises InputError for data or a question that cannot be used, and ModelError.
    """
    shown = pictures.show(index)
    view = OnePicture(segmenter, shown.picture) if shown.truths or policy is not None else None
    row: Row = {"index": index, "name": shown.key, "prompted": [], "asked": []}
    if view is None:
        return row
    row["embed_seconds"] = view.embedded
    for structure, truth in shown.truths.items():
        row["prompted"].append({"structure": structure, **prompted(segmenter, view, shown, truth)})
    if policy is not None:
        for structure, wording in questions(pictures, index, shown, how):
            row["asked"].append(ask(shown, structure, wording, policy, view, how.limits))
    return row


def questions(pictures: Pictures, index: int, shown: Shown, how: Measures) -> list[tuple[str, str]]:
    """(structure, wording) of some or all present structures and of one absent structure."""
    rng = np.random.default_rng([how.seed, 11, index])
    wanted = list(shown.truths)
    if how.questions is not None and wanted:
        wanted = [str(each) for each in rng.permutation(wanted)[: how.questions]]
    if shown.absent:
        wanted.append(str(rng.choice(shown.absent)))
    return [(each, pictures.wording(each, rng)) for each in wanted]


def prompted(segmenter: Segmenter, view: OnePicture, shown: Shown, truth: np.ndarray) -> Row:
    """IoU, DSC and seconds of the segmenter after 1 to 5 simulated clicks, and with a box.

    Clicking stops at a perfect mask.
    """
    view.spent.clear()
    steps = simulate(view, shown.picture.rgb, truth, 1.01, CLICKS, embedding=view.embedding)
    clicks = [
        {"iou": step.iou, "dsc": dice(step.mask, truth), "seconds": sum(view.spent[: n + 1])}
        for n, step in enumerate(steps)
    ]
    begun = time.perf_counter()
    inside = truth if view.frame is None else view.frame.crop(truth)
    mask = np.zeros_like(inside)
    if inside.any():
        mask, _ = predict_box(segmenter, view.embedding, box_of(inside))
    spent = time.perf_counter() - begun
    mask = mask if view.frame is None else view.frame.paste(mask)
    box = {"iou": iou(mask, truth), "dsc": dice(mask, truth), "seconds": spent}
    return {"clicks": clicks, "box": box}


def ask(shown: Shown, structure: str, wording: str, policy: Policy, view: OnePicture, limits: Limits) -> Row:
    """The agent's run for one question. The structure is absent if `shown.truths` does not have it.

    "clicks" includes boxes; "hit" is a first click on the structure, or a first box around it.
    """
    begun = time.perf_counter()
    episode = Run.on_picture(shown.picture, wording, policy, cast("Segmenter", view), Settings(limits))
    episode.run()
    spent = time.perf_counter() - begun
    truth = shown.truths.get(structure)
    clicks = [step.action for step in episode.steps if isinstance(step.action, Prompt)]
    found = episode.mask()
    return {
        "structure": structure,
        "question": wording,
        "present": truth is not None,
        "iou": iou(found, truth) if truth is not None else float(not found.any()),
        "dsc": dice(found, truth) if truth is not None else float(not found.any()),
        "clicks": len(clicks),
        "hit": truth is not None and bool(clicks) and clicks[0].positive and points_at(clicks[0], truth),
        "said_absent": episode.answer is not None and not clicks,
        "unreadable": episode.status == "paused",
        "seconds": spent,
        "answer": episode.answer or "",
        "reason": episode.reason,
        "mask_rle": encode_rle(found),
        "steps": [_step(step, truth) for step in episode.steps],
    }


def _step(step: Any, truth: np.ndarray | None) -> Row:
    """See prompt_of."""
    prompt = step.action if isinstance(step.action, Prompt) else None
    return {
        "thinking": step.thinking,
        "click": None if prompt is None else list(click_to_json(prompt).values()),
        "iou": None if truth is None else iou(step.mask, truth),
    }


def prompt_of(step: Row) -> Prompt | None:
    """The prompt of a step's "click": [x, y, positive], or [x0, y0, x1, y1] for a box; None for termination."""
    values = step["click"]
    return None if values is None else Box(*values) if len(values) == 4 else Click(*values)
