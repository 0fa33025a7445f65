"""The agent's part in a run: it chooses and performs the next action.

On a single slice it only clicks. In a volume it searches for the key slice, segments it, propagates the mask, takes
second looks at doubtful slices, and ends.
"""

from __future__ import annotations

import time

from ibis_agent.actions import Prompt, Terminate
from ibis_agent.errors import InputError
from ibis_agent.run import growth, second_look
from ibis_agent.run.action import RunAction, Stage, Watch, Way
from ibis_agent.run.episode import Step
from ibis_agent.run.key_slice import spread_out
from ibis_agent.run.plan import (
    Looks,
    clicks_on,
    grown,
    look_at,
    looks_of,
    unfinished,
    why_nothing,
    worked_out,
)
from ibis_agent.run.slice_episode import episode_on, key_episode
from ibis_agent.run.state import RunState

_FOLLOWED = "The mask was propagated to the end of the object."


def stage_of(run: RunState) -> Stage:
    """What `act` would do now. On a single slice always "work" or "end"."""
    actions, key = run.actions, run.key
    if run.status == "ended":
        return "end"
    if run.alone:
        return "work"
    if grown(actions):
        if _to_grow(run):
            return "grow"
        return "review" if _doubtful(run) else "finish"
    if key is None:
        if run.policy is None:
            return "finish"
        if run.rejected is not None:
            return "look"  # again at the rejected slice: the run must not start from what was seen there
        search = _search(run)
        return "look" if search.wanted is not None else "finish" if search.best is None else "work"
    if run.policy is None or worked_out(actions, key):
        at_once = run.given.start or run.segmenter.can.volume
        return "grow" if _to_grow(run) else "review" if at_once and _doubtful(run) else "finish"
    return "work"


def act(run: RunState, watch: Watch) -> RunAction | None:
    """Perform the next action. Returns None if there was none; the run's `reason` says why. Raises as Run.step."""
    stage = stage_of(run)
    if run.policy is None and (run.alone or (stage == "finish" and run.key is None)):
        raise InputError("there is no policy to act", remedy="Add a click, or load a policy.")
    if stage == "look":
        return _look(run, watch)
    if stage == "work":
        return _turn(run, watch)
    if stage == "grow":
        start, ways = next(iter(_to_grow(run).items()))
        return growth.grow(run, start, grown(run.actions), watch, ways)
    if stage == "review":
        return second_look.look_again(run, run.doubts()[0], watch)
    if stage == "finish":
        return _finish(run, watch)
    raise InputError(f"the run has ended: {run.reason}", remedy="Add a click, or go back.")


def _doubtful(run: RunState) -> bool:
    """Whether the policy should take a second look at a slice."""
    return run.policy is not None and run.looks < run.settings.looks and bool(run.doubts())


def _to_grow(run: RunState) -> dict[int, tuple[Way, ...]]:
    """The slices to propagate from, see plan.unfinished; slices with an empty mask are skipped.

    A starting mask on a single slice is propagated as if the slice had been clicked. A volume segmenter has already
    segmented all slices.
    """
    if run.segmenter.can.volume:
        return {}
    waiting = dict(unfinished(run.actions))
    if len(run.given.start) == 1 and run.key is not None and not grown(run.actions):
        waiting.setdefault(run.key, ())
    return {start: ways for start, ways in waiting.items() if ways or run.mask(start).any()}


def _search(run: RunState) -> Looks:
    slices, pixel = run.slices, run.row_mm * run.col_mm
    return looks_of(run.actions, slices.first, slices.last, run.gap_mm, pixel, run.settings.search)


def _look(run: RunState, watch: Watch) -> RunAction:
    begun = time.perf_counter()
    index = _search(run).wanted if run.rejected is None else run.rejected.index
    assert index is not None
    episode = episode_on(run, index)
    if run.rejected is None and run.policy is not None:
        _prefetch(run)
        episode.policy = run.prefetch.policy_for(index, run.policy)
    try:
        step = episode.step(watch.text, watch.cancelled, watch.retry)
    except BaseException:
        run.prefetch.stop()
        raise
    steps = () if step is None else (step,)
    words = look_at(index, steps, run.row_mm * run.col_mm).words
    return run.done("look", index, "policy", run.in_units(words), begun, watch, steps=steps)


def _prefetch(run: RunState) -> None:
    """Request several of the first looks at once, if the policy can answer in parallel."""
    together = int(getattr(run.policy, "together", 1))
    if together < 2 or run.policy is None:
        return
    slices, known = run.slices, _search(run).known
    first = spread_out(slices.first, slices.last, run.gap_mm, run.settings.search)
    waiting = [index for index in first if index not in known][:together]
    run.prefetch.ask(run.policy, {n: episode_on(run, n).turn() for n in waiting if n not in run.prefetch})


def _turn(run: RunState, watch: Watch) -> RunAction | None:
    """One turn of the policy on the key slice. The first turn was the look that chose it."""
    begun, key = time.perf_counter(), run.key
    if key is None:
        look = _search(run).best
        assert look is not None and look.step is not None
        return _clicked(
            run, look.index, look.step, "starts on the slice where it was seen best", begun, watch
        )
    episode = key_episode(run)
    if episode.halt is None:
        step = episode.step(watch.text, watch.cancelled, watch.retry)
        if step is not None and isinstance(step.action, Prompt):
            return _clicked(run, key, step, "clicked", begun, watch)
    halt = episode.halt
    assert halt is not None
    last = tuple(each for each in episode.steps[-1:] if isinstance(each.action, Terminate))
    if halt.status == "paused" or (run.alone and not last):
        run.stop(halt)
        return None
    return run.done("done", key, "policy", halt.reason, begun, watch, steps=last)


def _clicked(run: RunState, index: int, step: Step, words: str, begun: float, watch: Watch) -> RunAction:
    assert isinstance(step.action, Prompt)
    clicks = (*clicks_on(run.actions, index), step.action)
    run.anchor(index, clicks)
    return run.done("click", index, "policy", words, begun, watch, steps=(step,), clicks=clicks)


def _finish(run: RunState, watch: Watch) -> RunAction:
    key, begun, words = run.key, time.perf_counter(), _FOLLOWED
    if key is None:
        words = why_nothing(run.actions)
        key = run.actions[0].index if run.actions else run.slices.first
    elif len(run.given.start) > 1:
        words = "The given mask has been reviewed."
    elif run.segmenter.can.volume:
        words = "The segmenter found the object in all slices at once."
    elif not run.mask(key).any():
        words = f"The policy left no mask on its key slice {key}."
    return run.done("end", key, "policy", words, begun, watch)
