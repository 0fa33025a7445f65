"""Masks as text and as numbers."""

from __future__ import annotations

import base64
import json
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ibis_agent.errors import InputError
from ibis_agent.mask.masks import area, decode_rle, dice, encode_rle, iou
from PIL import Image

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))


def packed(runs: str) -> str:
    return base64.b64encode(zlib.compress(runs.encode())).decode()


@given(MASKS)
def test_a_mask_comes_back_from_its_text(mask: np.ndarray) -> None:
    text = encode_rle(mask)
    assert np.array_equal(decode_rle(text, mask.shape), mask)
    assert decode_rle(text, mask.shape).dtype == bool


def test_the_text_is_the_published_one() -> None:
    mask = np.array([[0, 0, 1], [1, 1, 0]], dtype=bool)
    assert zlib.decompress(base64.b64decode(encode_rle(mask))) == b"2 3 1"
    assert zlib.decompress(base64.b64decode(encode_rle(~mask))) == b"0 2 3 1", "a mask that begins with a one"
    assert encode_rle(np.zeros((4, 4), bool)) == "", "an empty mask is an empty text"
    assert zlib.decompress(base64.b64decode(encode_rle(np.ones((2, 3), bool)))) == b"0 6"


def test_the_recorded_masks_are_read_and_written_back(parity: Path) -> None:
    checked = 0
    for run in json.loads((parity / "trajectories.json").read_text()):
        if run["type"] == "nii":
            shape = tuple(run["nii_data"]["slice_size"])
        else:
            shape = tuple(reversed(run["img_data"]["size"]))
        for step in run["trajectory"]:
            mask = decode_rle(step["mask_rle"], shape)
            runs = zlib.decompress(base64.b64decode(step["mask_rle"])) if step["mask_rle"] else b""
            again = encode_rle(mask)
            assert (zlib.decompress(base64.b64decode(again)) if again else b"") == runs
            checked += 1
    assert checked > 20


def test_the_last_recorded_mask_lies_on_the_expert_one(parity: Path) -> None:
    # Decoding in columns, or upside down, would still be a round trip; against the expert's mask it fails.
    runs = json.loads((parity / "trajectories.json").read_text())
    overlaps = []
    for run in runs:
        if run["type"] != "img":
            continue
        truth = np.asarray(Image.open(parity / Path(run["mask_file"]).name).convert("L")) > 0
        overlaps.append(
            max(iou(decode_rle(step["mask_rle"], truth.shape), truth) for step in run["trajectory"])
        )
    assert overlaps and max(overlaps) > 0.5


@pytest.mark.parametrize(
    "text",
    [
        "not base64!",
        "ÄÖÜ",
        "eJx",
        "AAAA",
        packed("2 3 1")[:-8],
        packed("2 3 2"),
        packed("2 3"),
        packed("-1 7"),
        packed("+6"),
        packed("2.5 3.5"),
        packed("2 three 1"),
        packed("2  3 1"),
        packed(" "),
        packed("6 "),
        packed("2\n3 1"),
        packed("٢ ٣ ١"),
        packed("99999999999999999999 1"),
        packed("9" * 30),
        packed("18446744073709551615 7"),
        base64.b64encode(zlib.compress(b"2 3 1") + b"more").decode(),
        "\x00",
        "=" * 50,
    ],
)
def test_a_text_that_is_no_mask_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        decode_rle(text, (2, 3))


@given(st.text(), st.integers(-2, 40), st.integers(-2, 40))
def test_no_text_and_no_size_raises_anything_but_an_input_error(text: str, height: int, width: int) -> None:
    try:
        mask = decode_rle(text, (height, width))
    except InputError as error:
        assert str(error)
    else:
        assert mask.shape == (height, width)


@given(st.binary(), st.integers(1, 20), st.integers(1, 20))
def test_no_packed_bytes_raise_anything_but_an_input_error(content: bytes, height: int, width: int) -> None:
    try:
        decode_rle(base64.b64encode(zlib.compress(content)).decode(), (height, width))
    except InputError as error:
        assert str(error)


@pytest.mark.parametrize(
    "bomb", ["1 " * 8_000_000, "0" * 16_000_000, " " * 16_000_000], ids=["runs", "digits", "spaces"]
)
def test_a_text_that_unpacks_to_far_more_than_the_picture_needs_little_memory(bomb: str) -> None:
    text = packed(bomb)
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            decode_rle(text, (64, 64))
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert used < 4 * len(text) + 4_000_000


def test_the_longest_possible_text_is_read() -> None:
    mask = np.indices((64, 64)).sum(axis=0) % 2 == 0
    assert np.array_equal(decode_rle(encode_rle(mask), mask.shape), mask)


@pytest.mark.parametrize("shape", [(0, 5), (-1, -1), (10**6, 10**6)])
def test_an_impossible_size_is_refused_before_any_memory_is_taken(shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="size"):
        decode_rle("", shape)


def test_only_two_dimensions_are_written() -> None:
    for shape in ((3,), (1, 2, 3), (0, 4)):
        with pytest.raises(InputError, match="two dimensions"):
            encode_rle(np.zeros(shape, bool))


def test_overlap_measures_follow_their_definitions() -> None:
    a = np.zeros((4, 4), bool)
    b = a.copy()
    a[:2], b[1:3] = True, True
    assert iou(a, b) == pytest.approx(4 / 12)
    assert dice(a, b) == pytest.approx(8 / 16)
    assert area(a) == 8
    empty = np.zeros((4, 4), bool)
    assert iou(a, empty) == dice(a, empty) == 0
    assert iou(empty, empty) == dice(empty, empty) == 1
    with pytest.raises(InputError, match="shape"):
        iou(a, np.zeros((4, 5), bool))


@given(st.data())
def test_dice_follows_from_iou(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))
    a, b = (data.draw(hnp.arrays(bool, shape)) for _ in range(2))
    overlap = iou(a, b)
    assert dice(a, b) == pytest.approx(2 * overlap / (1 + overlap))
    assert overlap == iou(b, a)
