"""The memory over a stack: equal to sam2's own video predictor, and cheap to correct."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ibis_agent.actions import Click
from ibis_agent.errors import InputError

torch = pytest.importorskip("torch")

from ibis_agent.segmenter.contract import Way
from ibis_agent.segmenter.embeddings import KeptEmbeddings
from ibis_agent.segmenter.sam2.predictor import Sam2Predictor
from ibis_agent.segmenter.sam2.propagation import Propagation
from ibis_agent.segmenter.sam2.source import Sam2File

COUNT, SIZE = 12, (96, 128)


class Unrounded(Propagation):
    """sam2's predictor takes a click's fraction of a pixel; the published engine, and we, do not."""

    def marks(self, prompts: Any) -> Any:
        return [(click.x * self.size[1], click.y * self.size[0], int(click.positive)) for click in prompts]


@pytest.fixture(scope="module")
def loaded(parity: Path) -> Sam2Predictor:
    return Sam2File(parity / "segmenter.pt").open("cpu")


@pytest.fixture
def segmenter(loaded: Sam2Predictor) -> Sam2Predictor:
    """It has not seen any picture yet."""
    loaded.kept = KeptEmbeddings()
    return loaded


@pytest.fixture(scope="module")
def stack(data: Path) -> np.ndarray:
    """(COUNT, 96, 128) uint8 of a real CT."""
    return np.load(data / "lesion_000009.npz")["imgs"][:COUNT, 160:256, 160:288]


def follower(
    segmenter: Sam2Predictor, stack: np.ndarray, way: Way = "memory", kind: type[Propagation] = Propagation
) -> Propagation:
    return kind(
        segmenter, lambda n: np.repeat(stack[n][:, :, None], 3, axis=2), len(stack), stack.shape[1:], way
    )


def spread_from(segmenter: Sam2Predictor, stack: np.ndarray, key: int = 5) -> Propagation:
    """Clicked at `key` and followed both ways to the ends."""
    spread = follower(segmenter, stack)
    spread.anchor(key, [Click(0.5, 0.5)])
    for direction, last in ((+1, COUNT - 1), (-1, 0)):
        assert list(spread.follow(key, direction, last))
    return spread


def full_logits(spread: Propagation, index: int) -> np.ndarray:
    low = (spread._anchors.get(index) or spread._tracked[index])["pred_masks"]
    return torch.nn.functional.interpolate(low, spread.size, mode="bilinear", align_corners=False)[
        0, 0
    ].numpy()


@pytest.mark.parametrize("run", [0, 1])
def test_propagation_is_what_sam2_recorded(
    run: int, segmenter: Sam2Predictor, parity: Path, data: Path
) -> None:
    recorded, index = np.load(parity / "propagation.npz"), json.loads((parity / "index.json").read_text())
    facts = index["propagation.npz"]["runs"][run]
    count, height, width = facts["shape"]
    (x, y), key = facts["click"], facts["key_slice"]
    segmenter.kept = KeptEmbeddings(half=False)
    spread = follower(segmenter, np.load(data / facts["volume"])["imgs"], kind=Unrounded)
    assert (spread.count, spread.size) == (count, (height, width))
    spread.anchor(key, [Click(x / width, y / height)])
    found = [*spread.follow(key, +1, count - 1), *spread.follow(key, -1, 0)]
    assert [each.index for each in found] == [*range(key + 1, count), *range(key - 1, -1, -1)]
    masks = np.unpackbits(recorded[facts["key"]], axis=-1).astype(bool)
    for n in range(count):
        assert np.array_equal(spread.found[n].mask, masks[n])
        difference = np.abs(full_logits(spread, n)[::8, ::8] - recorded[facts["key"] + "_logits"][n])
        assert difference.max() <= 1e-3


def test_corrections_and_given_masks_are_what_sam2s_own_predictor_makes_of_them(
    segmenter: Sam2Predictor, stack: np.ndarray
) -> None:
    from training.bench.volume import PreparedSlices, plain_predictor

    theirs = plain_predictor(segmenter)
    state = theirs.init_state(PreparedSlices(segmenter, stack), *SIZE)
    segmenter.kept = KeptEmbeddings(half=False)
    mine = follower(segmenter, stack)

    def same_from(start: int, slices: range) -> None:
        seen: dict[int, Any] = {}
        for reverse in (False, True):
            for n, _, full in theirs.propagate_in_video(state, start_frame_idx=start, reverse=reverse):
                seen[n] = full[0, 0].numpy()
        for direction, last in ((+1, COUNT - 1), (-1, 0)):
            assert list(mine.follow(start, direction, last))
        for n in slices:
            full = seen[n]
            assert np.abs(full_logits(mine, n) - full).max() <= 1e-3
            if n != 4:  # ours keeps a given mask to the pixel
                assert np.array_equal(mine.found[n].mask, full > 0)

    given = np.zeros(SIZE, bool)
    given[30:60, 40:90] = True
    theirs.add_new_mask(state, 4, 1, given)
    mine.anchor_mask(4, given)
    same_from(4, range(COUNT))
    theirs.add_new_points_or_box(state, 8, 1, np.array([[70, 50]], np.float32), np.array([1], np.int32))
    standing = mine.standing(8)
    assert standing is not None
    mine.anchor(8, [Click(70 / 128, 50 / 96)], standing.logits)
    same_from(8, range(5, COUNT))  # ours stops before the other anchor


def test_a_slice_is_encoded_once_however_often_it_is_visited(
    segmenter: Sam2Predictor, stack: np.ndarray
) -> None:
    spread = spread_from(segmenter, stack)
    assert segmenter.kept.made == COUNT
    spread.anchor(8, [Click(0.4, 0.5)], spread.standing(8).logits)  # type: ignore[union-attr]
    assert list(spread.follow(8, +1, COUNT - 1)) and list(spread.follow(8, -1, 0))
    second = spread_from(segmenter, stack)  # another object of the same stack
    assert segmenter.kept.made == COUNT and second.found.keys() == spread.found.keys()


def test_position_encodings_are_computed_once_and_give_the_same_masks(
    segmenter: Sam2Predictor, stack: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, computed = segmenter.model.sam_prompt_encoder, []
    plain = encoder.get_dense_pe
    monkeypatch.setattr(encoder, "get_dense_pe", lambda: computed.append(1) or plain())
    monkeypatch.setattr(segmenter, "_places", None)
    once = spread_from(segmenter, stack)
    assert len(computed) == 1
    monkeypatch.setattr(Sam2Predictor, "places", property(lambda _: plain()))
    every_time = spread_from(segmenter, stack)
    for index in range(COUNT):
        assert np.array_equal(full_logits(once, index), full_logits(every_time, index))


def test_a_small_cache_gives_the_same_masks(segmenter: Sam2Predictor, stack: np.ndarray) -> None:
    def corrected() -> Propagation:
        spread = spread_from(segmenter, stack)
        spread.anchor(2, [Click(0.4, 0.5)], spread.standing(2).logits)  # type: ignore[union-attr]
        assert list(spread.follow(2, +1, 4))
        return spread

    large = corrected()
    segmenter.kept = kept = KeptEmbeddings(limit=100_000)
    small = corrected()
    assert kept.held <= 100_000 and kept.made > COUNT
    for n in range(COUNT):
        assert np.array_equal(full_logits(small, n), full_logits(large, n))


def test_memories_of_older_slices_are_let_go_and_made_again_to_the_bit(
    segmenter: Sam2Predictor, stack: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def corrected() -> Propagation:
        spread = spread_from(segmenter, stack)
        spread.anchor(1, [Click(0.4, 0.5)], spread.standing(1).logits)  # type: ignore[union-attr]
        assert list(spread.follow(1, +1, 4))
        return spread

    all_kept = corrected()
    each = all_kept.memories.held // all_kept.memories.made
    assert all_kept.memories.made <= COUNT + 4, "none was let go"
    monkeypatch.setattr("ibis_agent.segmenter.sam2.slice_network._MEMORIES", 2 * each)
    two_kept = corrected()
    assert two_kept.memories.held <= 2 * each and two_kept.memories.made > 2 * COUNT
    for n in range(COUNT):
        assert np.array_equal(full_logits(two_kept, n), full_logits(all_kept, n))
        assert np.array_equal(two_kept.found[n].mask, all_kept.found[n].mask)


@pytest.mark.parametrize("way", ["memory", "linked", "carry"])
def test_a_slice_keeps_no_more_than_one_masks_logits_a_pointer_and_a_bit_a_pixel(
    way: Way, segmenter: Sam2Predictor, stack: np.ndarray
) -> None:
    spread = follower(segmenter, stack, way)
    spread.anchor(5, [Click(0.5, 0.5)])
    assert list(spread.follow(5, +1, COUNT - 1))
    for out in (*spread._anchors.values(), *spread._tracked.values()):
        tensors = {name: each for name, each in out.items() if isinstance(each, torch.Tensor)}
        assert tensors.keys() == {"pred_masks", "obj_ptr", "object_score_logits"}
        # A part of a larger tensor would keep all of that alive.
        assert all(each.untyped_storage().nbytes() == each.nbytes for each in tensors.values())
        assert tensors["pred_masks"].nbytes == 4 * (segmenter.image_size // 4) ** 2
    assert [found.nbytes for found in spread.found.values()] == [SIZE[0] * SIZE[1] // 8] * (COUNT - 5)


@pytest.mark.parametrize("way", ["linked", "carry"])
def test_a_carried_mask_ends_where_the_object_score_says_that_the_object_has_ended(
    way: Way, segmenter: Sam2Predictor, stack: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = segmenter.model.sam_mask_decoder
    forward = decoder.forward

    def with_presence(logit: float) -> list[bool]:
        def answered(*given: Any, **named: Any) -> Any:
            *others, presence = forward(*given, **named)
            return (*others, torch.full_like(presence, logit))

        monkeypatch.setattr(decoder, "forward", answered)
        spread = follower(segmenter, stack, way)
        spread.anchor(5, [Click(0.5, 0.5)])
        return [bool(found.mask.any()) for found in spread.follow(5, +1, 8)]

    assert with_presence(3.0) == [True] * 3
    assert with_presence(-3.0) == [False] * 3


def test_a_propagation_that_nobody_holds_is_gone_at_once(segmenter: Sam2Predictor, stack: np.ndarray) -> None:
    spread = spread_from(segmenter, stack)
    gone = weakref.ref(spread)
    del spread
    assert gone() is None


def test_before_anything_is_known_a_click_is_what_the_segmenter_makes_of_it(
    segmenter: Sam2Predictor, stack: np.ndarray
) -> None:
    segmenter.kept = KeptEmbeddings(half=False)
    alone = segmenter.predict(segmenter.embed(np.repeat(stack[5][:, :, None], 3, axis=2)), [Click(0.5, 0.5)])
    here = follower(segmenter, stack, "auto").predict(5, [Click(0.5, 0.5)])
    assert np.array_equal(alone.mask, here.mask) and np.allclose(alone.scores, here.scores, atol=1e-5)


def test_a_given_mask_stays_to_the_pixel(segmenter: Sam2Predictor, stack: np.ndarray) -> None:
    spread = follower(segmenter, stack, "auto")
    given = np.zeros(SIZE, bool)
    given[30:51, 40:77] = True
    assert np.array_equal(spread.anchor_mask(5, given).mask, given)
    assert [each.index for each in spread.follow(5, +1, 7)] == [6, 7]


def test_restoring_goes_on_exactly_as_before(segmenter: Sam2Predictor, stack: np.ndarray) -> None:
    spread = spread_from(segmenter, stack)
    kept = spread.state()

    def correct() -> list[np.ndarray]:
        spread.anchor(8, [Click(0.3, 0.6)], spread.standing(8).logits)  # type: ignore[union-attr]
        return [each.mask for each in spread.follow(8, +1, COUNT - 1)] + [spread.found[8].mask]

    first = correct()
    spread.restore(kept)
    assert spread.anchors == [5]
    for one, other in zip(first, correct(), strict=True):
        assert np.array_equal(one, other)


def test_following_stops_before_an_anchor_and_where_nothing_changes(
    segmenter: Sam2Predictor, stack: np.ndarray
) -> None:
    spread = spread_from(segmenter, stack)
    assert [each.index for each in spread.follow(5, +1, COUNT - 1, settle=True)] == [6, 7], "all as it was"
    spread.anchor(9, [Click(0.5, 0.5)], spread.standing(9).logits)  # type: ignore[union-attr]
    assert [each.index for each in spread.follow(9, -1, 0)] == [8, 7, 6]


def test_patience_ends_the_way_after_slices_without_the_object(
    segmenter: Sam2Predictor, stack: np.ndarray
) -> None:
    spread = follower(segmenter, stack, "auto")
    spread.anchor_mask(0, np.zeros(SIZE, bool))
    found = list(spread.follow(0, +1, COUNT - 1, patience=3))
    assert [each.index for each in found] == [1, 2, 3] and not any(each.mask.any() for each in found)


def test_a_way_that_leads_nowhere_is_refused(segmenter: Sam2Predictor, stack: np.ndarray) -> None:
    spread = follower(segmenter, stack, "auto")
    with pytest.raises(InputError, match="has no mask to start from"):
        next(spread.follow(3, +1, COUNT - 1))
    spread.anchor(3, [Click(0.5, 0.5)])
    with pytest.raises(InputError, match="not in the stack"):
        next(spread.follow(3, +1, COUNT))
    with pytest.raises(InputError, match="different sizes"):
        spread.anchor_mask(3, np.zeros((4, 4), bool))
