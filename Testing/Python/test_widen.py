"""A segmenter made wider answers as before."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sam2")

from ibis_agent.errors import InputError  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from training.train_segmenter import CONFIG, build, decode, encode  # noqa: E402
from training.widen import widened  # noqa: E402


def narrower(folder: Path, width: int, side: int) -> Path:
    """The demo's architecture at another `d_model` and picture size."""
    settings = OmegaConf.load(CONFIG)
    model = settings.model
    model.image_size = side
    model.image_encoder.neck.d_model = model.image_encoder.neck.position_encoding.num_pos_feats = width
    model.memory_attention.d_model = model.memory_attention.layer.d_model = width
    for kind in ("self_attention", "cross_attention"):
        model.memory_attention.layer[kind].embedding_dim = width
    model.memory_encoder.in_dim = model.memory_encoder.fuser.layer.dim = width
    model.memory_encoder.mask_downsampler.embed_dim = width
    file = folder / f"{width}.yaml"
    OmegaConf.save(settings, file)
    return file


@torch.inference_mode()
def test_a_wider_segmenter_draws_the_same_masks_with_the_same_scores(tmp_path):
    torch.manual_seed(3)
    narrow, wide = (build(narrower(tmp_path, width, 128)).eval() for width in (32, 64))
    wide.load_state_dict(widened(narrow.state_dict(), wide))
    pictures = torch.randn(1, 3, 128, 128)
    points = torch.tensor([[[30.0, 50.0], [90.0, 20.0]]])
    prior = torch.randn(1, 1, 32, 32) * 4
    said = []
    for model in (narrow, wide):
        features, _ = encode(model, pictures)
        labels = torch.tensor([[1, 0]], dtype=torch.int)
        said.append(decode(model, features, torch.zeros(1, dtype=torch.long), points, labels, prior))
    for before, after in zip(*said, strict=True):
        assert before.std() > 0
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


def test_the_two_halves_of_a_doubled_channel_can_learn_different_things(tmp_path):
    torch.manual_seed(3)
    narrow, wide = (build(narrower(tmp_path, width, 128)) for width in (32, 64))
    weight = widened(narrow.state_dict(), wide)[
        "sam_mask_decoder.transformer.layers.0.self_attn.q_proj.weight"
    ]
    assert not torch.allclose(weight[:, 0::2], weight[:, 1::2])


def test_a_width_that_is_not_the_double_is_refused(tmp_path):
    narrow, wide = (build(narrower(tmp_path, width, 128)) for width in (32, 96))
    with pytest.raises(InputError, match="only doubling"):
        widened(narrow.state_dict(), wide)
