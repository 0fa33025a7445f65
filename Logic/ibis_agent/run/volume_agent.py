"""The agent's part in a volume run: what it does next, one action at a time.

Look for the key slice, work on it turn by turn, grow, look again where it is doubtful, end.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ibis_agent.actions import Click
from ibis_agent.errors import InputError
from ibis_agent.run import second_look, volume_growth
from ibis_agent.run.episode import Step
from ibis_agent.run.volume_actions import Stage, VolumeAction, Watch, Way
from ibis_agent.run.volume_plan import (
    Looks,
    clicks_on,
    grown,
    look_at,
    looks_of,
    unfinished,
    why_nothing,
    worked_out,
)
from ibis_agent.run.volume_slice import episode_on, key_episode

if TYPE_CHECKING:
    from ibis_agent.run.volume_run import VolumeRun

_FOLLOWED = "The object was followed to where it ends."


def stage_of(run: VolumeRun) -> Stage:
    """What `act` would do now."""
    actions, key = run.actions, run.key
    if actions and actions[-1].kind == "end":
        return "end"
    if grown(actions):
        if _to_grow(run):
            return "grow"
        return "review" if run.policy and run.looks < run.limits.looks and run.doubts() else "finish"
    if key is None:
        if run.policy is None:
            return "finish"
        if run.rejected is not None:
            return "look"  # again where it was wrong: what it saw there must not be begun with
        search = _search(run)
        return "look" if search.wanted is not None else "finish" if search.best is None else "work"
    if run.policy is None or worked_out(actions):
        return "grow" if _to_grow(run) else "finish"
    return "work"


def act(run: VolumeRun, watch: Watch) -> VolumeAction | None:
    """Do what comes next. None: the policy was not understood. Raises as VolumeRun.step."""
    stage = stage_of(run)
    if stage == "look":
        return _look(run, watch)
    if stage == "work":
        return _turn(run, watch)
    if stage == "grow":
        start, ways = next(iter(_to_grow(run).items()))
        return volume_growth.grow(run, start, grown(run.actions), watch, ways)
    if stage == "review":
        return second_look.look_again(run, run.doubts()[0], watch)
    if stage == "finish":
        return _finish(run, watch)
    raise InputError(f"the run has ended: {run.reason}", remedy="Add a click, or go back.")


def _to_grow(run: VolumeRun) -> dict[int, tuple[Way, ...]]:
    """See volume_plan.unfinished; from a slice without a mask there is nothing to follow."""
    waiting = unfinished(run.actions).items()
    return {start: ways for start, ways in waiting if ways or run.mask(start).any()}


def _search(run: VolumeRun) -> Looks:
    slices, pixel = run.slices, run.row_mm * run.col_mm
    return looks_of(run.actions, slices.first, slices.last, run.gap_mm, pixel, run.limits.search)


def _look(run: VolumeRun, watch: Watch) -> VolumeAction:
    begun = time.perf_counter()
    index = _search(run).wanted if run.rejected is None else run.rejected.index
    assert index is not None
    step = episode_on(run, index).step(watch.text, watch.cancelled, watch.retry)
    steps = () if step is None else (step,)
    words = look_at(index, steps, run.row_mm * run.col_mm).words
    return run.done("look", index, "policy", words, begun, watch, steps=steps)


def _turn(run: VolumeRun, watch: Watch) -> VolumeAction | None:
    """One turn of the policy on the key slice. The first one was its look there."""
    begun, key = time.perf_counter(), run.key
    if key is None:
        look = _search(run).best
        assert look is not None and look.step is not None
        return _clicked(run, look.index, look.step, "begins where it was seen best", begun, watch)
    episode = key_episode(run)
    if episode.status == "ready":
        step = episode.step(watch.text, watch.cancelled, watch.retry)
        if step is not None and isinstance(step.action, Click):
            return _clicked(run, key, step, "clicked", begun, watch)
        if episode.status == "paused":
            run.pause(episode.reason)
            return None
    last = episode.steps[-1:] if episode.answer is not None else ()
    return run.done("done", key, "policy", episode.reason, begun, watch, steps=last)


def _clicked(run: VolumeRun, index: int, step: Step, words: str, begun: float, watch: Watch) -> VolumeAction:
    assert isinstance(step.action, Click)
    clicks = (*clicks_on(run.actions, index), step.action)
    run.anchor(index, clicks)
    return run.done("click", index, "policy", words, begun, watch, steps=(step,), clicks=clicks)


def _finish(run: VolumeRun, watch: Watch) -> VolumeAction:
    key, begun, words = run.key, time.perf_counter(), _FOLLOWED
    if key is None:
        if run.policy is None:
            raise InputError("there is no policy to act", remedy="Click yourself, or load a policy.")
        words = why_nothing(run.actions)
        key = run.actions[0].index if run.actions else run.slices.first
    elif not run.mask(key).any():
        words = f"The policy left no mask on its key slice {key}."
    return run.done("end", key, "policy", words, begun, watch)
