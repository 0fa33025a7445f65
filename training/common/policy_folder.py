"""A trained policy as a folder that the Slicer module can be given: weights, tokenizer, card, how it was made.

The folder appears when it is whole. What stands in a card is in ibis_agent.policy.card.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import os
import secrets
import shutil
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from ibis_agent.errors import InputError, OutputError
from ibis_agent.files import check_writable_folder, output_error, write_json
from ibis_agent.policy.card import WITHOUT_CARD, ModelCard, save_card
from ibis_agent.policy.folder import PolicyFolder, look_into, read_json
from ibis_agent.policy.machine import no_progress_bar

HISTORY = "training.json"
"""How a policy or an adapter was made."""
_SCHEMA = "ibis-training/1"
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the libraries' progress bars and what they tell each other about their next version."""
    with no_progress_bar(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def check_free(path: Path) -> None:
    """Raises OutputError where `path` is there already and not an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError("is there already", file=path, remedy="Choose another folder, or remove it.")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; it becomes `path` when the block ends well.

    Raises OutputError where `path` is there already and not empty.
    """
    path = Path(path)
    check_free(path)
    check_writable_folder(path.parent)
    temporary = path.with_name(f".{secrets.token_hex(6)}-{path.name[-40:]}")
    try:
        temporary.mkdir()
        yield temporary
        if path.exists():
            path.rmdir()
        os.replace(temporary, path)
    except OSError as error:
        raise output_error(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def history_of(kind: str, base: PolicyFolder, base_name: str, **facts: Any) -> dict[str, Any]:
    """What training.json holds: the kind of training, its base and every further fact; JSON values."""
    versions = {}
    for package in ("torch", "transformers", "peft", "accelerate"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "schema": _SCHEMA,
        "kind": kind,
        "made": datetime.date.today().isoformat(),
        "base": {"name": base_name, "sha256": base.sha256},
        "versions": versions,
        **facts,
    }


def read_history(folder: Path) -> dict[str, Any] | None:
    """How the policy or adapter in a folder was made, or None where it does not say."""
    path = folder / HISTORY
    return read_json(path) if path.is_file() else None


def scans_learned(base: Path, scans: Iterable[str] = ()) -> list[str]:
    """Digests of all scans that a policy has learned from: those of its base and these. Phantoms are not listed."""
    before = (read_history(base) or {}).get("scans") or []
    return sorted({str(each) for each in (*before, *scans) if not str(each).startswith("phantom-")})


def write_policy(
    model: Any,
    base: PolicyFolder,
    out: Path,
    card: ModelCard,
    history: dict[str, Any],
    state: dict[str, torch.Tensor] | None = None,
) -> PolicyFolder:
    """Write a whole policy's folder, in the numbers its base is stored in, and check it as a run would.

    Args:
        model: the transformers model with the new weights, of any precision.
        base: whose tokenizer and picture settings it takes.
        state: the weights where the model itself holds only a part of them.

    Raises OutputError; InputError where a weight is not a number.
    """
    dtype = _TYPES.get(base.stored_as, torch.bfloat16)
    state = model.state_dict() if state is None else state
    bad = [name for name, values in state.items() if not bool(torch.isfinite(values).all())]
    if bad:
        raise InputError(
            f"{len(bad)} of the weights hold what is not a number: the training has diverged",
            value=bad[0],
            remedy="Train again with a lower rate.",
        )
    cast: dict[int, torch.Tensor] = {}  # weights that are shared stay shared
    whole = {
        name: cast.setdefault(values.data_ptr(), values.to(dtype)) if values.is_floating_point() else values
        for name, values in state.items()
    }
    with new_folder(out) as folder:
        with quietly():
            model.save_pretrained(folder, state_dict=whole)
        config = read_json(folder / "config.json")
        # transformers writes the precision of the training, for the parts too.
        for part in (config, config.get("text_config") or {}, config.get("vision_config") or {}):
            part.pop("dtype", None)
        write_json(folder / "config.json", {**config, "dtype": _NAMES[dtype]})
        for name in _COPIED:
            if (base.folder / name).is_file():
                shutil.copyfile(base.folder / name, folder / name)
        write_picture_limits(card, folder)
        save_card(card, folder)
        write_json(folder / HISTORY, history)
        look_into(folder)
    return look_into(out)


def write_picture_limits(card: ModelCard, folder: Path) -> None:
    """Write the card's limits of pixels into the folder's own picture settings.

    Other programs (transformers, vLLM, verl) know only those: with others they would cut a picture into another
    number of tokens than the requests have.
    """
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return
    values = read_json(file)
    size = dict(values.get("size") or {})
    for key, side, pixels in (
        ("min_pixels", "shortest_edge", card.min_pixels),
        ("max_pixels", "longest_edge", card.max_pixels),
    ):
        if pixels is not None:
            values[key] = size[side] = pixels
    write_json(file, {**values, **({"size": size} if size else {})})


def check_picture_limits(card: ModelCard, folder: Path) -> None:
    """Raises InputError where a folder's own picture settings have other limits than its card."""
    file = folder / "preprocessor_config.json"
    values = read_json(file) if file.is_file() else {}
    size = values.get("size") or {}
    for key, side, pixels in (
        ("min_pixels", "shortest_edge", card.min_pixels),
        ("max_pixels", "longest_edge", card.max_pixels),
    ):
        known = {values.get(key), size.get(side)} - {None}
        if pixels is not None and known != {pixels}:
            raise InputError(
                f"{key} is not that of the model card: other programs would cut pictures into other tokens",
                file=file,
                value=f"{sorted(known, key=str)}, the card says {pixels}",
                remedy=f"Write {pixels} as {key} and as size.{side}; training.sft and training.grpo do so.",
            )


def named(card: ModelCard, name: str, origin: str) -> ModelCard:
    """The card of a policy that was trained from that of `card`.

    It is decoded as it was trained and sampled, without the repetition penalty that its base's folder may hold.
    """
    note = "" if card.note == WITHOUT_CARD else card.note
    new = name or f"{card.name}, fine-tuned"
    return dataclasses.replace(card, name=new, origin=origin, note=note, generation_config=False)
