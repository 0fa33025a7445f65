"""Reading a model's JSON files and safetensors headers without torch."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ibis_agent import fields
from ibis_agent.errors import ModelError

AGAIN = "Download the folder again; the download may have been interrupted."
_LARGEST_HEADER = 100 * 2**20
_LFS = fields.GIT_LFS.encode()


@dataclass(frozen=True)
class Tensor:
    """A tensor in a safetensors file: shape, data type ("F32", "BF16", …), file, and offset in bytes."""

    shape: tuple[int, ...]
    dtype: str
    file: Path | None = field(default=None, compare=False)
    start: int = field(default=0, compare=False)

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file, by name.

    Raises ModelError if it is not a safetensors file, or its length does not fit the header.
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
                raise ModelError("is empty or cut off", file=path, value=f"{size} bytes", remedy=AGAIN)
            (length,) = struct.unpack("<Q", start[:8])
            if length > min(size - 8, _LARGEST_HEADER):
                problem = "is cut off inside its header, or is not a safetensors file"
                raise ModelError(problem, file=path, value=f"{size} bytes", remedy=AGAIN)
            stream.seek(8)
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        tensors = {
            name: Tensor(tuple(each["shape"]), each["dtype"], path, 8 + length + each["data_offsets"][0])
            for name, each in header.items()
        }
        needed = 8 + length + max((each["data_offsets"][1] for each in header.values()), default=0)
    except OSError as error:
        remedy = "Check the file and its permissions."
        raise ModelError(f"cannot be read: {error.strerror}", file=path, remedy=remedy) from error
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise ModelError("is not a safetensors file", file=path, remedy=AGAIN) from error
    if size != needed:
        problem = "is cut off" if size < needed else "is longer than its header says"
        raise ModelError(problem, file=path, value=f"{size} of {needed} bytes", remedy=AGAIN)
    return tensors


def read_json(path: Path, largest: int = 64 * 2**20, remedy: str = AGAIN) -> dict[str, Any]:
    """A JSON object from one of a model's files. Raises ModelError."""
    values = fields.read_json(path, remedy, largest, ModelError, finite=False)
    if not isinstance(values, dict):
        raise ModelError("is not a JSON object", file=path, value=type(values).__name__, remedy=remedy)
    return values
