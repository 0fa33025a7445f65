"""Tiny random models for the tests, made from their configurations in a second.

They have the real architectures and file layouts and no knowledge at all: for loading, equality and errors,
never for quality.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ibis_agent.policy.prompts import Prompts

if TYPE_CHECKING:
    from ibis_agent.policy.contract import Turn
    from ibis_agent.policy.qwen25.local import LocalPolicy

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Short, as the demonstration policies' own: every token costs a tiny model time.
DEMO_PROMPTS = Prompts(
    system="Segment by clicks.",
    first="{question}",
    refine="Turn {number}. The mask so far is green. {question}",
    reject="Not {action}.",
    retry="Reply again.",
)

_CORPUS = (
    "<think>The liver is the large organ on the left of the picture. I click near its middle.</think>\n",
    "<action>Positive Point (0.3125, 0.4375)</action> <action>Negative Point (0.5000, 0.2500)</action>",
    "<action>Terminate</action>\n<answer>The spleen is not in this picture.</answer>",
    "Segment the liver. Is there a lesion? Where is the left kidney, the right kidney, the aorta, the spine?",
    "system user assistant The mask so far is green. Leber, bazo, fegato, كبد, 肝臓",
)


def make_tiny_tokenizer(vocabulary: int = 400) -> Any:
    """A byte-level BPE `tokenizers.Tokenizer` with Qwen's special tokens, trained on a few sentences."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    # Words, single digits, punctuation and white space apart, as Qwen's tokenizer has them.
    words = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocabulary - len(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def make_tiny_policy(folder: Path, *, seed: int = 0, dtype: str = "bfloat16", **text_options: Any) -> Path:
    """Save a random Qwen2.5-VL (0.2 M parameters) with tokenizer and image processor as a policy folder.

    `text_options` go into the text configuration. The folder has no model card. Returns the folder.
    """
    import torch
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = make_tiny_tokenizer()
    token = tokenizer.token_to_id
    text = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        # Low theta: with the usual million, W positions of small grids are invisible to a head of 32.
        "rope_parameters": {"rope_type": "default", "rope_theta": 20.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
        "initializer_range": 0.2,
        **text_options,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": 0.2,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[token("<|im_end|>"), token("<|endoftext|>")],
        pad_token_id=token("<|endoftext|>"),
    )
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 28 * 28 * 4,
        "max_pixels": 28 * 28 * 64,
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def teach(policy: LocalPolicy, turn: Turn, text: str) -> None:
    """Bend the output layer until the policy answers this one turn with `text` (then stops)."""
    import numpy as np
    import torch
    from ibis_agent.policy.messages import build_messages, pictures_of
    from ibis_agent.policy.qwen25.network import Dense
    from transformers import DynamicCache

    request = policy.chat.encode(
        build_messages(policy.card, turn), pictures_of(policy.card, turn), reply=text
    )
    with torch.no_grad():
        hidden = policy.model.model(
            input_ids=torch.from_numpy(request.ids)[None],
            position_ids=torch.from_numpy(request.positions)[:, None],
            pixel_values=torch.from_numpy(request.pixels),
            image_grid_thw=torch.from_numpy(request.grid),
            past_key_values=DynamicCache(),
        ).last_hidden_state[0]
        seen, wanted = hidden[np.flatnonzero(request.learn) - 1].double(), request.ids[request.learn]
        goal = torch.zeros(len(wanted), policy.model.lm_head.out_features, dtype=torch.float64)
        goal[torch.arange(len(wanted)), wanted] = 1
        head = torch.nn.Linear(seen.shape[1], goal.shape[1], bias=False)
        head.weight.copy_((torch.linalg.pinv(seen) @ goal).T)
        policy.model.lm_head = head.requires_grad_(False)
        policy.network.language.head = Dense(head.weight)
