"""Embedding beside the policy: on a processor as ever, on a card on a stream of its own (a stand-in for torch.cuda)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from ibis_agent.run.single_slice import SingleSlice
from ibis_agent.scan.frame import Frame
from ibis_agent.segmenter.contract import PictureSegmenter
from ibis_agent.segmenter.framed import FramedSegmenter
from ibis_agent.segmenter.sam2.beside import on_own_stream

CARD = torch.device("cuda:0")


@dataclass
class Stream:
    name: str
    told: list[str]

    def wait_stream(self, other: Stream) -> None:
        self.told.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self.told.append(f"{self.name} is finished")


@dataclass
class Cuda:
    """The part of torch.cuda that is used, writing down what is asked of it."""

    told: list[str] = field(default_factory=list)
    current: Any = None

    def current_stream(self, _device: Any) -> Stream:
        self.current = self.current or Stream("common", self.told)
        return self.current

    def Stream(self, _device: Any) -> Stream:  # noqa: N802 - torch's name
        return Stream("own", self.told)

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Any:
        before, self.current = self.current, stream
        yield
        self.current = before


@dataclass
class Tensor:
    told: list[str]

    def record_stream(self, stream: Stream) -> None:
        self.told.append(f"kept for {stream.name}")


def test_the_work_is_done_on_its_own_stream_finished_and_kept_for_the_other() -> None:
    cuda = Cuda()

    def work() -> list[Tensor]:
        cuda.told.append(f"computed on {cuda.current_stream(CARD).name}")
        return [Tensor(cuda.told)]

    on_own_stream(work, lambda made: made, CARD, cuda)
    assert cuda.told == [
        "own waits for common",
        "computed on own",
        "own is finished",
        "kept for common",
    ]
    assert cuda.current_stream(CARD).name == "common"


class Told(PictureSegmenter):
    """A segmenter that says which way it was asked."""

    identity: dict[str, str] = {}  # noqa: RUF012
    can = None

    def embed(self, rgb: np.ndarray) -> str:
        return f"embed {rgb.shape}"


class Beside(Told):
    def embed_beside(self, rgb: np.ndarray) -> str:
        return f"beside {rgb.shape}"


@pytest.mark.parametrize(("segmenter", "said"), [(Told(), "embed"), (Beside(), "beside")])
def test_a_run_prepares_beside_where_its_segmenter_can_also_through_a_frame(
    segmenter: Any, said: str
) -> None:
    picture = type("P", (), {"rgb": np.zeros((8, 9, 3), np.uint8)})()
    for frame, size in ((None, (8, 9, 3)), (Frame(1, 2, 5, 6, 8, 9), None)):
        slices: Any = type("S", (), {"first": 0, "frame": frame, "picture": lambda _self, _n: picture})()
        alone = SingleSlice(slices, segmenter, (8, 9))
        alone.prepare()
        assert alone.embedding().startswith(said)
        if size:
            assert alone.embedding() == f"{said} {size}"
        assert isinstance(alone.segmenter, FramedSegmenter) == (frame is not None)
