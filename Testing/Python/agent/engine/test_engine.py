"""What the worker's requests do with models and files, without a process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ibis_agent.engine import engine as engines
from ibis_agent.engine.script import ScriptedEngine
from ibis_agent.errors import InputError
from ibis_agent.policy.card import ModelCard

ADDRESS = "nninteractive:http://gpu.example.org:1527"
IMAGE = {"shape": [12, 10, 3], "affine": np.eye(4).tolist(), "axis": 2, "index": 1, "window": [0, 1]}


def test_a_segmenter_elsewhere_is_opened_only_with_the_host_that_the_person_agreed_to() -> None:
    engine = engines.Engine()
    with pytest.raises(InputError, match="slices would be sent to another machine"):
        engine.do({"request": "load", "segmenter": ADDRESS}, lambda *_, **__: None, lambda: False)


def test_the_yes_goes_to_the_segmenter_and_another_yes_opens_it_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    class Named:
        precision = "fp32"

        def __init__(self) -> None:
            self.identity, self.card = {"name": "stand-in"}, ModelCard()

    def open_segmenter(where: str, config: Any, device: str, agreed: str) -> Named:
        opened.append(agreed)
        return Named()

    monkeypatch.setattr(engines.segmenters, "open", open_segmenter)
    monkeypatch.setattr(engines.policies, "open", lambda *_: Named())
    engine = engines.Engine()
    for agreed in ("gpu.example.org", "gpu.example.org", "other.example.org"):
        request = {"request": "load", "segmenter": ADDRESS, "send_slices_to": agreed}
        engine.do(request, lambda *_, **__: None, lambda: False)
    assert opened == ["gpu.example.org", "other.example.org"]


def test_the_masks_that_came_with_a_question_are_removed_when_they_were_read(tmp_path: Path) -> None:
    engine = ScriptedEngine({"replies": ["unused"]}, channel=None)  # type: ignore[arg-type]
    engine.folder = tmp_path
    tell: Any = lambda *_, **__: None  # noqa: E731
    engine.do({"request": "load"}, tell, lambda: False)
    plane = np.zeros((1, 10, 12), np.int16)
    start, out = plane.copy(), plane.copy()
    start[0, 2:6, 2:6], out[0, 4:8, 4:8] = 1, 1
    for name, voxels in (("image", plane), ("start", start), ("exclude", out)):
        np.save(tmp_path / f"{name}.npy", voxels)
    head = engine.do(
        {
            "request": "ask",
            "session": "s",
            "question": "Segment it.",
            "image": {**IMAGE, "file": str(tmp_path / "image.npy")},
            "start": {"file": str(tmp_path / "start.npy"), "name": "A"},
            "exclude": {"file": str(tmp_path / "exclude.npy"), "name": "B"},
        },
        tell,
        lambda: False,
    )["head"]
    assert head["start"]["name"] == "A" and head["excluded"]["name"] == "B"
    assert list(tmp_path.iterdir()) == []
