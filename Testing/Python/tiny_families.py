"""Tiny random models of several families as policy folders, for the generic way and for servers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import transformers
from ibis_agent.policy.card import ModelCard, save_card
from tiny_models import DEMO_PROMPTS, make_tiny_tokenizer

CARD = ModelCard(name="tiny", prompts=DEMO_PROMPTS, max_new_tokens=12, history=1)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}PICTURE{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = CHATML.replace("PICTURE", "<|vision_start|><|image_pad|><|vision_end|>")
TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 1, "max_position_embeddings": 4096}


def tokenizer_in(folder: Path, template: str, *more: str, tags: Sequence[str] = ()) -> Any:
    """more: further control tokens. tags: tokens of their own that are ordinary text, as Qwen3-VL has <tool_call>."""
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_special_tokens(list(more))
    tokenizer.add_tokens(list(tags))
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    (folder / "chat_template.jinja").write_text(template)
    return tokenizer


def saved(model: Any, folder: Path) -> Path:
    model.generation_config.pad_token_id = None
    model.save_pretrained(folder)
    save_card(CARD, folder)
    return folder


def qwen3_vl(folder: Path) -> Path:
    tags = [f"<{slash}{name}>" for name in ("tool_call", "think") for slash in ("", "/")]
    tokenizer = tokenizer_in(folder, QWEN, tags=tags)
    token = tokenizer.token_to_id
    config = transformers.Qwen3VLConfig(
        text_config={
            **TEXT, "vocab_size": tokenizer.get_vocab_size(), "head_dim": 32, "eos_token_id": token("<|im_end|>"),
            "rope_parameters": {"rope_type": "default", "rope_theta": 20.0, "mrope_section": [4, 6, 6]},
        },
        vision_config={
            "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
            "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    settings = {"image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": 16, "merge_size": 2}
    settings |= {"temporal_patch_size": 2, "size": {"shortest_edge": 4096, "longest_edge": 65536}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return saved(transformers.Qwen3VLForConditionalGeneration(config), folder)


def qwen2_vl(folder: Path) -> Path:
    token = tokenizer_in(folder, QWEN).token_to_id
    config = transformers.Qwen2VLConfig(
        text_config={
            **TEXT, "vocab_size": 400, "eos_token_id": token("<|im_end|>"),
            "rope_parameters": {"rope_type": "default", "rope_theta": 20.0, "mrope_section": [4, 6, 6]},
        },
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 14},
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    settings = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 50176}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return saved(transformers.Qwen2VLForConditionalGeneration(config), folder)


def llava(folder: Path) -> Path:
    """A family whose template knows no system message."""
    template = CHATML.replace("PICTURE", "<image>\n").replace(
        "{% for m in messages %}",
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}",
        1,
    )
    token = tokenizer_in(folder, template, "<image>").token_to_id
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **TEXT, "vocab_size": 401, "eos_token_id": token("<|im_end|>")},
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 56, "patch_size": 14, "projection_dim": 32,
        },
        image_token_index=token("<image>"), vision_feature_layer=-1, tie_word_embeddings=True,
    )  # fmt: skip
    settings = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 56}, "crop_size": 56}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    kept = {
        "processor_class": "LlavaProcessor",
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
    }
    (folder / "processor_config.json").write_text(json.dumps({**kept, "num_additional_image_tokens": 1}))
    return saved(transformers.LlavaForConditionalGeneration(config), folder)


FAMILIES: dict[str, Callable[[Path], Path]] = {"qwen3_vl": qwen3_vl, "qwen2_vl": qwen2_vl, "llava": llava}
