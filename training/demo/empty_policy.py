"""The untrained demo policy: its card, tokenizer, Qwen2.5-VL configuration and folder.

It is trained by training.demo.train_policy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ibis_agent.actions import Click
from ibis_agent.errors import InputError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from training.common import questions

PATCH = 12  # pixels; a visual token is a cell of two by two patches
TOKENS = 64  # most visual tokens of a picture
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Parts of every reply, one token each: a third fewer tokens per reply.
PIECES = (
    "<think>",
    "</think>\n<action>",
    "</action>",
    "</action>\n<answer>",
    "</answer>",
    "Positive Point (",
    "Negative Point (",
    "Terminate",
    "assistant\n",
    "user\n",
    "system\n",
)
DEMO_CARD: dict[str, Any] = {
    "name": "IBISSlicer demo policy",
    "note": "For demonstration on phantoms and simple CT, not for patients.",
    "orientation": "radiological",
    "window": [-160, 240],
    "frame": "body",
    "overlay_colour": [34, 139, 34],
    "overlay_alpha": 0.4,
    "history": 0,
    "max_new_tokens": 96,
    "max_question": 300,
    "script": "LATIN",
    "min_pixels": TOKENS * (2 * PATCH) ** 2,
    "max_pixels": TOKENS * (2 * PATCH) ** 2,
    "cell": 2 * PATCH,
    "prompts": {
        "system": "You segment medical pictures by clicking.",
        "first": "{question}",
        "refine": "The mask so far is green. {question}",
        "reject": "Not {action}.",
        "retry": "Reply again.",
    },
    "vocabulary": questions.VOCABULARY,
    "modalities": ["CT"],
    "planes": ["axial"],
    "regions": ["trunk"],
}


def make_tokenizer(texts: list[str], size: int = 640) -> Tokenizer:
    """Byte-level BPE over `texts` with Qwen's control tokens; every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in PIECES])
    return tokenizer


def make_config(tokenizer: Tokenizer, width: int = 128, layers: int = 4, depth: int = 8) -> Qwen2_5_VLConfig:
    """A small Qwen2.5-VL. rope_theta 20: with the usual million, neighbouring visual tokens look alike."""
    token = {t: token_id(tokenizer, t) for t in SPECIAL}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "num_key_value_heads": width // 32,
            "max_position_embeddings": 4096,
            "rope_theta": 20.0,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 20.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": token["<|endoftext|>"],
            "eos_token_id": token["<|im_end|>"],
            "pad_token_id": token["<|endoftext|>"],
        },
        vision_config={
            "depth": depth,
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_heads": width // 32,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": width,
            "window_size": 8 * PATCH,
            "fullatt_block_indexes": list(range(depth)),
        },
        image_token_id=token["<|image_pad|>"],
        video_token_id=token["<|video_pad|>"],
        vision_start_token_id=token["<|vision_start|>"],
        vision_end_token_id=token["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def token_id(tokenizer: Tokenizer, text: str) -> int:
    """The id of a token. Raises ValueError if `text` is not one token."""
    number = tokenizer.token_to_id(text)
    if number is None:
        raise ValueError(f"the tokenizer has no token {text!r}")
    return int(number)


def weights_folder(policy: Path) -> Path:
    """The folder with the weights of a policy made by training.demo.train_policy: `policy` or its `model`.

    Raises InputError.
    """
    for folder in (policy, policy / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise InputError("is not a policy folder: config.json is missing", file=policy)


def save_folder(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: Tokenizer, folder: Path, **card: Any
) -> None:
    """Write a Qwen2.5-VL folder: configuration, safetensors (bf16), tokenizer, image processor, card."""
    folder.mkdir(parents=True, exist_ok=True)
    model.bfloat16().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "additional_special_tokens": list(SPECIAL[1:]),
            "clean_up_tokenization_spaces": False,
        },
    )
    _write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": PATCH,
            "merge_size": 2,
            "temporal_patch_size": 2,
            "min_pixels": DEMO_CARD["min_pixels"],
            "max_pixels": DEMO_CARD["max_pixels"],
            "size": {"shortest_edge": DEMO_CARD["min_pixels"], "longest_edge": DEMO_CARD["max_pixels"]},
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    )
    _write(folder / "ibis_model.json", {**DEMO_CARD, "drafts": drafts(), **card})


def drafts() -> list[str]:
    """Replies of every kind, as drafts for speculative decoding; their coordinates do not matter."""
    add, away = Click(0.5, 0.5), Click(0.5, 0.5, False)
    kinds = (
        lambda n: questions.first_reply(n, add),
        lambda n: questions.correction_reply(n, add),
        lambda n: questions.correction_reply(n, away),
        questions.done_reply,
        questions.absent_reply,
    )
    return [kind(name) for kind in kinds for name in questions.WORDS]


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
