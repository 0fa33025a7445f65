"""The worker's requests: its loaded models and its open questions.

Pipes, threads and signals are in process. Torch is imported only when models are loaded, so that the worker answers at
once.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ibis_agent.policy as policies
import ibis_agent.segmenter as segmenters
from ibis_agent.engine.protocol import Message
from ibis_agent.engine.question import Question
from ibis_agent.errors import Cancelled as Stopped
from ibis_agent.errors import InputError, ModelError
from ibis_agent.policy import DEMO
from ibis_agent.policy import required_memory as memory
from ibis_agent.policy.contract import Policy
from ibis_agent.policy.vocabulary import check_asked

Emit = Callable[..., None]
Cancelled = Callable[[], bool]


class Engine:
    """Processes requests one at a time. `do` returns the last event of a request, or raises."""

    scopes: Sequence[str] = ("slice", "volume")  # the scopes that `ask` supports
    # Private to the worker: images written there are removed once read.
    folder: Path | None = None

    def __init__(self) -> None:
        self._policy: Policy | None = None
        self._segmenter: Any = None
        self._made_of: dict[str, tuple[str, ...]] = {}  # the settings of each loaded model
        self._questions: dict[str, Question] = {}
        self._images: set[Path] = set()  # read, to be removed

    def do(self, request: Message, emit: Emit, cancelled: Cancelled) -> Message:
        """Raises IbisError for problems that the user can solve, and any other exception for others."""
        actions = {
            "load": self._load,
            "ask": self._ask,
            "step": self._step,
            "add": self._add,
            "spread": self._spread,
            "info": self._info,
            "models": self._models,
            "close": self._close,
            "unload": self._unload,
        }
        action = actions.get(request["request"])
        if action is None:
            raise InputError("there is no such request", value=request["request"])
        return action(request, emit, cancelled)

    # Models

    def load_policy(self, where: Any, device: str, precision: str) -> Policy:
        return policies.open(where, device, precision)

    def load_segmenter(self, where: str, config: str, device: str, agreed: str = "") -> Any:
        return segmenters.open(where, config or None, device, agreed=agreed)

    def _load(self, request: Message, emit: Emit, cancelled: Cancelled) -> Message:
        """Load the models that are not loaded yet. A replaced model is freed first, because both may not fit."""
        where = {key: str(request.get(key) or default) for key, default in _DEFAULTS.items()}
        policy = tuple(where[key] for key in ("policy", "device", "precision", *_OF_A_SERVER))
        segmenter = tuple(where[key] for key in ("segmenter", "segmenter_config", "device", "send_slices_to"))
        self._questions.clear()
        if self._made_of.get("policy") != policy:
            self._policy = None
        if self._made_of.get("segmenter") != segmenter:
            self._segmenter = None
        self.free_memory()
        if self._segmenter is None:
            emit("loading", text=f"Loading the segmenter ({_shown(where['segmenter'])}) …")
            self._segmenter = self.load_segmenter(*segmenter)
            self._made_of["segmenter"] = segmenter
        _check(cancelled)
        if self._policy is None:
            emit("loading", text=f"Loading the policy ({_shown(where['policy'])}) …")
            source = _source(where)
            if policies.is_address(where["policy"]):
                source.cancelled = cancelled
            self._policy = self.load_policy(source, where["device"], where["precision"])
            self._made_of["policy"] = policy
        card = self._policy.card
        return {
            "event": "ready",
            "policy": dict(self._policy.identity),
            "segmenter": dict(self._segmenter.identity),
            "device": str(getattr(self._segmenter, "device", "cpu")),
            "precision": str(getattr(self._policy, "precision", "")),
            "card": {
                "name": card.name,
                "note": card.note,
                "orientation": card.orientation.value,
                "window": list(card.window) if card.window else None,
                "vocabulary": {name: list(words) for name, words in card.vocabulary.items()},
            },
            "scopes": list(self.scopes),
        }

    def _unload(self, request: Message, emit: Emit, cancelled: Cancelled) -> Message:
        self._questions.clear()
        self._policy = self._segmenter = None
        self._made_of.clear()
        self.free_memory()
        return {"event": "done"}

    def _info(self, request: Message, emit: Emit, cancelled: Cancelled) -> Message:
        """Whether the chosen policy fits into memory, from its files."""
        where, device = str(request.get("policy") or DEMO), str(request.get("device") or "auto")
        found = policies.find(_source({**_DEFAULTS, **request, "policy": where}))
        found.check()
        device = _device(device)
        precision = str(request.get("precision") or "auto")
        if precision == "auto":
            precision = "bf16" if device.startswith("cuda") else "fp32"
        needed = found.run_bytes(precision, device)
        free = memory.free_bytes(device)
        loaded = self._policy is not None and self._made_of.get("policy", ("",))[0] == where
        fits = {
            other: found.run_bytes(other, device) <= (free or needed)
            for other in (memory.offered(device) if device.startswith("cuda") else ("fp32",))
        }
        return {
            "event": "done",
            "info": {
                "name": found.card.name,
                "device": device,
                "precision": precision,
                "needed": needed,
                "free": free,
                "fits": fits,
                "loaded": loaded,
            },
        }

    def _models(self, request: Message, emit: Emit, cancelled: Cancelled) -> Message:
        """The models that a server offers; empty for a local policy, and for a server that does not list them."""
        listed = getattr(policies.find(_source({**_DEFAULTS, **request})), "models", None)
        return {"event": "done", "models": listed() if listed else []}

    def free_memory(self) -> None:
        """Free unused memory, also on the GPU."""
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def memory(self) -> Message:
        """Memory of the device in bytes: {"device", "total", "free", "used"}; "used" is by this process."""
        torch = sys.modules.get("torch")
        device = str(getattr(self._segmenter, "device", "cpu"))
        if torch is None or not device.startswith("cuda"):
            return {"device": "CPU", "total": None, "free": memory.free_bytes("cpu"), "used": None}
        free, total = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
        return {"device": name, "total": total, "free": free, "used": torch.cuda.memory_reserved(device)}

    # Questions

    def _ask(self, request: Message, emit: Emit, cancelled: Cancelled) -> Message:
        """Open a question about an image, or resume a run."""
        if self._policy is None or self._segmenter is None:
            raise ModelError("no models are loaded", remedy="Load them first.")
        if request.get("scope", "slice") not in self.scopes:
            raise InputError("this worker does not support this", value=request.get("scope"))
        if not request.get("head"):
            check_asked(str(request["question"]), self._policy.card)
        question = Question(request, self._policy, self._segmenter)
        for key in ("image", "start", "exclude"):
            if request.get(key):
                self._has_read(request[key])
        self._questions[str(request["session"])] = question
        return {"event": "done", "head": question.head()}

    def _step(self, request: Message, emit: Emit, cancelled: Cancelled) -> Message:
        return self._asked(request).step(request, emit, cancelled)

    def _add(self, request: Message, emit: Emit, cancelled: Cancelled) -> Message:
        return self._asked(request).add(request, emit, cancelled)

    def _spread(self, request: Message, emit: Emit, cancelled: Cancelled) -> Message:
        return self._asked(request).spread(request, emit, cancelled)

    def _asked(self, request: Message) -> Question:
        question = self._questions.get(str(request.get("session")))
        if question is None:
            raise InputError(
                "this question is not open", value=request.get("session"), remedy="Ask it first."
            )
        return question

    def _close(self, request: Message, emit: Emit, cancelled: Cancelled) -> Message:
        self._questions.pop(str(request.get("session")), None)
        self._remove_images()
        return {"event": "done"}

    def _has_read(self, image: Message) -> None:
        file = Path(str(image["file"]))
        if file.parent == self.folder:
            self._images.add(file)
        self._remove_images()

    def _remove_images(self) -> None:
        """Remove images once read: a worker may run for weeks, and a volume takes hundreds of megabytes.

        A memory-mapped file stays readable; Windows refuses its removal until the question is closed.
        """
        for file in tuple(self._images):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
                self._images.discard(file)


_OF_A_SERVER = ("model", "card", "send_pictures_to")
_DEFAULTS = {
    "policy": DEMO,
    "segmenter": DEMO,
    "segmenter_config": "",
    "device": "auto",
    "precision": "auto",
    **dict.fromkeys(_OF_A_SERVER, ""),
    "send_slices_to": "",
}


def _source(where: Message) -> Any:
    """The policy's source; for a server with its model, card and consent."""
    if not policies.is_address(where["policy"]):
        return where["policy"]
    return policies.find(where["policy"], *(where[key] for key in _OF_A_SERVER))


def _device(name: str) -> str:
    if name != "auto":
        return name
    with contextlib.suppress(ImportError):
        import torch

        if torch.cuda.is_available():
            return "cuda"
    return "cpu"


def _shown(where: str) -> str:
    if where == DEMO:
        return "demonstration"
    return where if policies.is_address(where) or segmenters.is_address(where) else Path(where).name


def _check(cancelled: Cancelled) -> None:
    if cancelled():
        raise Stopped()
