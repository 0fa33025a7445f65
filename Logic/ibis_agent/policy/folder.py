"""Which files of a folder are the policy's weights. Only these are checked, hashed and loaded.

Reads config.json and the headers of the safetensors files, without torch: this takes milliseconds for 16 GB.

The weights are the shards listed in model.safetensors.index.json, or else model.safetensors. A folder with two sets of
weights, or with complete weights and an adapter, is refused as ambiguous.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ibis_agent.errors import ModelError
from ibis_agent.policy.card import CARD_NAME
from ibis_agent.policy.formats import (
    UNPACKED,
    Quantised,
    as_unpacked,
    quantised_as,
    refuse_other_formats,
)
from ibis_agent.policy.headers import AGAIN, Tensor, read_header, read_json

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
QWEN25 = "qwen2_5_vl"
ADAPTER_NAMES = ("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json")
# Larger files are hashed in evenly spaced blocks.
_WHOLE = 64 * 2**20
_BLOCK, _BLOCKS = 64 * 2**10, 64


@dataclass(frozen=True)
class PolicyFolder:
    """A policy folder that passed all checks that need no loading.

    Attributes:
        config: config.json.
        files: the safetensors files.
        tensors: every tensor by name; for compressed-tensors, the unpacked ones.
        sha256: of the weights, see `identity_of`.
        settings_sha256: of the other files that determine a reply: configuration, tokenizer, picture and generation
            settings.
        settings_files: the first digits of each of these files' hashes, and of the card's.
        stamps: `stamp_of` every weight file when it was hashed, to notice changes before and during loading.
        quantised: how the weights are quantised; None if they are not.
    """

    folder: Path
    config: dict[str, Any]
    files: tuple[Path, ...]
    tensors: dict[str, Tensor]
    sha256: str
    settings_sha256: str = ""
    settings_files: str = ""
    stamps: tuple[tuple[int, ...], ...] = ()
    quantised: Quantised | None = None

    def identity(self, name: str) -> dict[str, str]:
        """The policy's identity for records."""
        files = {"settings": self.settings_sha256, "settings_files": self.settings_files}
        return {"name": name, "sha256": self.sha256, **files}

    def check_unchanged(self) -> None:
        """Raise ModelError if a weight file has changed since it was hashed."""
        for path, stamp in zip(self.files, self.stamps, strict=True):
            if stamp_of(path) != stamp:
                raise ModelError(
                    "was modified while it was being loaded",
                    file=path,
                    remedy="Load it again when no program is writing to it.",
                )

    @property
    def parameters(self) -> int:
        return sum(tensor.count for tensor in self.tensors.values())

    @property
    def stored_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    @property
    def stored_as(self) -> str:
        """The data type of most weights, such as "BF16", or how they are quantised."""
        if self.quantised:
            return self.quantised.words
        totals: dict[str, int] = {}
        for tensor in self.tensors.values():
            totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.count
        return max(totals, key=lambda dtype: totals[dtype])

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's configuration; in older files it is at the top level."""
        return self.config.get("text_config") or self.config


def look_into(
    folder: str | os.PathLike[str],
    weights_only: bool = False,
    model_type: str | None = QWEN25,
    quantised: Collection[str] = (),
) -> PolicyFolder:
    """Check the architecture and the files of a policy's folder without loading it.

    Args:
        weights_only: for a training checkpoint, which needs no tokenizer.
        model_type: the required architecture; None for any.
        quantised: the quantisation methods that the caller can run, see formats.

    Raises ModelError naming the file, the problem and the remedy.
    """
    folder = Path(folder)
    if not folder.is_dir():
        remedy = "Give the folder that contains config.json and the weights."
        raise ModelError(
            "is not a folder" if folder.exists() else "does not exist", file=folder, remedy=remedy
        )
    refuse_other_formats(folder)
    config = _config(folder, model_type)
    files, promised = _files(folder)
    stamps = tuple(stamp_of(path) for path in files)
    tensors = _tensors(folder, files, promised)
    packed = quantised_as(folder, config, tensors, quantised)
    if packed and packed.method == UNPACKED:
        tensors = as_unpacked(tensors)
    tokenizer = [] if weights_only else tokenizer_files(folder)
    for path in tokenizer:
        if path.suffix == ".json":
            read_json(path)
    settings = _settings_of(folder, config, tokenizer)
    return PolicyFolder(folder, config, tuple(files), tensors, identity_of(files), *settings, stamps, packed)


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer's files: tokenizer.json, or else vocab.json and merges.txt. Raises ModelError."""
    whole, parts = folder / "tokenizer.json", [folder / "vocab.json", folder / "merges.txt"]
    if whole.is_file():
        return [whole]
    if all(path.is_file() for path in parts):
        return parts
    remedy = "Copy it, or vocab.json and merges.txt, from the model that this one was fine-tuned from."
    raise ModelError("tokenizer.json is missing", file=folder, remedy=remedy)


def _tensors(folder: Path, files: list[Path], promised: dict[str, str]) -> dict[str, Tensor]:
    """Every tensor by name. Raises ModelError if index and files disagree."""
    tensors: dict[str, Tensor] = {}
    for path in files:
        for name, tensor in read_header(path).items():
            if name in tensors or promised.get(name, path.name) != path.name:
                raise ModelError(
                    "a tensor is in two files, or not in the file given in the index",
                    file=path,
                    value=name,
                    remedy="The files belong to two different exports. " + AGAIN,
                )
            tensors[name] = tensor
    absent = sorted(set(promised) - set(tensors))
    if absent:
        raise ModelError(
            f"the index lists {len(absent)} tensors that are missing from the files",
            file=folder,
            value=absent[0],
            remedy=AGAIN,
        )
    return tensors


def identity_of(files: Iterable[Path]) -> str:
    """A SHA-256 that identifies weights without reading 16 GB.

    Hashes name, size and contents of every file, sorted by name; of files above 64 MiB only 64 evenly spaced blocks of
    64 KiB, including the first and the last. Headers alone are the same for every fine-tuned copy of a model.
    """
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda each: each.name):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with open(path, "rb") as stream:
            if size <= _WHOLE:
                while block := stream.read(2**20):
                    digest.update(block)
                continue
            for number in range(_BLOCKS):
                stream.seek((size - _BLOCK) * number // (_BLOCKS - 1))
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()


def wrong_tensors(folder: Path, names: Sequence[str]) -> ModelError:
    """The error for tensors of the configuration that are missing in the weights, or have another size there."""
    return ModelError(
        f"{len(names)} tensors of the configuration are missing or have a different size",
        file=folder,
        value=names[0],
        remedy="Take config.json and the weights from the same model.",
    )


def stamp_of(path: Path) -> tuple[int, ...]:
    """(size, modification time, device, inode) of a file: changes when it is written or replaced."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_dev, found.st_ino


def _settings_of(folder: Path, config: dict[str, Any], tokenizer: Iterable[Path]) -> tuple[str, str]:
    """See PolicyFolder.settings_sha256 and settings_files. Metadata of the program that wrote a file is left out."""
    optional = ("preprocessor_config.json", "processor_config.json", "generation_config.json")
    values = {name: read_json(folder / name) for name in optional if (folder / name).is_file()}
    parts: dict[str, bytes] = {}
    for name, part in ({"config.json": config} | values).items():
        kept = {key: part[key] for key in part if not key.startswith("_") and key != "transformers_version"}
        parts[name] = json.dumps(kept, sort_keys=True).encode() + b"\0"
    parts |= {path.name: path.read_bytes() for path in tokenizer}
    whole = hashlib.sha256(b"".join(parts.values())).hexdigest()
    if (folder / CARD_NAME).is_file():
        parts[CARD_NAME] = (folder / CARD_NAME).read_bytes()
    files = (f"{name} {hashlib.sha256(part).hexdigest()[:12]}" for name, part in parts.items())
    return whole, ", ".join(files)


def _config(folder: Path, model_type: str | None) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                "contains only an adapter (LoRA), not a complete model",
                file=folder,
                remedy="Merge it into its base model first: python -m training.sft.merge ADAPTER --base DIR --out DIR.",
            )
        remedy = "Give the folder that contains config.json and the weights."
        raise ModelError("config.json is missing: this is not a policy folder", file=folder, remedy=remedy)
    config = read_json(path)
    kind = config.get("model_type")
    if model_type is not None and kind != model_type:
        raise ModelError(
            "is not a Qwen2.5-VL model",
            file=path,
            value=f"model_type {kind}",
            remedy=f'This version runs policies of the type "{QWEN25}".',
        )
    return config


def _files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The weight files, and the file name of each tensor listed in the index."""
    index, single = folder / INDEX_NAME, folder / SINGLE_NAME
    _refuse_adapter(folder)
    if index.is_file():
        weight_map: Any = read_json(index).get("weight_map")
        values = list(weight_map.values()) if isinstance(weight_map, dict) else []
        # Names must be files of this folder: an index must not lead elsewhere.
        if not values or not all(isinstance(name, str) and Path(name).name == name for name in values):
            raise ModelError("is not an index of safetensors files", file=index, remedy=AGAIN)
        names = set(values)
        if single.is_file() and single.name not in names:
            raise ModelError(
                f"contains two sets of weights: {SINGLE_NAME}, and the {len(names)} files listed in {INDEX_NAME}",
                file=folder,
                value=", ".join(sorted(names)),
                remedy=f"Remove the older set: {SINGLE_NAME}, or {INDEX_NAME} and its files.",
            )
        missing = sorted(name for name in names if not (folder / name).is_file())
        if missing:
            raise ModelError(
                f"{len(missing)} of {len(names)} weight files are missing",
                file=folder,
                value=", ".join(missing),
                remedy=AGAIN,
            )
        return [folder / name for name in sorted(names)], weight_map
    shards = sorted(path.name for path in folder.glob("model-*-of-*.safetensors"))
    if single.is_file() and shards:
        raise ModelError(
            f"contains two sets of weights: {SINGLE_NAME}, and shards without {INDEX_NAME}",
            file=folder,
            value=", ".join(shards),
            remedy="Remove the files that do not belong to the model.",
        )
    if single.is_file():
        return [single], {}
    if shards:
        raise ModelError(
            f"{INDEX_NAME} is missing, so the shards cannot be put together", file=folder, remedy=AGAIN
        )
    pickles = sorted(path.name for end in ("*.bin", "*.pt", "*.pth") for path in folder.glob(end))
    if pickles:
        raise ModelError(
            "has its weights only as a pickle, which can run code when it is opened, so it was not opened",
            file=folder,
            value=pickles[0],
            remedy="Get the safetensors version, or convert it on an isolated machine: load it with transformers "
            "and save it with save_pretrained.",
        )
    raise ModelError("contains no weights: model.safetensors is missing", file=folder, remedy=AGAIN)


def _refuse_adapter(folder: Path) -> None:
    """Refuse weights beside an adapter: it is unknown whether the adapter is merged already."""
    found = [name for name in ADAPTER_NAMES if (folder / name).is_file()]
    if found:
        raise ModelError(
            "contains complete weights and an adapter (LoRA), and it is unknown whether the adapter is already merged",
            file=folder,
            value=", ".join(found),
            remedy="If it is, remove the adapter files. If not, merge it: python -m training.sft.merge.",
        )
