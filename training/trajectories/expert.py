"""A simulated expert's run for one question: the published click simulation, optionally with boxes and mistakes.

The segmenter is in the loop: every mask is its prediction. The result is the turns as a policy should write them.
Pictures and structures are chosen in common.pictures; files are written in generate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from ibis_agent.actions import Box, Click, Prompt, Terminate
from ibis_agent.mask.masks import box_around, iou

from training.trajectories import templates
from training.trajectories.clicks import ClickStep, next_click, simulate
from training.trajectories.turns import turn_row
from training.trajectories.wrong_clicks import KINDS, wrong_click

_AROUND = 3  # radius in pixels around an earlier click where no other is made
_TRIES, _HARM = 3, 0.05  # attempts at a mistake, and the IoU it must cost to count as one
_FURTHEST = 20  # greatest error of a box's edge in pixels, as in the training of SAM
_When = Literal["never", "first", "later"]


@dataclass(frozen=True)
class Recipe:
    """The settings of the expert. Defaults are the published generator's where it has them.

    Attributes:
        iou_threshold: the expert stops when the mask has this IoU.
        max_steps: most clicks and boxes.
        unfinished: for runs that never reach the threshold. "best": end after the click with the best mask if that
            has `least_iou`, otherwise leave the run out; "keep": keep all clicks without termination, as published;
            "drop": leave the run out.
        patience: stop after this many clicks without a better mask; 0: never.
        repeats: allow a click on an earlier one of the same sign (as published). The agent ends an episode at the
            third, so by default another point is clicked.
        decimals: of coordinates; small policies learn fewer decimals faster.
        mistake_share: share of questions with one wrong click and its recovery.
        mistake_kinds: which kinds (see wrong_clicks).
        style: of the thinking, see templates.
        box_share: share of questions that start with a box around the structure, followed by clicks.
        box_later: of the others, the share in which a first click that leaves a mask below `least_iou` is followed
            by a box, which starts again.
        box_jitter: standard deviation of the error of a box's edges, as a share of its side.
    """

    iou_threshold: float = 0.8
    max_steps: int = 20
    unfinished: str = "best"
    least_iou: float = 0.5
    patience: int = 3
    repeats: bool = False
    decimals: int = 4
    mistake_share: float = 0.0
    mistake_kinds: tuple[str, ...] = KINDS
    style: str = "varied"
    box_share: float = 0.0
    box_later: float = 0.0
    box_jitter: float = 0.05


@dataclass(frozen=True, eq=False)
class Run:
    """An expert's run for one question.

    Attributes:
        steps: every click or box and its result.
        ended: whether the expert then terminates.
        slip: (index of the step that is a deliberate mistake, its kind), or None.
    """

    steps: tuple[ClickStep, ...]
    ended: bool
    slip: tuple[int, str] | None = None


@dataclass(frozen=True)
class LeftOut:
    """A question left out, and why."""

    reason: str


def work(
    segmenter: Any,
    embedding: Any,
    rgb: np.ndarray,
    truth: np.ndarray,
    others: Mapping[str, np.ndarray],
    recipe: Recipe,
    rng: np.random.Generator,
) -> Run | LeftOut:
    """Prompt for the structure `truth` until the mask is good enough; LeftOut if it never is.

    Args:
        embedding, rgb: of the picture, (H, W, 3) uint8.
        truth: (H, W) bool; others: the same for the picture's other structures.

    `rng` decides whether there is a mistake, when, and of which kind. Its time is one of the steps that the expert
    needs without a mistake, so that `mistake_share` is met.
    """
    box = _box_of_a_run(recipe, rng)
    run = _finished(_clicked(segmenter, embedding, rgb, truth, others, recipe, rng, box), recipe)
    if isinstance(run, LeftOut) or rng.random() >= recipe.mistake_share:
        return run
    kinds = [str(kind) for kind in rng.permutation(list(recipe.mistake_kinds))]
    at = int(rng.integers(len(run.steps)))
    for kind in kinds:
        when = max(at, 1) if kind == "repeat" else at
        for _ in range(_TRIES if kind == "beside" else 1):  # this kind often does no harm
            tried = _clicked(segmenter, embedding, rgb, truth, others, recipe, rng, box, (when, kind))
            slipped = _finished(tried, recipe) if _hurts(tried, run) else None
            if isinstance(slipped, Run):
                return slipped
    return run


def _hurts(tried: Run, clean: Run) -> bool:
    """Whether the mistake left a worse mask than the right click. A repetition always counts."""
    if tried.slip is None:
        return False
    at, kind = tried.slip
    right = clean.steps[min(at, len(clean.steps) - 1)]
    return kind == "repeat" or tried.steps[at].iou < right.iou - _HARM


def turns_of(
    run: Run, structure: str, truth: np.ndarray, recipe: Recipe, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """The turns for trajectories.jsonl; with an empty truth, one turn that answers "not there"."""
    present = bool(truth.any())
    turns: list[dict[str, Any]] = []
    mask, overlap, after = np.zeros_like(truth), 0.0 if present else 1.0, None
    for number, step in enumerate(run.steps):
        kind = run.slip[1] if run.slip is not None and run.slip[0] == number else None
        meant = templates.intended(step.click, kind)
        moment = templates.Moment(structure, meant, number == 0, present, overlap, after)
        text = templates.thinking(moment, recipe.style, rng)
        turns.append(turn_row(number + 1, mask, overlap, step.click, text, step.iou, kind))
        mask, overlap, after = step.mask, step.iou, kind
    if run.ended:
        end = Terminate(templates.answer(structure, present, recipe.style, rng, overlap))
        moment = templates.Moment(structure, end, not run.steps, present, overlap, after)
        text = templates.thinking(moment, recipe.style, rng)
        turns.append(turn_row(len(turns) + 1, mask, overlap, end, text, overlap, None))
    return turns


def _clicked(
    segmenter: Any,
    embedding: Any,
    rgb: np.ndarray,
    truth: np.ndarray,
    others: Mapping[str, np.ndarray],
    recipe: Recipe,
    rng: np.random.Generator,
    box: _When,
    slip: tuple[int, str] | None = None,
) -> Run:
    """All clicks and boxes of a run. The mistake `slip` (index, kind) is not always possible: see Run.slip."""
    clicks: list[Prompt] = []
    best: list[float] = []
    slipped: list[tuple[int, str]] = []

    def choose(mask: np.ndarray | None, truth: np.ndarray) -> Prompt | None:
        best.append(0.0 if mask is None else iou(mask, truth))
        settled = slip is None or len(clicks) > slip[0] + 1
        last, before = best[-recipe.patience :], best[: -recipe.patience]
        if settled and recipe.patience and before and max(last) <= max(before):
            return None
        if slip is not None and len(clicks) == slip[0] and not slipped:
            wrong = wrong_click(slip[1], mask, truth, others, clicks, rng)
            if wrong is not None:
                slipped.append(slip)
                clicks.append(_rounded(wrong, recipe.decimals) if isinstance(wrong, Click) else wrong)
                return clicks[-1]
        poor = len(clicks) == 1 and best[-1] < recipe.least_iou
        if truth.any() and ((box == "first" and not clicks) or (box == "later" and poor)):
            clicks.append(drawn_box(truth, recipe, rng))
            return clicks[-1]
        click = _next(mask, truth, [] if recipe.repeats else clicks)
        if click is not None:
            wanted = truth if click.positive else ~truth
            open_still = wanted if mask is None else wanted & (mask != truth)
            clicks.append(_rounded(click, recipe.decimals, open_still))
            return clicks[-1]
        return None

    limits = recipe.iou_threshold, recipe.max_steps
    steps = simulate(segmenter, rgb, truth, *limits, embedding=embedding, choose=choose)
    return Run(tuple(steps), False, slipped[0] if slipped else None)


def _box_of_a_run(recipe: Recipe, rng: np.random.Generator) -> _When:
    """When a run has a box. Does not use `rng` if boxes are off, so that runs without them are reproduced."""
    if not recipe.box_share and not recipe.box_later:
        return "never"
    if rng.random() < recipe.box_share:
        return "first"
    return "later" if rng.random() < recipe.box_later else "never"


def drawn_box(truth: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> Box:
    """A box around a non-empty (H, W) bool structure with errors of `box_jitter`, as if drawn by hand."""
    own, unit = box_around(truth), 10.0**-recipe.decimals
    assert own is not None
    edges = {}
    for low, high, pixels in (("x0", "x1", truth.shape[1]), ("y0", "y1", truth.shape[0])):
        ends = np.array([getattr(own, low), getattr(own, high)])
        side = ends[1] - ends[0]
        most = min(_FURTHEST / pixels, 0.4 * side)  # the box stays open
        ends += np.clip(rng.normal(0, 1, 2) * recipe.box_jitter * side, -most, most)
        first = min(max(round(float(ends[0]), recipe.decimals), 0.0), 1.0 - unit)
        last = min(max(round(float(ends[1]), recipe.decimals), first + unit), 1.0)
        edges[low], edges[high] = first, round(last, recipe.decimals)
    return Box(**edges)


def _finished(run: Run, recipe: Recipe) -> Run | LeftOut:
    """The run with its termination, by the recipe's rule for unfinished ones."""
    steps = run.steps
    if not steps:
        return LeftOut("there is nothing to click on")
    if steps[-1].iou >= recipe.iou_threshold:
        return Run(steps, True, run.slip)
    if recipe.unfinished == "keep":
        return Run(steps, False, run.slip)
    best = max(range(len(steps)), key=lambda n: steps[n].iou)
    reached = f"the best of {len(steps)} clicks reached IoU {steps[best].iou:.2f}"
    if recipe.unfinished == "drop":
        return LeftOut(f"{reached}, below --iou-threshold {recipe.iou_threshold:g}")
    # Only steps after the mistake count, so that its recovery is kept.
    first = 0 if run.slip is None else run.slip[0] + 1
    if first >= len(steps):
        return LeftOut("no recovery from the mistake")
    best = max(range(first, len(steps)), key=lambda n: steps[n].iou)
    if steps[best].iou < recipe.least_iou:
        return LeftOut(f"{reached}, below --least-iou {recipe.least_iou:g}")
    return Run(steps[: best + 1], True, run.slip)


def _next(mask: np.ndarray | None, truth: np.ndarray, past: list[Prompt]) -> Click | None:
    """The published next click; if that repeats an earlier one of its sign, the next best point."""
    mask = np.zeros_like(truth) if mask is None else mask
    click = next_click(mask, truth)
    while click is not None and any(_same(click, other, truth.shape) for other in past):
        # Treat the surroundings of the click as correct, so that they are not clicked again.
        height, width = truth.shape
        row, column = click.pixel(truth.shape)
        rows, columns = np.ogrid[:height, :width]
        done = (rows - row) ** 2 + (columns - column) ** 2 <= _AROUND**2
        mask = np.where(done, truth, mask)
        click = next_click(mask, truth)
    return click


def _same(a: Click, b: Prompt, shape: tuple[int, ...]) -> bool:
    if not isinstance(b, Click):
        return False
    height, width = shape
    near = abs(a.x - b.x) * width <= 1.5 and abs(a.y - b.y) * height <= 1.5
    return near and a.positive == b.positive


def _rounded(click: Click, decimals: int, region: np.ndarray | None = None) -> Click:
    """The click rounded to `decimals`, still in the (H, W) bool `region`; to four if that is not possible."""
    for places in (decimals, 4):
        unit = 10.0**-places
        best = None
        for dy in (0, -1, 1):
            for dx in (0, -1, 1):
                x = min(max(round(round(click.x, places) + dx * unit, places), 0.0), 1.0 - unit)
                y = min(max(round(round(click.y, places) + dy * unit, places), 0.0), 1.0 - unit)
                if region is None:
                    return Click(x, y, click.positive)
                away = abs(x - click.x) + abs(y - click.y)
                if region[Click(x, y).pixel(region.shape)] and (best is None or away < best[0]):
                    best = (away, x, y)
        if best is not None:
            return Click(best[1], best[2], click.positive)
    return click
