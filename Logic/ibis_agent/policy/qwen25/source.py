"""A Qwen2.5-VL folder before it is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ibis_agent.errors import ModelError
from ibis_agent.facts import Fact
from ibis_agent.policy import required_memory
from ibis_agent.policy.card import CARD_NAME, ModelCard, load_card
from ibis_agent.policy.folder import PolicyFolder, look_into
from ibis_agent.policy.formats import UNPACKED
from ibis_agent.policy.required_memory import count_words, gigabytes

if TYPE_CHECKING:
    from ibis_agent.policy.qwen25.local import LocalPolicy

_DEMO = Path(__file__).parents[2] / "demo" / "policy"


class Qwen25Folder:
    """See policy.find and contract.PolicySource."""

    kind = "Qwen2.5-VL"

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def __str__(self) -> str:
        return str(self.folder.resolve())

    @property
    def card(self) -> ModelCard:
        """The folder's card. Raises ModelError."""
        return load_card(self.folder)

    def inspect(self) -> PolicyFolder:
        """See folder.look_into."""
        return look_into(self.folder, quantised=(UNPACKED,))

    def check(self) -> None:
        """See contract.PolicySource."""
        self.inspect()

    def run_bytes(self, precision: str, device: str) -> int:
        """See required_memory.run_bytes."""
        return required_memory.run_bytes(self.inspect(), precision, device, self.card.max_new_tokens)

    def facts(self) -> dict[str, str]:
        """See contract.PolicySource."""
        found, free = self.inspect(), required_memory.free_bytes("cpu")
        bytes_of = {each: self.run_bytes(each, "cpu") for each in required_memory.PRECISIONS}
        needed = ", ".join(f"{each} {gigabytes(size)}" for each, size in bytes_of.items())
        parameters, size = found.parameters, found.stored_bytes
        count = len(found.files)
        files = "1 file" if count == 1 else f"{count} files"
        has_card = (self.folder / CARD_NAME).exists()
        return {
            "folder": str(self.folder),
            "model": Fact(
                f"{self.kind}, {count_words(parameters)} parameters",
                {"kind": self.kind, "parameters": parameters},
            ),
            "stored": Fact(
                f"{found.stored_as}, {gigabytes(size)} in {files}",
                {"as": found.stored_as, "bytes": size, "files": count},
            ),
            "way": "own implementation: fast, caches the beginning of a turn" + unpacked(found),
            "sha256": found.sha256,
            "card": CARD_NAME if has_card else "none: the published settings are used",
            "memory to run": Fact(needed, bytes_of),
            "memory free": Fact(gigabytes(free), free) if free is not None else "unknown",
        }

    def open(self, device: str = "auto", precision: str = "auto") -> LocalPolicy:
        """Check this machine, then load; see policy.open."""
        from ibis_agent.policy.qwen25.local import LocalPolicy

        return LocalPolicy.load(self.folder, device, precision)


def unpacked(found: PolicyFolder) -> str:
    """For `facts`: how quantised weights are run, and missing packages; empty if not quantised."""
    if not found.quantised:
        return ""
    kind, missing = found.quantised, " ".join(found.quantised.missing)
    done = "unpacked when it is loaded" if kind.method == UNPACKED else "computed in the stored format"
    by = f"by {', '.join(kind.needs)}" + (f"; missing here: pip install {missing}" if missing else "")
    return f"; {kind.words}: {done}, {by}"


def demo_folder() -> Path:
    """The demonstration policy's folder. Raises ModelError if it is not installed."""
    if not (_DEMO / "config.json").is_file():
        raise ModelError(
            "the demonstration policy is not in this installation",
            file=_DEMO,
            remedy="Choose a policy folder, or train one: python -m training.demo.train_policy.",
        )
    return _DEMO
