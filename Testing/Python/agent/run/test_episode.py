"""Runs on one slice: one action at a time, exact after going back, unharmed by whatever fails."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chained_segmenter import ENDING, SIDE, ChainedSegmenter, clicking, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from ibis_agent.actions import Click, Reply, Terminate, format_click, format_reply
from ibis_agent.errors import Cancelled, InputError, ModelError
from ibis_agent.mask.masks import iou
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.contract import Turn
from ibis_agent.run.action import RunAction, Watch
from ibis_agent.run.episode import Limits
from ibis_agent.run.run import Run
from ibis_agent.run.settings import Settings
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.scan.picture import Picture, overlay
from PIL import Image
from scripted_policy import ScriptedPolicy


def episode_of(*replies: str, limits: Limits | None = None, **card: Any) -> Run:
    policy = ScriptedPolicy(replies, ModelCard(name="scripted", **card))
    return Run.on_picture(picture(), "Segment the liver", policy, ChainedSegmenter(), Settings(limits))


def turns_of(episode: Run) -> list[Turn]:
    assert isinstance(episode.policy, ScriptedPolicy)
    return episode.policy.turns


def unused(run: Run) -> str:
    """The policy's last reply, where no step came of it."""
    return run.halt.reply if run.halt is not None else ""


def masks_from_scratch(actions: Sequence[Click | Terminate], segmenter: Any = None) -> list[np.ndarray]:
    """What the published protocol gives for a list of actions, computed without an episode."""
    segmenter = segmenter or ChainedSegmenter()
    embedding = segmenter.embed(picture().rgb)
    mask, logits, clicks, masks = np.zeros((SIDE, SIDE), bool), None, [], []
    for action in actions:
        if isinstance(action, Click):
            clicks.append(action)
            found = segmenter.predict(embedding, clicks, logits)
            mask, logits = found.mask, found.logits
        masks.append(mask)
    return masks


def same(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> bool:
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_a_run_goes_from_question_to_mask_and_answer() -> None:
    episode = episode_of(clicking(0.2), clicking(0.7, positive=False), ENDING)
    pieces: list[str] = []
    seen: list[RunAction] = []
    assert episode.run(Watch(action=seen.append, text=pieces.append)) == "ended"
    assert [step.action for step in episode.steps] == [
        Click(0.2, 0.5),
        Click(0.7, 0.5, positive=False),
        Terminate("That is the liver."),
    ]
    assert [action.steps[0] for action in seen] == list(episode.steps)
    assert "".join(pieces) == "".join(step.reply for step in episode.steps)
    assert episode.answer == "That is the liver."
    assert [step.number for step in episode.steps] == [1, 2, 3]
    assert [step.thinking for step in episode.steps] == ["I look.", "I look.", "It fits."]
    assert same([step.mask for step in episode.steps], masks_from_scratch([s.action for s in episode.steps]))
    assert np.array_equal(episode.mask(), episode.steps[1].mask), "the end keeps the mask"
    assert episode.steps[2].score == episode.steps[1].score
    for step in episode.steps:
        assert step.seconds["total"] == pytest.approx(step.seconds["policy"] + step.seconds["segmenter"])


def test_the_policy_sees_the_mask_so_far_in_the_colours_of_its_card() -> None:
    episode = episode_of(clicking(0.2), clicking(0.4), ENDING, overlay_colour=(1, 200, 30), overlay_alpha=0.7)
    episode.run()
    first, second, third = turns_of(episode)
    rgb = picture().rgb
    assert np.array_equal(first.picture, rgb) and (first.number, first.has_mask) == (1, False)
    for turn, step in ((second, episode.steps[0]), (third, episode.steps[1])):
        assert np.array_equal(turn.picture, overlay(rgb, step.mask, (1, 200, 30), 0.7))
        assert turn.has_mask and turn.number == step.number + 1
    assert all(turn.question == "Segment the liver" and turn.past == () for turn in turns_of(episode))


def test_history_holds_the_pictures_and_replies_of_the_turns_before() -> None:
    episode = episode_of(clicking(0.2), clicking(0.4), clicking(0.6), history=2)
    episode.step()
    episode.add(Click(0.9, 0.1))
    episode.step()
    episode.step()
    last = turns_of(episode)[-1]
    assert [reply for _, reply in last.past] == [
        format_reply(Reply("", Click(0.9, 0.1))),
        episode.steps[2].reply,
    ]
    rgb = picture().rgb
    for (seen, _), before in zip(last.past, episode.steps[:2], strict=True):
        assert np.array_equal(seen, overlay(rgb, before.mask))
    assert [len(turn.past) for turn in turns_of(episode)] == [0, 2, 2]


def test_the_picture_is_embedded_once() -> None:
    episode = episode_of(clicking(0.2), clicking(0.4), ENDING)
    episode.run()
    episode.back(0)
    episode.add(Click(0.1, 0.1))
    assert isinstance(episode.segmenter, ChainedSegmenter) and episode.segmenter.embedded == 1


def test_after_the_end_only_the_person_can_go_on() -> None:
    episode = episode_of(clicking(0.2), ENDING, clicking(0.8))
    episode.run()
    with pytest.raises(InputError, match="has ended"):
        episode.step()
    added = episode.add(Click(0.6, 0.6))
    assert (episode.status, episode.answer, added.by) == ("ready", None, "person")
    episode.step()
    actions = [step.action for step in episode.steps]
    assert same([step.mask for step in episode.steps], masks_from_scratch(actions))


def test_an_unreadable_reply_is_asked_again_once() -> None:
    episode = episode_of("hm", clicking(0.2))
    told: list[str] = []
    done = episode.step(Watch(retry=told.append))
    assert done is not None and done.steps[0].unreadable == "hm" and len(told) == 1
    first, second = turns_of(episode)
    assert first.note == "" and told[0] in second.note
    assert dataclasses.replace(second, note="") == dataclasses.replace(first, note="")


def test_a_second_unreadable_reply_pauses_and_keeps_everything() -> None:
    episode = episode_of(clicking(0.2), "hm", "<action>Positive Point (7, 3)</action>", clicking(0.4), ENDING)
    episode.step()
    before, mask = episode.steps, episode.mask()
    assert episode.step() is None
    assert episode.status == "paused" and "between 0 and 1" in episode.reason
    assert episode.steps == before and np.array_equal(episode.mask(), mask)
    assert unused(episode) == "<action>Positive Point (7, 3)</action>"
    assert episode.run() == "ended", "the person let it go on"
    assert (len(episode.steps), unused(episode)) == (3, "")


@given(st.lists(st.text(max_size=60) | st.just(ENDING), min_size=2, max_size=2))
def test_no_reply_whatever_can_break_an_episode(replies: list[str]) -> None:
    episode = episode_of(clicking(0.2), *replies)
    episode.step()
    episode.step()
    assert episode.status in ("ready", "paused", "ended")
    assert len(episode.steps) in (1, 2)
    assert np.array_equal(episode.steps[0].mask, masks_from_scratch([Click(0.2, 0.5)])[0])


def test_the_same_action_three_times_in_a_row_ends_it_before_the_third() -> None:
    episode = episode_of(clicking(0.2), clicking(0.7), clicking(0.7), clicking(0.7))
    assert episode.run() == "ended"
    assert len(episode.steps) == 3 and format_click(Click(0.7, 0.5)) in episode.reason
    assert unused(episode) == clicking(0.7)
    two = episode_of(clicking(0.7), clicking(0.7), limits=Limits(max_repeats=2))
    assert two.run() == "ended" and len(two.steps) == 1


def test_repetitions_count_only_in_a_row_and_only_the_policys() -> None:
    episode = episode_of(*[clicking(0.7)] * 2, clicking(0.7, positive=False), *[clicking(0.7)] * 2)
    for _ in range(5):
        assert episode.step() is not None
    mixed = episode_of(*[clicking(0.7)] * 3)
    mixed.step()
    mixed.add(Click(0.7, 0.5))
    assert mixed.step() is not None and mixed.step() is not None


def test_the_limit_of_turns_ends_it_and_a_persons_click_grants_new_ones() -> None:
    replies = [clicking(n / 20) for n in range(1, 9)]
    episode = episode_of(*replies, limits=Limits(max_turns=3))
    assert episode.run() == "ended"
    assert len(episode.steps) == 3 and "limit of 3" in episode.reason
    episode.add(Click(0.9, 0.9))
    assert episode.run() == "ended" and len(episode.steps) == 7
    episode.back(2)
    assert episode.status == "ready"


def test_the_published_limits_are_the_default() -> None:
    assert Limits() == Limits(max_turns=20, max_repeats=3)
    for wrong in ({"max_turns": 0}, {"max_turns": 2.5}, {"max_repeats": 1}, {"max_turns": True}):
        with pytest.raises(InputError):
            Limits(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("polls", [0, 1, 5, 18, 19])
def test_a_cancelled_step_leaves_the_episode_as_it_was(polls: int) -> None:
    replies = [clicking(0.2), clicking(0.4), clicking(0.6)]
    episode = episode_of(*replies)
    episode.step()
    episode.undo()
    before = _everything(episode)
    left = iter(range(polls))
    with pytest.raises(Cancelled):
        episode.step(Watch(cancelled=lambda: next(left, None) is None))
    assert _everything(episode) == before and episode.can_redo


def test_cancelling_after_the_reply_makes_no_step() -> None:
    episode = episode_of(clicking(0.2))
    stop: list[bool] = []

    def on_text(piece: str) -> None:
        if len("".join(pieces := [*collected, piece])) >= len(clicking(0.2)):
            stop.append(True)
        collected[:] = pieces

    collected: list[str] = []
    with pytest.raises(Cancelled):
        episode.step(Watch(text=on_text, cancelled=lambda: bool(stop)))
    assert episode.steps == ()


def test_a_failing_segmenter_or_policy_leaves_the_episode_as_it_was() -> None:
    episode = episode_of(clicking(0.2), clicking(0.4))
    episode.step()
    before = _everything(episode)
    working = episode.segmenter.predict

    def fail(*_: Any) -> Any:
        raise ModelError("out of memory")

    episode.segmenter.predict = fail  # type: ignore[method-assign]
    for change in (episode.step, lambda: episode.add(Click(0, 0)), lambda: episode.replace(1, Click(1, 1))):
        with pytest.raises(ModelError):
            change()
        assert _everything(episode) == before
    episode.segmenter.predict = working  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="no reply left"):
        episode.step()
    assert _everything(episode) == before


def _everything(episode: Run) -> tuple[Any, ...]:
    return (
        episode.steps,
        episode.status,
        episode.reason,
        episode.note,
        unused(episode),
        episode.can_undo,
        episode.can_redo,
    )


def test_a_person_can_work_alone() -> None:
    episode = Run.on_picture(picture(), "Segment the liver", None, ChainedSegmenter())
    episode.add(Click(0.1, 0.2))
    episode.reject()
    episode.add(Click(0.3, 0.2))
    assert episode.finish("Done.").steps[0].action == Terminate("Done.")
    assert (episode.status, episode.answer) == ("ended", "Done.")
    with pytest.raises(InputError, match="no policy"):
        episode.step()
    with pytest.raises(InputError, match="tag"):
        episode.finish("</answer>")


def test_replacing_a_step_drops_what_followed() -> None:
    episode = episode_of(clicking(0.2), clicking(0.4), clicking(0.6), clicking(0.8))
    for _ in range(3):
        episode.step()
    done = episode.replace(2, Click(0.5, 0.9, positive=False))
    assert (done.number, done.steps[0].number, done.by, len(episode.steps)) == (2, 2, "person", 2)
    episode.step()
    actions = [Click(0.2, 0.5), Click(0.5, 0.9, positive=False), Click(0.8, 0.5)]
    assert [each.action for each in episode.steps] == actions
    assert same([each.mask for each in episode.steps], masks_from_scratch(actions))


def test_a_rejected_action_is_told_to_the_policy_once() -> None:
    episode = episode_of(clicking(0.2), clicking(0.4), clicking(0.6))
    episode.step()
    episode.reject()
    assert episode.steps == () and not episode.mask().any()
    episode.step()
    episode.step()
    notes = [turn.note for turn in turns_of(episode)]
    assert notes[0] == notes[2] == "" and "Positive Point (0.2000, 0.5000)" in notes[1]
    assert turns_of(episode)[1].number == 1


def test_a_rejection_is_still_told_when_the_reply_cannot_be_read() -> None:
    episode = episode_of(clicking(0.2), "hm", clicking(0.4))
    episode.step()
    episode.reject()
    episode.step()
    last = turns_of(episode)[-1].note
    assert "(0.2000, 0.5000)" in last and "no action" in last


def test_places_that_do_not_exist_are_refused() -> None:
    episode = episode_of(clicking(0.2))
    for change in (
        episode.undo,
        episode.redo,
        episode.reject,
        lambda: episode.back(1),
        lambda: episode.back(-1),
        lambda: episode.replace(0, Click(0, 0)),
        lambda: episode.replace(1, Click(0, 0)),
    ):
        with pytest.raises(InputError):
            change()
    assert episode.steps == () and not episode.can_undo


@pytest.mark.parametrize("question", ["", "  \n", "x" * 10_001, "liver\x00", "\ud800"])
def test_questions_that_cannot_be_asked_are_refused_at_once(question: str) -> None:
    with pytest.raises(InputError, match="question"):
        Run.on_picture(picture(), question, None, ChainedSegmenter())


def test_questions_in_any_script_are_taken() -> None:
    for question in ("أين الكبد؟", "肝臓はどこですか", "Где печень?"):
        assert Run.on_picture(picture(), f" {question} ", None, ChainedSegmenter()).question == question


def test_nobody_can_paint_into_a_step() -> None:
    episode = episode_of(clicking(0.2))
    episode.step()
    for array in (episode.mask(), episode.steps[0].mask, episode.steps[0].logits):
        assert array is not None
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1


def test_recorded_actions_are_gone_on_from_exactly_where_they_stood() -> None:
    whole = episode_of(clicking(0.2), clicking(0.4), clicking(0.6))
    for _ in range(3):
        whole.step()
    recorded = [
        dataclasses.replace(each, steps=(dataclasses.replace(each.steps[0], logits=None),))
        for each in whole.actions[:2]
    ]
    again = episode_of(clicking(0.6))
    again.go_to(recorded)
    again.step()
    assert same([step.mask for step in again.steps], [step.mask for step in whole.steps])
    for one, other in zip(again.steps, whole.steps, strict=True):
        assert (
            one.logits is not None and other.logits is not None and np.array_equal(one.logits, other.logits)
        )


def test_a_recorded_mask_stays_even_where_this_machine_would_round_it_differently() -> None:
    whole = episode_of(clicking(0.2), clicking(0.4))
    whole.step()
    other = ~whole.steps[0].mask
    recorded = dataclasses.replace(
        whole.actions[0], steps=(dataclasses.replace(whole.steps[0], mask=other, logits=None),)
    )
    again = episode_of(clicking(0.4))
    again.go_to([recorded])
    assert np.array_equal(again.mask(), other) and np.array_equal(again.steps[0].mask, other)


class GoingBackAndForth(RuleBasedStateMachine):
    """Any order of changes: masks are those of the actions that count, undo goes through all states."""

    coordinates = st.integers(0, 20).map(lambda n: n / 20)
    clicks = st.builds(Click, coordinates, coordinates, st.booleans())

    def __init__(self, segmenter: Any = None) -> None:
        super().__init__()
        self.segmenter = segmenter or ChainedSegmenter()

    @initialize()
    def begin(self) -> None:
        self.episode = Run.on_picture(picture(), "Segment the liver", ScriptedPolicy([]), self.segmenter)
        self.trail: list[tuple[Any, ...]] = [self.now()]
        self.at = 0

    def now(self) -> tuple[Any, ...]:
        return (self.episode.steps, self.episode.status, self.episode.reason, self.episode.note)

    def changed(self) -> None:
        del self.trail[self.at + 1 :]
        self.trail.append(self.now())
        self.at += 1

    def say(self, *replies: str) -> None:
        assert isinstance(self.episode.policy, ScriptedPolicy)
        turns = self.episode.policy.turns
        self.episode.policy._replies[len(turns) :] = replies

    @precondition(lambda self: self.episode.status != "ended")
    @rule(click=clicks)
    def the_policy_clicks(self, click: Click) -> None:
        self.say(format_reply(Reply("", click)))
        self.episode.step()
        self.changed()

    @precondition(lambda self: self.episode.status != "ended")
    @rule()
    def the_policy_ends(self) -> None:
        self.say(ENDING)
        self.episode.step()
        self.changed()

    @precondition(lambda self: self.episode.status != "ended")
    @rule()
    def the_policy_babbles(self) -> None:
        self.say("la", "la la")
        assert self.episode.step() is None
        self.changed()

    @rule(click=clicks)
    def the_person_clicks(self, click: Click) -> None:
        self.episode.add(click)
        self.changed()

    @precondition(lambda self: self.episode.steps)
    @rule(click=clicks, data=st.data())
    def the_person_replaces(self, click: Click, data: st.DataObject) -> None:
        self.episode.replace(data.draw(st.integers(1, len(self.episode.steps))), click)
        self.changed()

    @rule(data=st.data())
    def the_person_goes_back(self, data: st.DataObject) -> None:
        self.episode.back(data.draw(st.integers(0, len(self.episode.steps))))
        self.changed()

    @precondition(lambda self: self.episode.steps)
    @rule()
    def the_person_rejects(self) -> None:
        self.episode.reject()
        self.changed()

    @precondition(lambda self: self.at > 0)
    @rule()
    def undo(self) -> None:
        self.episode.undo()
        self.at -= 1

    @precondition(lambda self: self.at + 1 < len(self.trail))
    @rule()
    def redo(self) -> None:
        self.episode.redo()
        self.at += 1

    @rule(click=clicks)
    def something_fails(self, click: Click) -> None:
        self.episode.memory.segmenter = None  # type: ignore[assignment]
        with pytest.raises(AttributeError):
            self.episode.add(click)
        self.episode.memory.segmenter = self.segmenter

    @invariant()
    def the_state_is_the_remembered_one(self) -> None:
        assert self.now() == self.trail[self.at]
        assert self.episode.can_undo == (self.at > 0)
        assert self.episode.can_redo == (self.at + 1 < len(self.trail))

    @invariant()
    def the_masks_are_those_of_the_actions(self) -> None:
        steps = self.episode.steps
        assert same(
            [step.mask for step in steps], masks_from_scratch([step.action for step in steps], self.segmenter)
        )
        assert [step.number for step in steps] == list(range(1, len(steps) + 1))


TestGoingBackAndForth = GoingBackAndForth.TestCase
TestGoingBackAndForth.settings = settings(max_examples=40, stateful_step_count=20)


@pytest.fixture(scope="module")
def real(parity: Path) -> Any:
    pytest.importorskip("torch")
    import ibis_agent.segmenter as segmenters

    return segmenters.open(parity / "segmenter.pt", device="cpu")


@pytest.fixture(scope="module")
def ct(data: Path) -> Picture:
    rgb = np.array(Image.open(data / "ct_slice_512.png").convert("RGB"))
    return Picture(rgb, PictureGeometry.of_picture(*rgb.shape[:2]), None)


def test_back_and_forth_is_exact_with_a_real_segmenter_too(real: Any) -> None:
    run_state_machine_as_test(
        lambda: GoingBackAndForth(real), settings=settings(max_examples=3, stateful_step_count=8)
    )


def test_an_episode_gives_the_masks_that_the_published_engine_recorded(
    real: Any, ct: Picture, parity: Path
) -> None:
    recorded = json.loads((parity / "index.json").read_text())["clicks.npz"]
    packed = np.load(parity / "clicks.npz")["masks"]
    masks = np.unpackbits(packed, axis=-1).reshape(recorded["shape"]).astype(bool)
    replies = [clicking(x, y, bool(sign)) for (x, y), sign in recorded["clicks"]]
    episode = Run.on_picture(ct, "Segment the liver", ScriptedPolicy([*replies, ENDING]), real)
    episode.run()
    for step, mask in zip(episode.steps, masks, strict=False):
        assert iou(step.mask, mask) >= 0.999
    assert episode.status == "ended" and len(episode.steps) == 6


def test_back_then_step_gives_the_same_mask(real: Any, ct: Picture) -> None:
    replies = [
        clicking(0.75),
        clicking(0.72, 0.65),
        clicking(0.55, 0.48, positive=False),
        clicking(0.78, 0.4),
    ]
    straight = Run.on_picture(ct, "Segment the liver", ScriptedPolicy(replies), real)
    for _ in replies:
        straight.step()
    again = ScriptedPolicy([*replies[:3], replies[2], replies[3]])
    wandering = Run.on_picture(ct, "Segment the liver", again, real)
    for _ in range(3):
        wandering.step()
    wandering.add(Click(0.1, 0.1))
    wandering.replace(1, Click(0.2, 0.9))
    wandering.undo()
    wandering.undo()
    wandering.back(2)
    wandering.step()
    wandering.step()
    for one, other in zip(straight.steps, wandering.steps, strict=True):
        assert np.array_equal(one.mask, other.mask)
        assert one.logits is not None and other.logits is not None
        assert np.array_equal(one.logits, other.logits)
        assert one.score == other.score
