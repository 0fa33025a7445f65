"""Records of small runs, on a slice and over a volume, as the program writes them."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
from typing import Any

import numpy as np
from ibis_agent.mask.masks import encode_rle
from ibis_agent.scan.geometry import slice_geometry
from PIL import Image

H, W = 24, 40
SHAPE = (20, 16, 12)
LPS = np.diag([-2.0, -2.0, 3.0, 1.0])


def body(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """(I, J, K) bool: a block that is wider below, and off the middle along every axis."""
    mask = np.zeros(shape, bool)
    mask[4:9, 3:7, 2:10] = True
    mask[4:13, 3:10, 2:5] = True
    return mask


def grey(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 255, shape, np.uint8)


def click(x: float, y: float, positive: bool = True) -> dict[str, Any]:
    return {"kind": "click", "x": x, "y": y, "positive": positive}


def volume_record(
    plane: str = "axial", affine: np.ndarray = LPS, met: range | None = None, **changes: Any
) -> dict[str, Any]:
    """The record of a run that looked at a slice, clicked another twice, grew, and ended."""
    voxels, mask = grey(), body()
    middle = slice_geometry(SHAPE, affine, plane, None)
    met = met or range(1, middle.shape[middle.axis])
    rows = []
    for index in met:
        geometry = slice_geometry(SHAPE, affine, plane, index)
        pixels, inside = geometry.extract(voxels), geometry.extract(mask)
        png = io.BytesIO()
        Image.fromarray(np.repeat(pixels[..., None], 3, axis=2)).save(png, "PNG")
        picture = {
            "source": "scan.nii.gz", "geometry": geometry.to_json(), "window": [0, 255], "sha256": "",
            "orientation": "radiological", "height": geometry.height, "width": geometry.width,
            "png": base64.b64encode(png.getvalue()).decode(),
        }  # fmt: skip
        rows.append(
            {
                "slice": index,
                "mask_rle": encode_rle(inside),
                "area_px": int(inside.sum()),
                "score": 0.9,
                "anchor": index == 4,
                "picture": picture,
            }
        )
    small = np.zeros((middle.height, middle.width), bool)
    small[3:6, 4:8] = True

    def step(number: int, action: dict[str, Any], mask: np.ndarray) -> dict[str, Any]:
        return {
            "number": number, "by": "policy", "thinking": f"thought {number}", "reply": "", "action": action,
            "mask_rle": encode_rle(mask), "score": 0.8, "seconds": {"total": 1.0},
        }  # fmt: skip

    at_four = slice_geometry(SHAPE, affine, plane, 4).extract(mask)
    done = {"kind": "terminate", "answer": "It is there."}
    a, b = click(0.3, 0.4), click(0.6, 0.6, False)
    actions = [
        {"kind": "look", "slice": 3, "words": "seen", "steps": [step(1, a, small)], "clicks": []},
        {"kind": "click", "slice": 4, "words": "begins", "steps": [step(1, a, small)], "clicks": [a]},
        {"kind": "click", "slice": 4, "words": "", "steps": [step(2, b, at_four)], "clicks": [a, b]},
        {"kind": "done", "slice": 4, "words": "", "steps": [step(3, done, at_four)], "clicks": [a, b]},
        {"kind": "grow", "slice": 4, "words": "followed", "steps": [], "clicks": []},
    ]
    made: dict[str, Any] = {
        "schema": "ibis-volume/1", "created": "", "note": "", "question": "Where is it?", "models": {},
        "limits": {"looks": 4, "episode": {"max_turns": 6}}, "answer": "It is there.", "status": "ended",
        "reason": "", "slices": rows,
        "actions": [{"number": n, "by": "policy", "seconds": 1.0, **each} for n, each in enumerate(actions, 1)],
        "volume": {
            "source": "scan.nii.gz", "first": 0, "last": middle.shape[middle.axis] - 1, "gap_mm": 3.0, "key": 4,
            "count": middle.shape[middle.axis], "ml": 1.5,
        },
    }  # fmt: skip
    return made | changes


def masks() -> list[np.ndarray]:
    """Three masks: a block; the block with a hole, and a diagonal; one that touches every border."""
    first = np.zeros((H, W), bool)
    first[5:15, 8:20] = True
    second = first.copy()
    second[8:11, 12:15] = False
    second[[16, 17, 18], [21, 22, 23]] = True
    third = np.ones((H, W), bool)
    third[3:20, 4:30] = False
    return [first, second, third]


def slice_record(**changes: Any) -> dict[str, Any]:
    """The record of a run of three clicks and an end, on an axial slice with pixels twice as high as wide."""
    geometry = slice_geometry((W, H, 5), np.diag([1.5, 3.0, 5.0, 1.0]), "axial", 2)
    rgb = np.random.default_rng(1).integers(0, 255, (H, W, 3), np.uint8)
    png = io.BytesIO()
    Image.fromarray(rgb).save(png, "PNG")
    clicks = [(0.3, 0.4, True, "policy"), (0.34, 0.39, False, "person"), (0.9, 0.9, True, "policy")]
    steps = [
        {
            "number": number,
            "by": by,
            "thinking": f"thought {number}" if by == "policy" else "",
            "reply": "",
            "action": {"kind": "click", "x": x, "y": y, "positive": positive},
            "mask_rle": encode_rle(mask),
            "score": 0.5 + number / 10,
            "area_px": int(mask.sum()),
            "area_mm2": float(mask.sum() * 4.5),
            "seconds": {"policy": 1.25, "segmenter": 0.05, "total": 1.3},
        }
        for number, (mask, (x, y, positive, by)) in enumerate(zip(masks(), clicks, strict=True), 1)
    ]
    ending = copy.deepcopy(steps[-1])
    ending |= {
        "number": 4,
        "thinking": "enough",
        "action": {"kind": "terminate", "answer": "That is it."},
        "score": None,
    }
    made = {
        "schema": "ibis-trajectory/1",
        "created": "2026-01-01T00:00:00Z",
        "question": "Segment the liver",
        "answer": "That is it.",
        "status": "ended",
        "reason": "",
        "models": {"policy": {"name": "p", "sha256": "aa"}, "segmenter": {"name": "s", "sha256": "bb"}},
        "picture": {
            "source": "scan.nii.gz",
            "geometry": geometry.to_json(),
            "window": [-160, 240],
            "orientation": "radiological",
            "height": H,
            "width": W,
            "sha256": hashlib.sha256(rgb.tobytes()).hexdigest(),
            "png": base64.b64encode(png.getvalue()).decode(),
        },
        "limits": {"max_turns": 20, "max_repeats": 3},
        "steps": [*steps, ending],
    }
    return made | changes
