"""Weights of 8 bits come back as they were, up to half a step, and a segmenter loads them as any others."""

from __future__ import annotations

from pathlib import Path

import torch
from ibis_agent.segmenter.sam2.checkpoint import read_weights
from ibis_agent.segmenter.sam2.int8_storage import packed, unpacked
from safetensors.torch import save_file


def test_each_row_keeps_its_own_precision() -> None:
    made = torch.Generator().manual_seed(1)
    rows = torch.randn(64, 3, 16, generator=made) * torch.logspace(-5, 2, 64)[:, None, None]
    state = {"large": rows, "small": torch.randn(7, generator=made), "count": torch.tensor([3])}
    back = unpacked(packed(state))
    assert set(back) == set(state)
    step = rows.abs().amax((1, 2), keepdim=True) / 127
    assert bool(((back["large"] - rows).abs() <= 0.6 * step + 1e-6).all())
    assert torch.equal(back["small"], state["small"].half())
    assert torch.equal(back["count"], state["count"])


def test_a_row_of_zeros_stays_one() -> None:
    assert not unpacked(packed({"large": torch.zeros(64, 64)}))["large"].any()


def test_weights_that_were_never_packed_come_back_as_they_are() -> None:
    state = {"a": torch.ones(64, 64, dtype=torch.float16), "b.scale": torch.ones(3)}
    back = unpacked(state)
    assert all(back[name] is value for name, value in state.items())


def test_a_file_is_read_as_any_other(tmp_path: Path) -> None:
    state = {"model_part.weight": torch.randn(80, 40)}
    save_file(packed(state), tmp_path / "w.safetensors")
    read = read_weights(tmp_path / "w.safetensors")
    assert set(read) == set(state)
    assert read["model_part.weight"].dtype == torch.float16
