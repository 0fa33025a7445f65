"""Export trajectories for LLaMA-Factory: the samples of training.sft, for that package's trainer.

    python -m training.sft.llamafactory training/configs/sft-7b-lora.yaml --out build/llamafactory
    llamafactory-cli train build/llamafactory/sft.yaml          # in its own environment, see training/README.md

OUT gets `ibis.json` (one turn per sample, in its "sharegpt" form), `dataset_info.json`, `sft.yaml`, `card/` with the
model card of the resulting policy, and `pictures/` as the policy sees them: with the mask overlaid, and in the size of
the policy's image processor, because the package would resize them differently. Its loader drops samples that break
its rules with only a warning, so they are checked here (`check_export`).

The loader of version 0.9.5 gives the same tokens, labels and pixels as training.rollouts.samples, except for a line
break after the end of a reply, which it also trains on (Testing/Python/training/test_llamafactory.py tests this if the
package is installed).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ibis_agent.policy as policies
import numpy as np
import yaml
from ibis_agent.errors import InputError
from ibis_agent.files import atomic_write, write_json, write_text
from ibis_agent.policy.card import ModelCard, load_card, save_card
from ibis_agent.policy.messages import build_messages, pictures_of
from ibis_agent.policy.training_contract import Chat

from training.common.commands import ending, settings_parser
from training.common.policy_folder import check_free, new_folder
from training.common.settings import read_settings
from training.rollouts.samples import reply_of, turn_of
from training.sft.settings import SftSettings, changed_card, trainer_values
from training.sft.turn_data import Place, check_data, read_picture, read_record
from training.trajectories.parts import write_png

NAME = "ibis"
MARKER = "<image>"
_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


def export(settings: SftSettings, out: Path, file: str | None = None) -> dict[str, int]:
    """Write the folder and return its numbers of "samples", "held" (samples held out) and "pictures".

    `out` is written completely or not at all. Raises IbisError.
    """
    check_free(out)
    taught = policies.trainable(settings.model)
    found = taught.inspect()
    card = changed_card(load_card(settings.model), settings.card, file)
    chat = taught.chat(card)
    reads = int(found.text_config.get("max_position_embeddings") or 2**31)
    longest = min(settings.longest or reads, reads)
    skip = settings.bad_data == "skip"
    data = check_data(settings.data, settings.model, chat, card, settings.held, longest, skip)
    for each in data.refused:
        print(f"left out: {each}", file=sys.stderr)
    if settings.digits != 1:
        print("LLaMA-Factory gives all tokens the same weight: `digits` is ignored", file=sys.stderr)
    with new_folder(out) as folder:
        (folder / "pictures").mkdir()
        sets = {NAME: data.places, f"{NAME}_held": data.held} if data.held else {NAME: data.places}
        written: set[str] = set()
        for name, places in sets.items():
            with (
                atomic_write(folder / f"{name}.json") as temporary,
                temporary.open("w", encoding="utf-8") as lines,
            ):
                for number, place in enumerate(places):
                    sample = sample_of(chat, card, place, folder, written)
                    lines.write(("[\n" if not number else ",\n") + json.dumps(sample, ensure_ascii=False))
                lines.write("\n]\n")
        write_json(folder / "dataset_info.json", {name: _entry(name) for name in sets})
        write_text(folder / "sft.yaml", _recipe(settings, chat, Path(out), longest, list(sets)))
        (folder / "card").mkdir()
        save_card(card, folder / "card")
        check_export(folder)
        counts = {"samples": len(data.places), "held": len(data.held), "pictures": len(written)}
    return counts


def sample_of(chat: Chat, card: ModelCard, place: Place, folder: Path, written: set[str]) -> dict[str, Any]:
    """One turn as messages and pictures. Writes pictures that are not in `written` to the folder.

    Raises InputError for a text that contains the marker, which would be taken for another picture.
    """
    record = read_record(place)
    rgb = read_picture(place.folder / record["image"])
    turn = turn_of(card, rgb, record["question"], record["turns"], place.turn)
    messages = []
    for message in build_messages(card, turn):
        if MARKER in message.text:
            raise InputError(
                f"a text contains the marker {MARKER}",
                file=record["id"],
                value=message.text,
                remedy="Reword it.",
            )
        content = (MARKER if message.picture is not None else "") + message.text
        messages.append({"role": message.role, "content": content})
    messages.append({"role": "assistant", "content": reply_of(card, record["turns"][place.turn])})
    names = []
    for picture in pictures_of(card, turn):
        name = f"pictures/{hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest()[:24]}.png"
        if name not in written:
            write_png(folder / name, chat.as_seen(picture))
            written.add(name)
        names.append(name)
    return {"messages": messages, "images": names}


def check_export(folder: Path) -> int:
    """Check an export against the package's rules and return the number of samples. Raises InputError.

    The rules: an optional system message first; then user and assistant alternate, user first, assistant last; as
    many markers as pictures; every picture is a file.
    """
    count = 0
    for name, entry in json.loads((folder / "dataset_info.json").read_text("utf-8")).items():
        path = folder / entry["file_name"]
        for number, sample in enumerate(json.loads(path.read_text("utf-8"))):
            for problem in _problems(sample, folder):
                raise InputError(problem, file=path, value=f"sample {number} of {name}")
            count += 1
    return count


def _problems(sample: dict[str, Any], folder: Path) -> Iterator[str]:
    messages = sample["messages"]
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
        yield f"the roles do not alternate: {roles}"
    markers = sum(message["content"].count(MARKER) for message in messages)
    if markers != len(sample["images"]):
        yield f"{markers} markers for {len(sample['images'])} pictures"
    if not messages[-1]["content"].strip():
        yield "the reply is empty"
    for name in sample["images"]:
        if not (folder / name).is_file():
            yield f"{name} is missing"


def _entry(name: str) -> dict[str, Any]:
    return {
        "file_name": f"{name}.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": _TAGS,
    }


def _recipe(settings: SftSettings, chat: Chat, out: Path, longest: int, sets: list[str]) -> str:
    """The package's YAML for the same training."""
    values: dict[str, Any] = {
        "model_name_or_path": os.fspath(settings.model),
        "image_max_pixels": chat.pictures.most,
        "image_min_pixels": chat.pictures.least,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": settings.tune,
        "freeze_vision_tower": not settings.vision,
        "freeze_multi_modal_projector": not settings.vision,
        "dataset": NAME,
        "dataset_dir": os.fspath(out),
        "media_dir": os.fspath(out),
        "template": "qwen2_vl",
        "cutoff_len": min(longest, 30000),
        # Only the last reply of a conversation is learned: earlier ones are samples of their own.
        "mask_history": True,
        "train_on_prompt": False,
        "preprocessing_num_workers": max(1, settings.workers),
        "output_dir": os.fspath(out / "adapter" if settings.tune == "lora" else out / "model"),
        **trainer_values(settings),
        "warmup_ratio": settings.warmup,
        "bf16": settings.precision != "fp32",
        "plot_loss": True,
        "report_to": "none",
    }
    if settings.tune == "lora":
        values |= {
            "lora_rank": settings.lora.rank,
            "lora_alpha": round(settings.lora.alpha),
            "lora_dropout": settings.lora.dropout,
            "lora_target": "all",
        }
    values |= {"max_steps": settings.steps} if settings.steps else {"num_train_epochs": settings.epochs}
    if len(sets) > 1:
        values |= {"eval_dataset": sets[1], "eval_strategy": "steps", "eval_steps": settings.save_every}
    head = (
        "# Written by training.sft.llamafactory for LLaMA-Factory 0.9.5:  llamafactory-cli train sft.yaml\n"
        "# Afterwards, for a LoRA: copy card/ibis_model.json into its output, then training.sft.merge.\n"
    )
    return head + yaml.safe_dump(values, sort_keys=False)


def main() -> None:
    parser = settings_parser("sft.llamafactory", __doc__, "sft-7b-lora.yaml", "epochs=2")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    args = parser.parse_args()
    with ending():
        made = export(read_settings(args.config, SftSettings, args.changes), args.out, str(args.config))
    print(f"{args.out}: {made['samples']} samples, {made['held']} held out, {made['pictures']} pictures")


if __name__ == "__main__":
    main()
