"""A run on a framed slice is the run on what the frame holds, told in the slice's own coordinates."""

from __future__ import annotations

from pathlib import Path

import ibis_agent.segmenter as segmenters
import numpy as np
import pytest
from ibis_agent.actions import Click
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.contract import Turn
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.run import Run
from ibis_agent.scan.geometry import Orientation
from ibis_agent.scan.picture import Picture, cut
from ibis_agent.scan.scan import Scan
from ibis_agent.scan.slices import stack_of

REPLIES = (
    "<think>Here.</think>\n<action>Positive Point (0.3000, 0.5000)</action>",
    "<think>More.</think>\n<action>Positive Point (0.6250, 0.4000)</action>",
    "<think>Good.</think>\n<action>Terminate</action>\n<answer>Done.</answer>",
)


class Scripted:
    """A policy that says its lines and remembers what it saw."""

    def __init__(self) -> None:
        self.card = ModelCard(orientation=Orientation.RADIOLOGICAL, frame="body", history=2)
        self.identity = {"name": "scripted"}
        self.turns: list[Turn] = []

    def reply(self, turn: Turn, on_text: object = None, cancelled: object = None) -> str:
        self.turns.append(turn)
        return REPLIES[len(self.turns) - 1]


@pytest.fixture(scope="module")
def segmenter() -> segmenters.Segmenter:
    return segmenters.open(device="cpu")


@pytest.fixture
def scan() -> Scan:
    """A body that fills a quarter of 120 × 100 × 5 voxels, with an organ in it."""
    i, j, k = np.mgrid[0:120, 0:100, 0:5]
    hu = np.full(i.shape, -1000, np.int16)
    hu[((i - 70) / 30) ** 2 + ((j - 45) / 22) ** 2 < 1] = 20
    hu[((i - 80) / 10) ** 2 + ((j - 45) / 9) ** 2 + ((k - 2) / 6) ** 2 < 1] = 150
    return Scan(hu, np.diag([2.0, 2.0, 4.0, 1.0]), "volume", Path("body.nii"), "body")


def framed(scan: Scan) -> Picture:
    picture = cut(scan, "axial", 2, (-160, 240), Orientation.RADIOLOGICAL, frame="body")
    assert picture.frame is not None
    return picture


def test_what_the_models_see_is_the_frame_and_what_they_say_is_the_slice_s(scan, segmenter):
    picture, policy, alone = framed(scan), Scripted(), Scripted()
    frame = picture.frame
    inside = Picture(np.ascontiguousarray(frame.crop(picture.rgb)), picture.geometry, picture.window)
    episode = Run.on_picture(picture, "Segment the organ", policy, segmenter)
    by_itself = Run.on_picture(inside, "Segment the organ", alone, segmenter)
    episode.run(), by_itself.run()
    for turn, other in zip(policy.turns, alone.turns, strict=True):
        assert np.array_equal(turn.picture, other.picture)
        assert [text for _, text in turn.past] == [text for _, text in other.past]
    for step, other in zip(episode.steps, by_itself.steps, strict=True):
        assert np.array_equal(step.mask, frame.paste(other.mask))
    assert episode.mask().any()
    x, y = frame.outward(0.3, 0.5)
    assert episode.steps[0].action == Click(x, y)


def test_a_click_of_a_person_is_told_to_the_policy_where_it_sees_it(scan, segmenter):
    picture, policy = framed(scan), Scripted()
    episode = Run.on_picture(picture, "Segment the organ", policy, segmenter)
    episode.add(Click(*picture.frame.outward(0.25, 0.75)))
    episode.step()
    assert "(0.2500, 0.7500)" in policy.turns[0].past[0][1]
    episode.reject()
    episode.step()
    assert "(0.3000, 0.5000)" in policy.turns[1].note


def test_a_record_keeps_the_frame_and_replays_to_the_same_masks(scan, segmenter):
    episode = Run.on_picture(framed(scan), "Segment the organ", Scripted(), segmenter)
    episode.run()
    again = Trajectory.from_json(Trajectory.of(episode).to_json())
    assert again.picture.frame == framed(scan).frame
    assert again.replay(segmenter).differences == ()


def test_a_range_of_slices_is_followed_in_one_frame(scan, segmenter):
    stack = stack_of(scan, "axial", (-160, 240), frame="body")
    assert stack.frame is not None and not stack.frame.is_whole
    run = Run(stack, "Segment the organ", None, segmenter)
    single = Run.on_picture(stack.picture(2), "Segment the organ", None, segmenter)
    organ = stack.geometry(2).extract(scan.voxels) == 150
    row, column = (int(n.mean()) for n in np.nonzero(organ))
    click = Click((column + 0.5) / organ.shape[1], (row + 0.5) / organ.shape[0])
    run.click(2, click)
    assert np.array_equal(run.mask(2), single.add(click).steps[0].mask)
    run.grow()
    y, x = np.nonzero(np.any([run.mask(n) for n in range(5)], 0))
    assert y.min() >= stack.frame.top and y.max() < stack.frame.bottom
    assert x.min() >= stack.frame.left and x.max() < stack.frame.right
