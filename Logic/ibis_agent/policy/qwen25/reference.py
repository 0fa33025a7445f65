"""The policy as a transformers model, for training and as a reference for inference, from the same weight files."""

from __future__ import annotations

from typing import Any

from ibis_agent.policy.device import no_progress_bar
from ibis_agent.policy.folder import PolicyFolder, wrong_tensors
from ibis_agent.policy.qwen25.build import TYPES
from ibis_agent.policy.qwen25.choice import read_generation
from ibis_agent.policy.qwen25.weights import read_tensors


def load_model(found: PolicyFolder, device: str, precision: str) -> Any:
    """The transformers model of a folder, frozen and in evaluation mode, on "cpu", "cuda" or "cuda:1".

    precision: "fp32", "bf16" or "fp16"; "int4" becomes bf16. Raises ModelError if weights and configuration disagree.
    """
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    # By its class, so that a folder's own code is never run. Quantised weights come unpacked from read_tensors.
    left_out = ("auto_map", "quantization_config", "compression_config")
    config = Qwen2_5_VLConfig.from_dict({k: v for k, v in found.config.items() if k not in left_out})
    loaded: Any  # a pair, because of output_loading_info; the annotation does not say so
    with no_progress_bar():
        loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            None,  # given a path, it would choose the files itself and add an adapter found beside them
            state_dict=dict(read_tensors(found)),
            config=config,
            dtype=TYPES["bf16" if precision == "int4" else precision],
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing or report.get("mismatched_keys"):
        # transformers would use random weights instead.
        bad = missing or sorted(str(each[0]) for each in report["mismatched_keys"])
        raise wrong_tensors(found.folder, bad)
    model.name_or_path = model.config.name_or_path = str(found.folder)  # without it peft goes online
    generation = read_generation(found.folder)
    kept = {key: getattr(config.get_text_config(), key, None) for key in ("eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(
        repetition_penalty=generation.repetition_penalty,
        suppress_tokens=list(generation.suppressed) or None,
        do_sample=False,
        **kept,
    )
    return model.to(device).eval().requires_grad_(False)
