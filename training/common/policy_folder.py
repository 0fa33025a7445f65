"""Write a trained policy as a folder that the Slicer module can open: weights, tokenizer, card, training history.

The folder is written completely or not at all. Model cards are in ibis_agent.policy.card.
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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from ibis_agent.errors import InputError, OutputError
from ibis_agent.files import check_writable_folder, output_error, write_json
from ibis_agent.policy.card import WITHOUT_CARD, ModelCard, save_card
from ibis_agent.policy.device import no_progress_bar
from ibis_agent.policy.folder import PolicyFolder, look_into, read_json

from training.common.pictures import refuse_overlap

HISTORY = "training.json"
"""The file that says how a policy or an adapter was trained."""
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
    """Suppress the libraries' progress bars and deprecation warnings."""
    with no_progress_bar(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def check_free(path: Path) -> None:
    """Raises OutputError if `path` exists and is not an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError("already exists", file=path, remedy="Choose another folder, or remove it.")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `path` if the block succeeds, and removed otherwise.

    Raises OutputError if `path` exists and is not empty.
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
    """The contents of training.json: the kind of training, its base, and further `facts` as JSON values."""
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
    """The training history of the policy or adapter in a folder, or None if it has none."""
    path = folder / HISTORY
    return read_json(path) if path.is_file() else None


def scans_learned(base: Path, scans: Iterable[str] = ()) -> list[str]:
    """Digests of all scans a policy was trained on: its base's and `scans`, without phantoms."""
    before = (read_history(base) or {}).get("scans") or []
    return sorted({str(each) for each in (*before, *scans) if not str(each).startswith("phantom-")})


def check_held(
    base: Path,
    held: Mapping[str, str],
    learned: Mapping[str, str] | None = None,
    file: str | None = None,
    remedy: str = "Hold out other patients.",
) -> None:
    """Raises InputError if held-out scans were trained on, by earlier stages of the policy or by this one.

    held, learned: digest of a scan → its name.
    """
    before = dict.fromkeys(scans_learned(base), "what the policy was trained on before")
    refuse_overlap({**before, **(learned or {})}, held, file, remedy)


def write_policy(
    model: Any,
    base: PolicyFolder,
    out: Path,
    card: ModelCard,
    history: dict[str, Any],
    state: dict[str, torch.Tensor] | None = None,
) -> PolicyFolder:
    """Write a complete policy folder in its base's precision, and check that it can be opened.

    Args:
        model: the transformers model with the new weights, of any precision.
        base: the policy that its tokenizer and image settings are copied from.
        state: the weights, if the model itself has only a part of them.

    Raises OutputError; InputError if a weight is not finite.
    """
    dtype = _TYPES.get(base.stored_as, torch.bfloat16)
    state = model.state_dict() if state is None else state
    bad = [name for name, values in state.items() if not bool(torch.isfinite(values).all())]
    if bad:
        raise InputError(
            f"{len(bad)} of the weights are not finite: training has diverged",
            value=bad[0],
            remedy="Train again with a lower learning rate (rate).",
        )
    cast: dict[int, torch.Tensor] = {}  # shared weights stay shared
    whole = {
        name: cast.setdefault(values.data_ptr(), values.to(dtype)) if values.is_floating_point() else values
        for name, values in state.items()
    }
    with new_folder(out) as folder:
        with quietly():
            model.save_pretrained(folder, state_dict=whole)
        config = read_json(folder / "config.json")
        # transformers writes the precision of the training, also for the parts of the model.
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


def _limits(card: ModelCard) -> list[tuple[str, str, int]]:
    """(key, key under "size", value) of the card's limits of pixels in preprocessor_config.json."""
    limits = (
        ("min_pixels", "shortest_edge", card.min_pixels),
        ("max_pixels", "longest_edge", card.max_pixels),
    )
    return [(key, side, pixels) for key, side, pixels in limits if pixels is not None]


def write_picture_limits(card: ModelCard, folder: Path) -> None:
    """Write the card's limits of pixels into the folder's own image settings.

    Other programs (transformers, vLLM, verl) read only those, and would otherwise split a picture into another
    number of tokens.
    """
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return
    values = read_json(file)
    size = dict(values.get("size") or {})
    for key, side, pixels in _limits(card):
        values[key] = size[side] = pixels
    write_json(file, {**values, **({"size": size} if size else {})})


def check_picture_limits(card: ModelCard, folder: Path) -> None:
    """Raises InputError if a folder's own image settings have other limits than its card."""
    file = folder / "preprocessor_config.json"
    values = read_json(file) if file.is_file() else {}
    size = values.get("size") or {}
    for key, side, pixels in _limits(card):
        known = {values.get(key), size.get(side)} - {None}
        if known != {pixels}:
            raise InputError(
                f"{key} is not the model card's: other programs would split pictures into other tokens",
                file=file,
                value=f"{sorted(known, key=str)}, the card says {pixels}",
                remedy=f"Write {pixels} as {key} and as size.{side}; training.sft and training.grpo do so.",
            )


def named(card: ModelCard, name: str, origin: str) -> ModelCard:
    """The card of a policy trained from the policy of `card`.

    It is decoded as it was sampled in training, without a repetition penalty that its base's folder may have.
    """
    note = "" if card.note == WITHOUT_CARD else card.note
    new = name or f"{card.name}, fine-tuned"
    return dataclasses.replace(card, name=new, origin=origin, note=note, generation_config=False)
