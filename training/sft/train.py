"""Supervised fine-tuning of a policy on trajectories: LoRA or full, on one or several GPUs or a CPU.

    python -m training.sft training/configs/sft-demo.yaml
    python -m training.sft training/configs/sft-7b-lora.yaml out=runs/liver rate=2e-5
    torchrun --nproc_per_node 8 -m training.sft training/configs/sft-7b-full.yaml

The keys are explained in training/sft/settings.py. Samples are the requests that inference makes
(training/rollouts/samples.py), with the loss on the policy's replies. OUT gets curves (curves.jsonl, curves.png,
tensorboard/), `data.json` (what was used and what could not be), checkpoints, and at the end `adapter/` (LoRA; then run
python -m training.sft.merge OUT/adapter --base MODEL --out DIR) or `model/` (full), ready for use.

A run stopped by Ctrl-C or a kill resumes with the same command, with the same result as an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

import ibis_agent.policy as policies
import ibis_agent.segmenter as segmenters
import torch
from ibis_agent.errors import Cancelled, InputError, ModelError
from ibis_agent.files import check_writable_folder, write_json
from ibis_agent.policy.card import ModelCard, load_card, save_card
from ibis_agent.policy.folder import PolicyFolder
from ibis_agent.policy.language import LANGUAGES
from ibis_agent.policy.required_memory import free_bytes, gigabytes
from ibis_agent.policy.training_contract import Chat
from transformers import PrinterCallback, TrainingArguments, set_seed

from training.common.commands import ending, settings_parser
from training.common.policy_folder import (
    HISTORY,
    history_of,
    named,
    new_folder,
    quietly,
    scans_learned,
    write_policy,
)
from training.common.run_folder import SETTINGS, same_run
from training.common.settings import read_settings, settings_to_json
from training.sft.reply_trainer import Batches, Marked, Plotted, ReplyTrainer, Stopping, last_checkpoint
from training.sft.settings import FREE, SftSettings, changed_card, trainer_values
from training.sft.turn_data import Checked, Turns, check_data, frame_mismatch
from training.sft.watch import Watch, held_questions, trained_of

_LANGUAGE = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_VISION = r"model\.visual\.(blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)|merger\.mlp\.[02])"


def fine_tune(settings: SftSettings, file: str | None = None) -> Path:
    """Train, or resume, and return the folder of the adapter or of the new policy.

    `file` is named in errors about the settings. Raises IbisError before slow work if something is wrong, and
    Cancelled if the run was stopped; the same call then resumes it.
    """
    begun = time.perf_counter()
    taught = policies.trainable(settings.model)
    found = taught.inspect()
    card = changed_card(load_card(settings.model), settings.card, file)
    chat = taught.chat(card)
    device, precision = device_of(settings.device, settings.precision)
    if settings.optimiser == "adamw_8bit" and device == "cpu":
        raise InputError("adamw_8bit needs a CUDA device", file=file, remedy="Set optimiser: adamw.")
    reads = int(found.text_config.get("max_position_embeddings") or 2**31)
    longest = min(settings.longest or reads, reads)
    out = check_writable_folder(settings.out)
    arguments = _arguments(settings, device, precision, file)
    first = arguments.process_index == 0
    _check_memory(settings, found, device, precision)
    if settings.held and settings.asked and not settings.trainer.get("fsdp"):
        segmenters.find(settings.segmenter).inspect()
    skip = settings.bad_data == "skip"
    data = check_data(settings.data, settings.model, chat, card, settings.held, longest, skip)
    facts = {"model": found.sha256, "data": data.sha256}
    same_run(out / SETTINGS, settings_to_json(settings), facts, FREE, SftSettings, write=first)
    result = out / ("adapter" if settings.tune == "lora" else "model")
    if (result / HISTORY).is_file():
        print(f"{result} is already finished", flush=True)
        return result
    if first:
        for warning in filter(None, (frame_mismatch(folder, card) for folder in settings.data)):
            print(warning, file=sys.stderr)
        _report(settings, data, out)

    set_seed(settings.seed)
    model = trainable_model(settings, found, device, precision)
    checkpoint, step = last_checkpoint(out / "checkpoints", clear=first)
    if checkpoint and first:
        print(f"resuming from step {step}", flush=True)
    stopping, watch = Stopping(), _watch(settings, data, chat, card, device)
    trainer = ReplyTrainer(
        model=model,
        args=arguments,
        data_collator=Batches(chat, LANGUAGES[card.language], settings.digits),
        train_dataset=Turns(data.places, chat, card),
        eval_dataset=Turns(data.held, chat, card) if data.held else None,
        callbacks=[
            Marked(),
            stopping,
            *([watch] if watch else []),
            *([Plotted(out, card.name, step, watch)] if first else []),
        ],
    )
    trainer.remove_callback(PrinterCallback)  # Plotted prints
    with stopping.listening(), quietly():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    collapsed = watch.collapsed if watch else ""
    if watch and collapsed:
        print(f"{collapsed}; keeping the state of step {watch.best.step}", file=sys.stderr, flush=True)
    if stopping.asked and not collapsed and trainer.state.global_step < trainer.state.max_steps:
        raise Cancelled(f"stopped at step {trainer.state.global_step}; run the same command to resume")
    now = trainer.state.global_step
    if data.held and not any("eval_loss" in row and row["step"] == now for row in trainer.state.log_history):
        trainer.evaluate()
    if watch and not collapsed and settings.keep_state == "best" and (warning := watch.best.warning()):
        print(warning, file=sys.stderr, flush=True)
    _finish(settings, found, card, trainer, data, result, time.perf_counter() - begun, watch)
    return result


def _watch(settings: SftSettings, data: Checked, chat: Chat, card: ModelCard, device: str) -> Watch | None:
    """Evaluates on the held-out questions; not with sharded weights, which would have to be gathered each time."""
    if not data.held or not settings.asked or settings.trainer.get("fsdp"):
        return None
    segmenter = segmenters.open(settings.segmenter, device=device)
    questions = held_questions(data.held, settings.asked)
    return Watch(questions, segmenter, chat, card, settings.out, settings.collapse)


def trainable_model(settings: SftSettings, found: PolicyFolder, device: str, precision: str) -> Any:
    """The model with trainable weights in fp32 and all others frozen.

    Always fp32, because bf16 keeps three digits and would lose updates of a millionth.
    """
    whole = "bf16" if settings.tune == "lora" and precision == "bf16" else "fp32"
    where = "cpu" if settings.trainer.get("fsdp") else device
    model = policies.trainable(found.folder).network(found, where, whole)
    if hasattr(model, "hf_device_map"):
        del model.hf_device_map  # makes the Trainer assume a model split over devices
    if settings.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if settings.tune == "full":
        model.requires_grad_(True)
        model.model.visual.requires_grad_(settings.vision)
    else:
        from peft import LoraConfig, get_peft_model

        targets = f"({_LANGUAGE}|{_VISION})" if settings.vision else _LANGUAGE
        lora = LoraConfig(
            r=settings.lora.rank,
            lora_alpha=settings.lora.alpha,  # type: ignore[arg-type]
            lora_dropout=settings.lora.dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
        )
        # peft makes the adapters of a bf16 model in fp32 (autocast_adapter_dtype).
        with quietly():
            model = get_peft_model(model, lora)
    return model.train()


def device_of(device: str, precision: str) -> tuple[str, str]:
    """(device, precision) of this process, with "auto" resolved. Raises InputError if CUDA is missing."""
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise InputError(
            "there is no CUDA device, or torch was installed without CUDA", remedy="Set device: cpu."
        )
    found = "cpu" if device == "cpu" or not there else f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if precision == "auto":
        precision = "bf16" if found != "cpu" and torch.cuda.is_bf16_supported() else "fp32"
    return found, precision


def _arguments(settings: SftSettings, device: str, precision: str, file: str | None) -> TrainingArguments:
    known = {each.name for each in dataclasses.fields(TrainingArguments)}
    values: dict[str, Any] = {
        **trainer_values(settings),
        "output_dir": str(settings.out / "checkpoints"),
        "num_train_epochs": settings.epochs,
        "max_steps": settings.steps or -1,
        "warmup_steps": settings.warmup,
        "bf16": precision == "bf16",
        "use_cpu": device == "cpu",
        "logging_strategy": "steps",
        "save_strategy": "steps",
        "eval_strategy": "steps" if settings.evaluate_every and settings.held else "no",
        "eval_steps": settings.evaluate_every or None,
        "dataloader_num_workers": settings.workers,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "prediction_loss_only": True,
        "report_to": [],
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
        "log_level": "error",
    }
    for key in settings.trainer:
        if key not in known or key in values:
            why = "has its own key" if key in values else "is not a TrainingArguments field of transformers"
            raise InputError(f"trainer.{key} {why}", file=file, remedy="Remove it.")
    try:
        arguments = TrainingArguments(**values, **settings.trainer)
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"trainer: {error}", file=file, remedy="Correct it.") from error
    if settings.threads:
        torch.set_num_threads(settings.threads)
    # For several devices use torchrun; in one process the Trainer would split batches between them.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def _check_memory(settings: SftSettings, found: PolicyFolder, device: str, precision: str) -> None:
    """Refuse what cannot fit: weights, gradients and optimiser state; activations are not counted."""
    count = found.parameters
    if settings.tune == "lora":
        needed = count * (2 if precision == "bf16" else 4)
    else:
        needed = count * (4 + 4 + (2 if settings.optimiser == "adamw_8bit" else 8))
    if settings.trainer.get("fsdp"):
        needed //= max(1, int(os.environ.get("WORLD_SIZE", 1)))
    free = free_bytes(device)
    if free is not None and needed > free:
        raise ModelError(
            f"training needs at least {gigabytes(needed)} of memory on {device}",
            file=settings.model,
            value=f"{gigabytes(free)} free",
            remedy="Set tune: lora, or use several devices (see training/README.md).",
        )


def _report(settings: SftSettings, data: Checked, out: Path) -> None:
    write_json(out / "data.json", data.to_json())
    for each in data.refused[:20]:
        print(f"left out: {each}", file=sys.stderr)
    if len(data.refused) > 20:
        print(f"left out: {len(data.refused) - 20} more, see {out / 'data.json'}", file=sys.stderr)
    if settings.held and not data.held:
        print(
            "nothing is held out, as all questions are about one scan: a collapse will not be noticed",
            file=sys.stderr,
        )
    print(
        f"{data.questions} questions about {data.pictures} pictures: {len(data.places)} turns to learn, "
        f"{len(data.held)} held out, {data.mistakes} shown without loss, {len(data.refused)} left out",
        flush=True,
    )


def _finish(
    settings: SftSettings,
    found: PolicyFolder,
    card: ModelCard,
    trainer: ReplyTrainer,
    data: Checked,
    result: Path,
    seconds: float,
    watch: Watch | None,
) -> None:
    kept, asked = trainer.state.global_step, dict[str, float]()
    if watch is not None:
        asked = watch.figures
        if watch.best.step >= 0 and (settings.keep_state == "best" or watch.collapsed):
            kept, asked = watch.best.step, watch.best.figures
            watch.best.restore(trained_of(trainer.model))
    model = trainer.accelerator.unwrap_model(trainer.model)
    # All processes take part in gathering sharded weights.
    state = trainer.accelerator.get_state_dict(trainer.model) if trainer.args.world_size > 1 else None
    if trainer.args.process_index != 0:
        return
    last = {key: value for row in trainer.state.log_history for key, value in row.items()}
    steps = trainer.state.global_step
    how = f"LoRA of rank {settings.lora.rank}" if settings.tune == "lora" else "all weights"
    origin = (
        f"Supervised fine-tuning ({how}, {kept} steps, seed {settings.seed}) of {load_card(settings.model).name} "
        f"({found.sha256[:12]}) on {data.questions} questions about {data.pictures} pictures."
    )
    history = history_of(
        "sft",
        found,
        load_card(settings.model).name,
        settings=settings_to_json(settings),
        data=data.to_json() | {"refused": len(data.refused)},
        steps=steps,
        kept_step=kept,
        **({"collapsed": watch.collapsed} if watch is not None and watch.collapsed else {}),
        scans=scans_learned(settings.model, data.scans),
        seconds=round(seconds, 1),
        figures={
            k: round(float(v), 5)
            for k, v in {**last, **asked}.items()
            if k in ("loss", "eval_loss", "eval_accuracy") or k in asked
        },
    )
    new = named(card, settings.name, origin)
    if settings.tune == "full":
        write_policy(model, found, result, new, history, state)
    else:
        with new_folder(result) as folder:
            model.save_pretrained(folder, **({"state_dict": state} if state is not None else {}))
            save_card(new, folder)
            write_json(folder / HISTORY, history)
    print(f"{result}", flush=True)


def main() -> None:
    parser = settings_parser("sft", __doc__, "sft-demo.yaml", "steps=200 lora.rank=16")
    args = parser.parse_args()
    with ending():
        fine_tune(read_settings(args.config, SftSettings, args.changes), str(args.config))
