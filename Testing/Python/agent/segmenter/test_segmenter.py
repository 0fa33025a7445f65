"""The segmenter: what the published engine recorded, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ibis_agent.actions import Click
from ibis_agent.errors import InputError, ModelError
from ibis_agent.mask.masks import iou
from PIL import Image

torch = pytest.importorskip("torch")

import ibis_agent.segmenter as segmenters
from ibis_agent.segmenter.sam2 import source as module
from ibis_agent.segmenter.sam2.required_memory import memory_estimate


@pytest.fixture(scope="module")
def segmenter(parity: Path) -> Any:
    return segmenters.open(parity / "segmenter.pt", device="cpu")


@pytest.fixture(scope="module")
def ct(data: Path) -> np.ndarray:
    return np.array(Image.open(data / "ct_slice_512.png").convert("RGB"))


def test_masks_and_scores_are_those_that_the_published_engine_recorded(
    segmenter: Any, ct: np.ndarray, parity: Path
) -> None:
    recorded = json.loads((parity / "index.json").read_text())["clicks.npz"]
    packed = np.load(parity / "clicks.npz")["masks"]
    masks = np.unpackbits(packed, axis=-1).reshape(recorded["shape"]).astype(bool)
    embedding = segmenter.embed(ct)
    clicks: list[Click] = []
    logits = None
    for ((x, y), sign), scores, mask in zip(recorded["clicks"], recorded["scores"], masks, strict=True):
        clicks.append(Click(x, y, bool(sign)))
        found = segmenter.predict(embedding, clicks, logits)
        logits = found.logits
        assert iou(found.mask, mask) >= 0.999
        assert np.abs(found.scores - scores).max() <= 1e-4
        assert found.score == found.scores.max(), "the best score wins"
        assert found.mask.shape == ct.shape[:2] and found.mask.dtype == bool
        assert found.logits.shape == (32, 32) and np.abs(found.logits).max() <= 32


def test_the_same_clicks_give_the_same_bits(segmenter: Any, ct: np.ndarray) -> None:
    clicks = [Click(0.7, 0.6), Click(0.5, 0.5, positive=False)]
    before = segmenter.predict(segmenter.embed(ct), clicks[:1])
    runs = [segmenter.predict(segmenter.embed(ct), clicks, before.logits) for _ in range(2)]
    assert np.array_equal(runs[0].mask, runs[1].mask)
    assert np.array_equal(runs[0].logits, runs[1].logits)


def test_previous_logits_and_signs_matter(segmenter: Any, ct: np.ndarray) -> None:
    embedding = segmenter.embed(ct)
    first = segmenter.predict(embedding, [Click(0.75, 0.5)])
    pair = [Click(0.75, 0.5), Click(0.72, 0.65)]
    fresh, refined = segmenter.predict(embedding, pair), segmenter.predict(embedding, pair, first.logits)
    assert not np.array_equal(fresh.logits, refined.logits)
    other = segmenter.predict(
        embedding, [pair[0], dataclasses.replace(pair[1], positive=False)], first.logits
    )
    assert not np.array_equal(other.logits, refined.logits)


def test_a_click_falls_on_the_pixel_that_truncation_gives(segmenter: Any, ct: np.ndarray) -> None:
    embedding = segmenter.embed(ct[:101, :122])
    left, middle = (segmenter.predict(embedding, [Click(x / 122, 0.5)]) for x in (60.0, 60.9))
    right = segmenter.predict(embedding, [Click(61.01 / 122, 0.5)])
    assert np.array_equal(left.logits, middle.logits)
    assert not np.array_equal(middle.logits, right.logits)
    corner, inside = (segmenter.predict(embedding, [Click(x, x)]) for x in (1.0, 1 - 1e-6))
    assert np.array_equal(corner.logits, inside.logits), "1.0 is the last pixel, not one beyond"


@pytest.mark.parametrize("shape", [(128, 128), (2, 300), (37, 11), (700, 513)])
def test_pictures_of_any_shape_give_masks_of_that_shape(
    segmenter: Any, ct: np.ndarray, shape: tuple[int, int]
) -> None:
    rgb = np.array(Image.fromarray(ct).resize(shape[::-1]))
    assert segmenter.predict(segmenter.embed(rgb), [Click(0.4, 0.4)]).mask.shape == shape


def test_embedding_leaves_the_picture_alone_and_takes_views(segmenter: Any, ct: np.ndarray) -> None:
    turned = np.rot90(ct)
    before = turned.copy()
    turned.setflags(write=False)
    embedding = segmenter.embed(turned)
    segmenter.kept.forget()
    copy = segmenter.embed(np.ascontiguousarray(turned))
    assert copy.levels[-1] is not embedding.levels[-1]
    assert all(torch.equal(one, other) for one, other in zip(embedding.levels, copy.levels, strict=True))
    assert np.array_equal(turned, before)


@pytest.mark.parametrize(
    "rgb",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_what_is_no_8_bit_colour_picture_is_refused(segmenter: Any, rgb: np.ndarray) -> None:
    with pytest.raises(InputError, match="8-bit"):
        segmenter.embed(rgb)


def test_no_clicks_and_foreign_logits_are_refused(segmenter: Any, ct: np.ndarray) -> None:
    embedding = segmenter.embed(ct)
    with pytest.raises(InputError, match="needs a click"):
        segmenter.predict(embedding, [])
    with pytest.raises(InputError, match="another segmenter"):
        segmenter.predict(embedding, [Click(0.5, 0.5)], np.zeros((256, 256), np.float32))


def test_numbers_that_are_none_are_an_error_and_not_a_mask(parity: Path, ct: np.ndarray) -> None:
    broken = segmenters.open(parity / "segmenter.pt", device="cpu")
    broken.model.no_mem_embed.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN"):
        broken.predict(broken.embed(ct), [Click(0.5, 0.5)])


def test_the_weights_of_the_memory_are_loaded_too(segmenter: Any, parity: Path) -> None:
    stored = torch.load(parity / "segmenter.pt", weights_only=True)["model"]
    loaded = segmenter.model.state_dict()
    for part in ("memory_encoder.", "memory_attention.", "maskmem_tpos_enc", "obj_ptr_proj."):
        names = [name for name in stored if name.startswith(part)]
        assert names and all(torch.equal(loaded[name], stored[name]) for name in names)
    assert not segmenter.model.training


def test_it_says_what_it_is(segmenter: Any) -> None:
    assert segmenter.identity["name"] == "segmenter.pt"
    assert segmenter.identity["sha256"] == "5d4fde5c6fb98d2d01b92a46bf37729cc91c4a8223ebcfde58b0b86098427dd0"
    found = segmenter.architecture
    assert found.parameters == 2_585_362 and segmenter.image_size == found.image_size == 128
    assert memory_estimate(found) > 4 * found.parameters


@pytest.mark.parametrize(("device", "precision"), [("abacus", "auto"), ("cpu", "fp7"), ("cuda:77", "auto")])
def test_unknown_devices_and_precisions_are_refused_before_reading_the_weights(
    tmp_path: Path, device: str, precision: str
) -> None:
    with pytest.raises(ModelError, match=r"device|GPU|CUDA|precision"):
        segmenters.open(tmp_path / "not there.pt", device=device, precision=precision)


def test_without_the_demo_the_error_says_how_to_get_a_segmenter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_DEMO", tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors: .*train one"):
        segmenters.open()
