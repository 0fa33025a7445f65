"""What the demo segmenter practises on: clicks, boxes, and slices that lie beside each other."""

from __future__ import annotations

import argparse

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sam2")

from training.demo import dataset, segmenter_steps, train_segmenter
from training.demo.segmenter_prompts import batch_of, corners, corrective_clicks, deepest, nearness


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    dataset.make(folder, dataset.FRAMES, 1, dataset._clip_slice, 0)
    return dataset.load(folder)


def test_boxes_lie_about_their_structure():
    masks = torch.zeros(2, 64, 64)
    masks[0, 10:30, 20:50] = 1
    masks[1, 40:44, 5:9] = 1
    points, labels = corners(masks, np.random.default_rng(0))
    assert labels.tolist() == [[2, 3], [2, 3]]
    expected = torch.tensor([[[20.0, 10], [50, 30]], [[5, 40], [9, 44]]])
    sizes = expected[:, 1:] - expected[:, :1]
    assert ((points - expected).abs() < 0.2 * sizes).all()
    assert not torch.equal(points, expected)


def test_the_deepest_point_is_in_the_middle_of_large_and_small_regions():
    regions = torch.zeros(4, 64, 64)
    regions[0, 4:60, 10:50] = 1
    regions[1, 31, 7] = 1
    regions[2, 0:9, 55:64] = 1
    points = deepest(regions)
    assert abs(points[0, 0] - 29.5) <= 2 and 20 <= points[0, 1] <= 44, "along the middle line all is as deep"
    assert points[1].tolist() == [7, 31]
    assert (points[2] - torch.tensor([59.0, 4.0])).abs().max() <= 1
    assert points.shape == (4, 2), "no region, some point"


def test_a_corrective_click_lies_where_the_mask_is_most_wrong_and_says_which_way():
    truth = torch.zeros(2, 64, 64)
    truth[:, 8:40, 8:40] = 1
    logits = torch.full((2, 1, 16, 16), -6.0)
    logits[0, 0, 2:10, 2:6] = 6  # the right half is missed
    logits[1, 0, 2:10, 2:16] = 6  # it spills to the right
    points, labels = corrective_clicks(logits, truth)
    assert labels.tolist() == [1, 0]
    assert 24 < points[0, 0] < 40 < points[1, 0] and ((points[:, 1] > 8) & (points[:, 1] < 40)).all()


def test_pixels_near_a_corrective_click_weigh_most():
    weights = nearness(torch.tensor([[20.0, 40.0]]), 64)[0, 0]
    assert weights.shape == (32, 32)
    assert divmod(int(weights.argmax()), 32) == pytest.approx((20, 10), abs=1)
    assert weights.max() > 6.5 and weights[0, 31] < 1.1


def test_a_mass_that_is_put_into_a_slice_is_seen_there_and_is_no_part_of_an_organ(clips):
    numbers, lesion = np.arange(4), dataset.NAMES.index("lesion")
    plain, before = batch_of(clips, numbers, np.random.default_rng(2), dataset.SIDE, augment=False)
    shown, after = batch_of(clips, numbers, np.random.default_rng(2), dataset.SIDE, augment=False, masses=1.0)
    mass = (after >> lesion & 1).bool() & (after != before)
    assert (mass.flatten(1).sum(1) >= 12).all()
    assert torch.equal(after[~mass], before[~mass]) and (after[mass] == 1 << lesion).all()
    changed = (shown - plain).abs().amax(1)
    assert changed[mass].mean() > 10 * changed[~mass].mean()


def test_a_carried_mask_is_that_of_the_slice_beside_moved_as_the_slice_is(clips, monkeypatch):
    heard = []
    real = segmenter_steps.batch_of
    monkeypatch.setattr(
        segmenter_steps, "batch_of", lambda *given: heard.append((given[1], real(*given))) or heard[-1][1]
    )
    model = train_segmenter.build()
    head = segmenter_steps.DenseHead(model.sam_mask_decoder.transformer_dim)
    numbers = np.array([0, 3, dataset.FRAMES - 1])
    loss, figures = segmenter_steps.carried_step(
        model, head, clips, numbers, np.random.default_rng(1), objects=2, clicks=2
    )
    (own, (_, bits)), (beside, (_, beside_bits)) = heard
    assert own.tolist() == numbers.tolist() and (abs(beside - own) == 1).all()
    assert (beside // dataset.FRAMES == 0).all()
    spine = dataset.NAMES.index("spine")
    for a, b in zip(beside_bits >> spine & 1, bits >> spine & 1, strict=True):
        assert ((a & b).sum() / (a | b).sum()) > 0.5
    loss.backward()
    assert 0 <= figures["iou_carried"] <= 1 and model.no_mem_embed.grad is not None


def test_the_object_score_learns_whether_a_carried_structure_goes_on(clips):
    model, spine = train_segmenter.build(), 1 << dataset.NAMES.index("spine")
    last = model.sam_mask_decoder.pred_obj_score_head.layers[-1]
    pictures, bits = batch_of(clips, np.arange(2), np.random.default_rng(0), model.image_size, augment=0)
    bits = bits & spine
    features, _ = segmenter_steps.encode(model, pictures)

    def loss_where(here, presence):
        torch.nn.init.constant_(last.bias, presence)
        given = model, features, features, here, bits, np.random.default_rng(3)
        return segmenter_steps.ending_loss(*given)

    ended = torch.zeros_like(bits)
    sure, figures = loss_where(ended, 5.0)
    assert figures == {"ended": 0.0}, "nothing goes on in a slice that shows nothing"
    sure.backward()
    assert float(last.bias.grad) > 0, "it learns to say less"
    assert float(loss_where(ended, -5.0)[0]) < float(sure) / 20
    assert loss_where(ended, -5.0)[1] == {"ended": 1.0}


def test_the_object_score_is_learnt_alone_and_the_masks_stay_as_they_are(clips):
    model = train_segmenter.build()
    learned = train_segmenter.train_score_only(model)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    optimiser = torch.optim.SGD(learned, lr=1.0)
    loss, figures = segmenter_steps.ending_step(model, clips, np.arange(4), np.random.default_rng(1))
    assert set(figures) <= {"goes_on", "ended"} and figures
    loss.backward()
    optimiser.step()
    changed = {name for name, each in model.state_dict().items() if not torch.equal(each, before[name])}
    assert changed and all("pred_obj_score_head" in name for name in changed)


def test_a_step_with_no_structure_to_carry_changes_nothing_and_goes_on():
    model = train_segmenter.build()
    bits = torch.zeros(1, 64, 64, dtype=torch.int32)
    loss, figures = segmenter_steps.ending_loss(model, [], [], bits, bits, np.random.default_rng(0))
    loss.backward()
    assert float(loss) == 0 and figures == {}


def test_the_object_score_is_taught_from_clips_however_seldom_masks_are_carried_otherwise(monkeypatch):
    class BegunError(Exception):
        pass

    def begin(args):
        raise BegunError

    loaded = []
    monkeypatch.setattr(train_segmenter, "load", lambda *folders: loaded.extend(folders))
    monkeypatch.setattr(train_segmenter.loop, "prepare", begin)
    asked = argparse.Namespace(start=None, data=["slices"], clips="clips", carried=0.0, score_only=True)
    with pytest.raises(BegunError):
        train_segmenter.train(asked)
    assert loaded == ["slices", "clips"]
