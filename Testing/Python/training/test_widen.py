"""A segmenter made wider, and a policy made deeper, answer as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sam2")

from ibis_agent.errors import InputError
from omegaconf import OmegaConf
from transformers import Qwen2_5_VLForConditionalGeneration

from training.common import questions
from training.demo import deepen
from training.demo.empty_policy import make_config, make_tokenizer, save_folder
from training.demo.policy_turns import grid_of, patches_of
from training.demo.train_segmenter import CONFIG, build, decode, encode
from training.demo.widen import widened


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
    masks, scores, _presence = said[0]
    assert masks.std() > 0 and scores.std() > 0
    for before, after in zip(*said, strict=True):
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


@pytest.fixture
def policy(tmp_path):
    torch.manual_seed(3)
    tokenizer = make_tokenizer(questions.corpus(np.random.default_rng(0), 200))
    model = Qwen2_5_VLForConditionalGeneration(make_config(tokenizer, 64, 2, 2))
    save_folder(model, tokenizer, tmp_path / "policy" / "model")
    return tmp_path / "policy"


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["deepen", *map(str, arguments)])
    deepen.main()


def seen(folder):
    tower = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).float().eval().model.visual
    rows, columns = grid_of(1.0, True)
    picture = torch.randn(1, 3, rows * 24, columns * 24, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        found = tower(patches_of(picture), grid_thw=torch.tensor([[1, rows * 2, columns * 2]]))
    return found.pooler_output, tower


def test_a_deeper_policy_sees_the_same_and_can_learn_in_every_layer(policy, tmp_path, monkeypatch):
    run(monkeypatch, policy, "--depth", 4, "--out", tmp_path / "deeper")
    (before, _), (after, tower) = seen(policy / "model"), seen(tmp_path / "deeper")
    assert before.std() > 0 and len(tower.blocks) == 4
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    for block in tower.blocks[2:]:
        assert block.attn.proj.weight.abs().max() == 0 < block.attn.qkv.weight.abs().max()
    assert (tmp_path / "deeper" / "tokenizer.json").is_file()


def test_a_depth_that_is_not_more_and_a_folder_that_is_no_policy_are_refused(policy, tmp_path, monkeypatch):
    for folder, depth, words in ((policy, 2, "as many layers"), (tmp_path, 4, "config.json is missing")):
        with pytest.raises(SystemExit, match=words):
            run(monkeypatch, folder, "--depth", depth, "--out", tmp_path / "deeper")
        assert not (tmp_path / "deeper").exists()
