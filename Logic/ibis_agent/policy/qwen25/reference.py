"""The same policy as a transformers model: what training changes, and what inference is compared with.

Its weights come from exactly the files that inference reads (weights).
"""

from __future__ import annotations

from typing import Any

from ibis_agent.errors import ModelError
from ibis_agent.policy.folder import PolicyFolder
from ibis_agent.policy.machine import no_progress_bar
from ibis_agent.policy.qwen25.build import TYPES
from ibis_agent.policy.qwen25.choice import read_generation
from ibis_agent.policy.qwen25.weights import read_tensors


def load_model(found: PolicyFolder, device: str, precision: str) -> Any:
    """The transformers model of a folder, frozen and in evaluation mode, on "cpu", "cuda" or "cuda:1".

    precision: "fp32", "bf16" or "fp16"; for "int4" it is bf16. Raises ModelError for weights that do not fit
    the configuration.
    """
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    # The configuration by its class: a folder's own code is never looked for, whatever its files say.
    # What was quantised comes unpacked from read_tensors.
    left_out = ("auto_map", "quantization_config", "compression_config")
    config = Qwen2_5_VLConfig.from_dict({k: v for k, v in found.config.items() if k not in left_out})
    loaded: Any  # with output_loading_info a pair, which the library's annotation does not say
    with no_progress_bar():
        loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            None,  # by a path it would choose the files itself, and take up an adapter that lies beside them
            state_dict=dict(read_tensors(found)),
            config=config,
            dtype=TYPES["bf16" if precision == "int4" else precision],
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing or report.get("mismatched_keys"):
        # transformers would go on with random numbers in their place.
        bad = missing or sorted(str(each[0]) for each in report["mismatched_keys"])
        raise ModelError(
            f"{len(bad)} tensors that the configuration asks for are missing or of another size",
            file=found.folder,
            value=bad[0],
            remedy="Take config.json and the weights from the same model.",
        )
    model.name_or_path = model.config.name_or_path = str(
        found.folder
    )  # peft asks the network where there is none
    generation = read_generation(found.folder)
    kept = {key: getattr(config.get_text_config(), key, None) for key in ("eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(
        repetition_penalty=generation.repetition_penalty,
        suppress_tokens=list(generation.suppressed) or None,
        do_sample=False,
        **kept,
    )
    return model.to(device).eval().requires_grad_(False)
