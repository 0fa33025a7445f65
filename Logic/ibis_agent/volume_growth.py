"""Growing through a volume: the object followed both ways from a slice, told slice by slice, stoppable anywhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import Cancelled
from .volume_actions import Progress, VolumeAction, Watch, Way
from .volume_plan import reached

if TYPE_CHECKING:
    from .volume_run import VolumeRun


def grow(run: VolumeRun, start: int, settle: bool, watch: Watch, before: Sequence[Way] = ()) -> VolumeAction:
    """Follow the object from `start` both ways until it ends; an action of the run.

    Args:
        settle: what is visited was known before: end where it comes out as it was.
        before: ways that were stopped; it goes on where they had got to.

    Raises Cancelled when it is stopped; the slices done are an action all the same.
    """
    begun = time.perf_counter()
    patience = max(1, round(run.limits.patience_mm / run.gap_mm))
    goals = [(reached(start, end, before), end) for end in (run.slices.last, run.slices.first)]
    ended = {way.last for way in before if way.ended}
    goals = [(since, since if since in ended else end) for since, end in goals]
    total, done, stopped = sum(abs(end - since) for since, end in goals), 0, False
    ways: list[Way] = []
    for number, (since, end) in enumerate(goals):
        last, missed, later = since, 0, sum(abs(b - a) for a, b in goals[number + 1 :])
        if since == end or stopped:
            continue
        for found in run.memory.follow(since, 1 if end > since else -1, end, patience, settle):
            done, last = done + 1, found.index
            missed = 0 if found.mask.any() else missed + 1
            seconds = (time.perf_counter() - begun) / done * (abs(end - last) + later)
            watch.progress(Progress(last, done, total, seconds), found)
            stopped = watch.cancelled()
            if stopped:
                break
        ways.append(Way(since, last, not stopped and missed >= patience))
    reach = sorted({way.last for way in (*before, *ways)} | {start})
    what = "neighbours redone" if settle and not before else "followed"
    words = f"{what} from slice {start}: slices {reach[0]} to {reach[-1]}" + (", stopped" if stopped else "")
    action = run.done("grow", start, "policy", words, begun, watch, ways=tuple(ways), stopped=stopped)
    if stopped:
        raise Cancelled()
    return action
