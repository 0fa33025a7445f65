"""Propagation: the object is followed from a slice in both directions, reported slice by slice, and can be stopped."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Sequence

from ibis_agent.errors import Cancelled
from ibis_agent.run.action import Progress, RunAction, Watch, Way
from ibis_agent.run.plan import reached
from ibis_agent.run.state import RunState

_GIVE_BACK_EVERY = 32  # slices


def grow(
    run: RunState,
    start: int,
    settle: bool,
    watch: Watch,
    before: Sequence[Way] = (),
    what: str = "propagated",
) -> RunAction:
    """Propagate from `start` in both directions until the object ends, as an action of the run.

    Args:
        settle: end early where the new mask equals the known one.
        before: stopped ways to continue.
        what: a verb for the action's description.

    Raises Cancelled when stopped; the slices done so far are still recorded as an action.
    """
    begun = time.perf_counter()
    patience = max(1, round(run.settings.patience_mm / run.gap_mm))
    goals = [_goal(run, start, end, before) for end in _ends(run, start)]
    total, done, stopped = sum(abs(end - since) for since, end in goals), 0, False
    ways: list[Way] = []
    for number, (since, end) in enumerate(goals):
        if since == end or stopped:
            continue
        direction = 1 if end > since else -1
        last, missed = since, run.memory.missed(since, direction)
        later = sum(abs(b - a) for a, b in goals[number + 1 :])
        for found in run.memory.follow(since, direction, end, patience, settle):
            done, last = done + 1, found.index
            missed = 0 if found.mask.any() else missed + 1
            seconds = (time.perf_counter() - begun) / done * (abs(end - last) + later)
            watch.progress(Progress(last, done, total, seconds), found)
            if done % _GIVE_BACK_EVERY == 0:
                give_back_memory()
            stopped = watch.cancelled()
            # If the object has ended here, the slices beyond are still removed.
            if stopped and missed < patience:
                break
        ways.append(Way(since, last, missed >= patience and last != since))
    reach = sorted({way.last for way in (*before, *ways)} | {start})
    words = f"{what} from slice {start}: slices {reach[0]} to {reach[-1]}" + (", stopped" if stopped else "")
    action = run.done("grow", start, "policy", words, begun, watch, ways=tuple(ways), stopped=stopped)
    if stopped:
        raise Cancelled()
    return action


def give_back_memory() -> None:
    """Return freed memory to the system; otherwise glibc keeps about 1 MB per slice."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _ends(run: RunState, start: int) -> tuple[int, int]:
    """The last slices to visit, forwards and backwards.

    From a slice that was started again: up to the nearest slices where looks agree with the present mask.
    """
    first, last = run.slices.first, run.slices.last
    clicked = next((a for a in reversed(run.actions) if a.kind == "click" and a.index == start), None)
    if clicked is None or not clicked.afresh:
        return last, first
    kept = run.agreed()
    ahead = min((n for n in kept if n > start), default=last + 1)
    back = max((n for n in kept if n < start), default=first - 1)
    return ahead - 1, back + 1


def _goal(run: RunState, start: int, end: int, before: Sequence[Way]) -> tuple[int, int]:
    """(slice to continue from, last slice to visit); equal if nothing is left to do."""
    since = reached(start, end, before)
    over = {way.last for way in before if way.ended}
    down = any(way.last < start for way in before)  # the second direction
    if since in over or (down and end > start):
        return since, since
    found = run.found
    while since not in found:  # another propagation found the end before it
        since += 1 if since < start else -1
    return since, end
