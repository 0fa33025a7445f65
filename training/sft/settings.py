"""The settings of a fine-tuning run; each attribute is a key of the YAML files in configs/."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ibis_agent.errors import InputError, ModelError
from ibis_agent.policy.card import ModelCard, card_from_json, card_to_json

from training.common.settings import setting

# Keys that do not change the result, so they may differ when a run is resumed.
FREE = ("log_every", "save_every", "keep", "workers", "threads", "evaluate_every", "out")


@dataclass(frozen=True)
class LoraSettings:
    """rank: of the update of each weight matrix; alpha: the update is scaled by alpha / rank."""

    rank: int = setting(8, least=1, most=1024)
    alpha: float = setting(16.0, above=0)
    dropout: float = setting(0.0, least=0, most=0.9)


@dataclass(frozen=True)
class SftSettings:
    """A supervised fine-tuning run.

    Attributes:
        model: folder of the policy to start from.
        data: folders made by training.trajectories.
        out: a new folder, or that of the same run to resume it.
        name: name of the new policy; empty: derived from the old one.
        tune: "lora" trains small added matrices, "full" the weights themselves.
        vision: train the vision tower too, not only the language model.
        card: changes to the model card for the new policy, such as {history: 4}.
        epochs, steps: length of the training; steps above 0 takes precedence.
        batch, accumulate: samples at a time per device, and batches per optimiser step.
        rate, schedule, warmup: peak learning rate, its schedule, and the share of steps spent warming up.
        clip: greatest norm of the gradient.
        digits: weight of the digits of coordinates in the loss; other tokens have 1.
        optimiser: "adamw_8bit" keeps its state in a quarter of the memory (CUDA, bitsandbytes).
        precision: "bf16" computes in bf16 and keeps trainable weights in fp32; "auto": bf16 on CUDA devices.
        checkpointing: recompute activations instead of storing them.
        longest: most tokens of a sample; 0: the policy's context length.
        held: share of the scans held out.
        asked: held-out questions answered, with the segmenter, at every evaluation; 0: none.
        segmenter: a checkpoint for these; None for the demo segmenter.
        keep_state: which state becomes the new policy: the "best" on these questions (not the initial
            one), or the "last".
        collapse: stop when their quality falls below this share of the best; 0: never.
        evaluate_every, save_every, log_every: in steps; evaluate_every 0 evaluates at the end only.
        keep: checkpoints kept; at least two, so that a kill while one is written leaves the other.
        bad_data: "skip" lists unusable data in data.json and continues, "refuse" stops at the first.
        workers: processes that prepare pictures; threads: of the CPU, 0 for torch's default.
        trainer: further arguments of transformers' TrainingArguments, such as {fsdp: true}.
    """

    model: Path
    data: tuple[Path, ...]
    out: Path
    name: str = ""
    tune: Literal["lora", "full"] = "lora"
    lora: LoraSettings = LoraSettings()
    vision: bool = False
    card: dict[str, Any] = field(default_factory=dict)
    epochs: float = setting(1.0, above=0)
    steps: int = setting(0, least=0)
    batch: int = setting(1, least=1)
    accumulate: int = setting(1, least=1)
    rate: float = setting(1e-5, above=0, most=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = setting(0.03, least=0, most=0.9)
    weight_decay: float = setting(0.0, least=0, most=10)
    clip: float = setting(1.0, above=0)
    digits: float = setting(1.0, above=0, most=1000)
    optimiser: Literal["adamw", "adamw_8bit"] = "adamw"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    checkpointing: bool = False
    longest: int = setting(0, least=0)
    held: float = setting(0.05, least=0, most=0.9)
    asked: int = setting(16, least=0)
    segmenter: Path | None = None
    keep_state: Literal["best", "last"] = "best"
    collapse: float = setting(0.5, least=0, most=1)
    evaluate_every: int = setting(0, least=0)
    save_every: int = setting(200, least=1)
    log_every: int = setting(10, least=1)
    keep: int = setting(2, least=2)
    bad_data: Literal["skip", "refuse"] = "skip"
    workers: int = setting(0, least=0, most=256)
    threads: int = setting(0, least=0, most=1024)
    seed: int = setting(1, least=0, most=2**31)
    trainer: dict[str, Any] = field(default_factory=dict)


def trainer_values(settings: SftSettings) -> dict[str, Any]:
    """The settings that transformers' TrainingArguments and LLaMA-Factory name alike."""
    return {
        "per_device_train_batch_size": settings.batch,
        "per_device_eval_batch_size": settings.batch,
        "gradient_accumulation_steps": settings.accumulate,
        "learning_rate": settings.rate,
        "lr_scheduler_type": "constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.clip,
        "optim": "adamw_torch" if settings.optimiser == "adamw" else "adamw_bnb_8bit",
        "seed": settings.seed,
        "logging_steps": settings.log_every,
        "save_steps": settings.save_every,
        "save_total_limit": settings.keep,
    }


def changed_card(card: ModelCard, changes: dict[str, Any], file: str | None = None) -> ModelCard:
    """The card with the settings' changes; `prompts` may contain only some of the texts.

    Raises InputError naming the key.
    """
    values = json.loads(json.dumps(card_to_json(card)))  # tuples are lists there
    prompts = changes.get("prompts")
    if isinstance(prompts, dict):
        changes = {**changes, "prompts": {**values["prompts"], **prompts}}
    try:
        return card_from_json({**values, **changes})
    except ModelError as error:
        raise InputError(
            f"card: {error.problem}", file=file, value=error.value, remedy=error.remedy
        ) from error
