"""Reading a segmenter's weights from a file without running code in it.

Other content (web pages, git-lfs pointers, incomplete files, pickles with code) is recognised and refused.
"""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ibis_agent.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

_AGAIN = "Download it again completely."


def read_weights(checkpoint: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU, memory-mapped if possible.

    checkpoint: `.pt` or `.pth` (new and old format) or `.safetensors`, recognised by content; the weights at the top
    level, or under "model" or "state_dict". Raises ModelError.
    """
    file = Path(checkpoint)
    try:
        kind = _kind_of(file)
        content = _read_safetensors(file) if kind == "safetensors" else _read_torch(file, kind)
    except OSError as error:
        raise ModelError(
            "cannot be read", file=file, value=os.strerror(error.errno) if error.errno else str(error)
        ) from error
    return _state_dict(content, file)


def saved_as(file: Path) -> str:
    """The name in a checkpoint's PyTorch archive, under which it was saved; empty if there is none."""
    try:
        with zipfile.ZipFile(file) as archive:
            inner = next((name for name in archive.namelist() if name.endswith("/data.pkl")), "")
    except (zipfile.BadZipFile, OSError):
        return ""
    name = inner.split("/")[0]
    return "" if name == "archive" else name


def _kind_of(file: Path) -> str:
    """ "safetensors", "zip" or "pickle", by content. Raises ModelError for other files."""
    if file.is_dir():
        raise ModelError("is a folder, not a weights file", file=file, remedy="Give the .pt file inside it.")
    if not file.exists():
        raise ModelError(
            "there is no such file", file=file, remedy="Check the path to the segmenter's weights."
        )
    with open(file, "rb") as stream:
        head = stream.read(1024)
    if not head:
        raise ModelError("is empty", file=file, remedy=_AGAIN)
    if head.startswith(b"version https://git-lfs"):
        raise ModelError(
            "is a git-lfs pointer, not the weights themselves", file=file, remedy="Run `git lfs pull`."
        )
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ModelError("is a web page, not weights: the download failed", file=file, remedy=_AGAIN)
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile as error:
            raise ModelError(
                "is cut off: the end of the file is missing", file=file, remedy=_AGAIN
            ) from error
        if not any(name.split("/")[-1] == "data.pkl" for name in names):
            remedy = "Unpack it and give the .pt file inside."
            raise ModelError("is a zip archive, but not a PyTorch checkpoint", file=file, remedy=remedy)
        return "zip"
    if head.startswith(b"\x80"):
        return "pickle"
    remedy = "Use a .pt, .pth or .safetensors file of SAM2, SAM2.1 or MedSAM2."
    raise ModelError("is not a checkpoint", file=file, value=head[:16], remedy=remedy)


def _read_safetensors(file: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from ibis_agent.segmenter.sam2.int8_storage import unpacked

    try:
        return unpacked(load_file(file))
    except (SafetensorError, ValueError) as error:
        raise ModelError(
            "is a damaged or cut off safetensors file", file=file, value=error, remedy=_AGAIN
        ) from error


def _read_torch(file: Path, kind: str) -> Any:
    import pickle

    import torch

    try:
        with torch.serialization.safe_globals(_numbers()):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=kind == "zip")
    except pickle.UnpicklingError as error:
        named = re.search(
            r"(?:GLOBAL|Unsupported (?:class|operand|global:?(?: GLOBAL)?)) ([\w.]+)", str(error)
        )
        if named is None:
            raise ModelError("is damaged or cut off", file=file, remedy=_AGAIN) from error
        raise ModelError(
            "contains more than weights: reading it would run code",
            file=file,
            value=named.group(1),
            remedy="Do not use it; ask its author for a plain state dict or a safetensors file.",
        ) from error
    except OSError:
        raise
    except Exception as error:  # torch raises many kinds of exceptions for damaged files
        problem = " ".join(str(error).split())
        raise ModelError("is damaged or cut off", file=file, value=problem, remedy=_AGAIN) from error


def _numbers() -> list[Any]:
    """The globals in pickles of NumPy scalars and numeric arrays, such as a training's best score.

    They contain only bytes; torch refuses arrays of objects.
    """
    import _codecs

    import numpy as np

    kinds = [type(np.dtype(each)) for each in "?bBhHiIlLqQefdgFD"]
    scalar, rebuild = np._core.multiarray.scalar, np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    allowed: list[Any] = [np.dtype, np.ndarray, _codecs.encode, *dict.fromkeys(kinds)]
    for package in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before NumPy 2, and since
        allowed += [(scalar, f"{package}.scalar"), (rebuild, f"{package}._reconstruct")]
    return allowed


def _state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    """The weights by name: at the top level, or under "model" or "state_dict"."""
    import torch

    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in content.items())
    ):
        keys = ", ".join(map(str, list(content)[:4])) if isinstance(content, dict) else type(content).__name__
        raise ModelError(
            "contains no state dict",
            file=file,
            value=keys,
            remedy="Expected named weights, or a dictionary with them under 'model'.",
        )
    if all(key.startswith("module.") for key in content):  # saved from a model trained on several devices
        content = {key[len("module.") :]: value for key, value in content.items()}
    return dict(content)
