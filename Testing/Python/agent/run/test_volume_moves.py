"""Volume runs moved about at random: whatever the person and the policy do, nothing is lost and the way back is exact.

The network is an exact one that finds bright things that touch (bright_volumes).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from bright_volumes import END, NOTHING, NOWHERE, SEGMENTER, SIDE, Clicker, disc, run_over
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ibis_agent.actions import Click
from ibis_agent.errors import Cancelled, InputError
from ibis_agent.policy.contract import Turn
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.action import Watch
from ibis_agent.run.key_slice import Search
from ibis_agent.run.run import Run
from ibis_agent.run.settings import Settings

LIMITS = Settings(
    follow="memory", patience_mm=6.0, looks=2, search=Search(apart_mm=12, fewest=2, most=3, rounds=1)
)
COUNT = 14
# Two pieces with a gap of three slices, and a small thing beside them.
SLICES = [
    (disc(5) if n not in (0, 6, 7, 8, 13) else NOTHING) | (disc(3, 5, 5) if 3 <= n <= 10 else NOTHING)
    for n in range(COUNT)
]
PLACES = [Click(0.5, 0.5), Click(5.5 / SIDE, 5.5 / SIDE), Click(0.5, 0.5, False), Click(0.9, 0.1)]

MOODS = ("clicks", "clicks", "clicks", "ends", "sees nothing", "raves")
slices = st.integers(0, COUNT - 1)
moves = st.one_of(
    st.tuples(st.just("step"), st.sampled_from(MOODS), st.sampled_from([1, 3, 99, 99, 99])),
    st.tuples(st.just("step"), st.just("clicks"), st.just(99)),
    st.tuples(st.just("click"), slices, st.sampled_from(PLACES)),
    st.tuples(st.just("move"), slices, st.sampled_from(PLACES)),
    st.tuples(st.just("spread"), slices, st.sampled_from([1, 3, 99, 99])),
    st.tuples(st.just("back"), st.integers(0, 4), st.none()),
    st.tuples(st.sampled_from(["undo", "redo", "reject"]), st.none(), st.none()),
)


class Moody(Clicker):
    """A Clicker that may be told to do otherwise."""

    mood = "clicks"

    def reply(self, turn: Turn, on_text: Any = None, cancelled: Any = None) -> str:
        if self.mood == "clicks":
            return super().reply(turn, on_text, cancelled)
        return {"ends": END, "sees nothing": NOWHERE, "raves": "la la la"}[self.mood]


def stopping(after: int) -> Watch:
    """Stops after so many slices."""
    grown: list[int] = []
    return Watch(progress=lambda p, found: grown.append(found.index), cancelled=lambda: len(grown) >= after)


def do(run: Run, policy: Moody, what: str, one: Any, other: Any) -> None:
    if what == "step":
        policy.mood = one
        run.step(stopping(other))
    elif what == "click":
        run.click(one, other)
    elif what == "move":
        run.click(one, other, replace=1)
    elif what == "spread":
        run.spread(one, stopping(other))
    elif what == "back":
        run.back(len(run.actions) - one)
    else:
        getattr(run, what)()


def stands(run: Run) -> tuple[Any, ...]:
    """How a run stands, to the bit."""
    known = [(n, each.mask.tobytes(), each.anchor, each.score) for n, each in sorted(run.found.items())]
    return run.actions, known, run.key, run.answer, run.stage, run.rejected


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return one[1:] == other[1:] and len(one[0]) == len(other[0])


@given(st.lists(moves, min_size=4, max_size=14), st.sampled_from([0, 2**28]))
@settings(
    max_examples=25, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_is_done_can_be_undone_recorded_and_made_again(
    todo: list[tuple[str, Any, Any]], history: int
) -> None:
    policy = Moody()
    run = run_over(SLICES, 3.0, policy=policy, limits=LIMITS, history_limit=history)
    for what, one, other in todo:
        before = stands(run)
        try:
            do(run, policy, what, one, other)
        except InputError:
            assert stands(run)[:3] == before[:3], "what is refused changes nothing"
            continue
        except Cancelled:
            pass
        after = stands(run)
        clicked = {each.index for each in run.actions if each.kind == "click"}
        assert set(run.memory.anchors) == clicked <= set(run.found)
        assert run.volume_ml == pytest.approx(run.volume().sum() * run.gap_mm / 1000)
        changed = any(each.changes for each in run.actions[len(before[0]) :])
        if what in ("click", "move", "back", "reject") or (what == "spread" and changed):
            run.undo()
            assert same(stands(run), before)
            run.redo()
            assert same(stands(run), after)
    record = json.loads(json.dumps(Trajectory.of(run, "made.nii.gz").to_json()))
    recorded = Trajectory.from_json(record)
    assert recorded.replay(SEGMENTER).differences == () and np.array_equal(recorded.volume(), run.volume())
    again = run_over(SLICES, 3.0, policy=policy, limits=LIMITS)
    again.go_to(recorded.actions)
    assert stands(again)[1:4] == stands(run)[1:4]
    policy.mood, again.rejected = "clicks", run.rejected
    for each in (run, again):
        while each.status == "paused" or each.status == "ready":
            each.step()
    assert np.array_equal(run.volume(), again.volume())
    assert [each.kind for each in run.actions] == [each.kind for each in again.actions]
