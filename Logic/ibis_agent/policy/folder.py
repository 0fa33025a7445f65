"""What a policy's folder holds, told from its files alone, before anything is loaded.

Reads config.json and the headers of the safetensors files itself (a length, then JSON), so it needs no torch,
takes milliseconds for 16 GB, and says what is wrong in words. Loading is in policy, memory in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ibis_agent.errors import ModelError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_ARCHITECTURE = "qwen2_5_vl"
_LARGEST_HEADER = 100 * 2**20
_LFS = b"version https://git-lfs.github.com/spec/"
_AGAIN = "Download the folder again; a download may have stopped half-way."
# Files up to this size enter the identity whole, larger ones by blocks at even distances.
_WHOLE = 64 * 2**20
_BLOCK, _BLOCKS = 64 * 2**10, 64


@dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file: its shape and what its numbers are ("F32", "BF16", …)."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class PolicyFolder:
    """A folder that passed every check that can be made without loading it.

    Attributes:
        config: config.json.
        files: the safetensors files.
        tensors: every tensor by name.
        sha256: see `identity_of`.
    """

    folder: Path
    config: dict[str, Any]
    files: tuple[Path, ...]
    tensors: dict[str, Tensor]
    sha256: str

    @property
    def parameters(self) -> int:
        return sum(tensor.count for tensor in self.tensors.values())

    @property
    def stored_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    @property
    def stored_as(self) -> str:
        """What most of its numbers are, such as "BF16"."""
        totals: dict[str, int] = {}
        for tensor in self.tensors.values():
            totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.count
        return max(totals, key=lambda dtype: totals[dtype])

    @property
    def text_config(self) -> dict[str, Any]:
        """The language part of the configuration; older files keep it at the top."""
        return self.config.get("text_config") or self.config


def look_into(folder: str | os.PathLike[str]) -> PolicyFolder:
    """Check a policy's folder: architecture, every file present and whole. Loads nothing.

    Raises ModelError naming the file, what is wrong and the remedy.
    """
    folder = Path(folder)
    if not folder.is_dir():
        remedy = "Give the folder that holds config.json and the weights."
        raise ModelError(
            "is not a folder" if folder.exists() else "does not exist", file=folder, remedy=remedy
        )
    config = _config(folder)
    files, promised = _files(folder)
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors.update(read_header(path))
    absent = sorted(set(promised) - set(tensors))
    if absent:
        raise ModelError(
            f"the index promises {len(absent)} tensors that are in no file",
            file=folder,
            value=absent[0],
            remedy=_AGAIN,
        )
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        remedy = "Copy it from the model that this one was fine-tuned from."
        raise ModelError("tokenizer.json is missing", file=folder, remedy=remedy)
    read_json(tokenizer)
    return PolicyFolder(folder, config, tuple(files), tensors, identity_of(files))


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors that a safetensors file declares, after checking that the file is as long as they need.

    Raises ModelError for anything that is not a whole safetensors file.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as stream:
            start = stream.read(len(_LFS))
            if start == _LFS:
                raise ModelError(
                    "is a Git LFS pointer, not the weights themselves",
                    file=path,
                    remedy="Run `git lfs pull` there.",
                )
            if size < 8:
                raise ModelError("is empty or cut off", file=path, value=f"{size} bytes", remedy=_AGAIN)
            (length,) = struct.unpack("<Q", start[:8])
            if length > min(size - 8, _LARGEST_HEADER):
                problem = "is cut off inside its header, or no safetensors file"
                raise ModelError(problem, file=path, value=f"{size} bytes", remedy=_AGAIN)
            stream.seek(8)
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        tensors = {name: Tensor(tuple(each["shape"]), each["dtype"]) for name, each in header.items()}
        needed = 8 + length + max((each["data_offsets"][1] for each in header.values()), default=0)
    except OSError as error:
        remedy = "Check the file and its permissions."
        raise ModelError(f"cannot be read: {error.strerror}", file=path, remedy=remedy) from error
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise ModelError("is not a safetensors file", file=path, remedy=_AGAIN) from error
    if size != needed:
        problem = "is cut off" if size < needed else "is longer than its header says"
        raise ModelError(problem, file=path, value=f"{size} of {needed} bytes", remedy=_AGAIN)
    return tensors


def identity_of(files: Iterable[Path]) -> str:
    """SHA-256 that tells weights apart without reading 16 GB.

    For every file in the order of names: name, size, the header's first bytes, and the contents; files above
    64 MiB by 64 blocks of 64 KiB at even distances, the first and the last included. A header alone would not
    do: it is equal for every fine-tuned copy of a model.
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


def read_json(path: Path, largest: int = 64 * 2**20) -> dict[str, Any]:
    """A JSON object from one of a model's files. Raises ModelError."""
    try:
        if path.stat().st_size > largest:
            raise ModelError(
                "is too large for what it is", file=path, value=path.stat().st_size, remedy=_AGAIN
            )
        data = path.read_bytes()
        if data.startswith(_LFS):
            raise ModelError("is a Git LFS pointer", file=path, remedy="Run `git lfs pull` there.")
        values = json.loads(data.decode("utf-8-sig"))
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", file=path, remedy=_AGAIN) from error
    except (ValueError, RecursionError) as error:
        raise ModelError("is not JSON", file=path, remedy=_AGAIN) from error
    if not isinstance(values, dict):
        raise ModelError("is not a JSON object", file=path, remedy=_AGAIN)
    return values


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                "holds only an adapter (LoRA), not a whole model",
                file=folder,
                remedy="Merge it into its base model first: python -m training.sft.merge ADAPTER --base DIR --out DIR.",
            )
        remedy = "Give the folder that holds config.json and the weights."
        raise ModelError("config.json is missing: this is not a policy's folder", file=folder, remedy=remedy)
    config = read_json(path)
    kind = config.get("model_type")
    if kind != _ARCHITECTURE:
        raise ModelError(
            "is not a Qwen2.5-VL model",
            file=path,
            value=f"model_type {kind}",
            remedy=f'This version runs policies of the type "{_ARCHITECTURE}".',
        )
    return config


def _files(folder: Path) -> tuple[list[Path], list[str]]:
    """The weight files and the tensor names that the index promises."""
    index = folder / INDEX_NAME
    if index.is_file():
        weight_map: Any = read_json(index).get("weight_map")
        values = list(weight_map.values()) if isinstance(weight_map, dict) else []
        # A name is a file of this folder: nothing of an index may lead elsewhere.
        if not values or not all(isinstance(name, str) and Path(name).name == name for name in values):
            raise ModelError("is not an index of safetensors files", file=index, remedy=_AGAIN)
        names = set(values)
        missing = sorted(name for name in names if not (folder / name).is_file())
        if missing:
            raise ModelError(
                f"{len(missing)} of {len(names)} weight files are missing",
                file=folder,
                value=", ".join(missing),
                remedy=_AGAIN,
            )
        return [folder / name for name in sorted(names)], list(weight_map)
    if (folder / SINGLE_NAME).is_file():
        return [folder / SINGLE_NAME], []
    if any(folder.glob("model-*-of-*.safetensors")):
        raise ModelError(
            f"{INDEX_NAME} is missing, so the shards cannot be put together", file=folder, remedy=_AGAIN
        )
    pickles = sorted(path.name for end in ("*.bin", "*.pt", "*.pth") for path in folder.glob(end))
    if pickles:
        raise ModelError(
            "has its weights only as a pickle, which can run code when it is opened; it is not opened",
            file=folder,
            value=pickles[0],
            remedy="Get the safetensors version, or convert it on a machine that may be lost: load it with "
            "transformers and save_pretrained it again.",
        )
    raise ModelError("holds no weights: model.safetensors is missing", file=folder, remedy=_AGAIN)
