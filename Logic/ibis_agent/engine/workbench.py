"""What the worker's requests do: the models it holds and the questions that are open.

No pipes, threads or signals here (worker.py). Torch is imported when models are loaded, not before, so that
the worker answers at once.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import ibis_agent.policy as policies
import ibis_agent.segmenter as segmenters
from ibis_agent.actions import Click
from ibis_agent.engine.protocol import Message
from ibis_agent.engine.workbench_volume import VolumeQuestion, stack_from
from ibis_agent.errors import Cancelled as Stopped
from ibis_agent.errors import InputError, ModelError
from ibis_agent.policy import DEMO
from ibis_agent.policy import required_memory as memory
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.contract import Policy
from ibis_agent.policy.vocabulary import check_asked
from ibis_agent.record.trajectory import head_of, picture_from_json, step_from_json, step_to_json
from ibis_agent.run.episode import Episode, Limits, Step
from ibis_agent.scan.picture import Picture, cut
from ibis_agent.scan.scan import Scan

Emit = Callable[..., None]
Cancelled = Callable[[], bool]


@dataclass
class _Session:
    """One open question: its episode, and every step that it may have to go back to."""

    episode: Episode
    steps: dict[str, Step] = field(default_factory=dict)  # with logits: what the next step needs
    recorded: dict[str, Message] = field(default_factory=dict)  # from before this worker, without logits
    now: tuple[str, ...] = ()  # the uids of the episode's steps


class Workbench:
    """Answers requests one at a time. `do` returns the last event of its request and raises what went wrong."""

    scopes: Sequence[str] = ("slice", "volume")  # what `ask` can be asked about
    # Private to the worker: images that come there are removed when they were read.
    folder: Path | None = None

    def __init__(self) -> None:
        self._policy: Policy | None = None
        self._segmenter: Any = None
        self._made_of: dict[str, tuple[str, ...]] = {}  # which settings each loaded part came from
        self._sessions: dict[str, _Session | VolumeQuestion] = {}
        self._images: set[Path] = set()  # read, and to be removed

    def do(self, request: Message, emit: Emit, cancelled: Cancelled) -> Message:
        """Raises IbisError for what a person can put right, and whatever else went wrong."""
        actions = {
            "load": self._load,
            "ask": self._ask,
            "step": self._step,
            "add": self._add,
            "spread": self._spread,
            "info": self._info,
            "close": self._close,
            "unload": self._unload,
        }
        action = actions.get(request["request"])
        if action is None:
            raise InputError("there is no such request", value=request["request"])
        return action(request, emit, cancelled)

    # Models

    def load_policy(self, where: str, device: str, precision: str) -> Policy:
        return policies.open(where, device, precision)

    def load_segmenter(self, where: str, config: str, device: str) -> Any:
        return segmenters.open(where, config or None, device)

    def _load(self, request: Message, emit: Emit, cancelled: Cancelled) -> Message:
        """Load what is not loaded yet. A part that changes is let go first: both may not fit at once."""
        where = {key: str(request.get(key) or default) for key, default in _DEFAULTS.items()}
        policy = (where["policy"], where["device"], where["precision"])
        segmenter = (where["segmenter"], where["segmenter_config"], where["device"])
        self._sessions.clear()
        if self._made_of.get("policy") != policy:
            self._policy = None
        if self._made_of.get("segmenter") != segmenter:
            self._segmenter = None
        self.free_memory()
        if self._segmenter is None:
            emit("loading", text=f"Loading the segmenter ({_shown(where['segmenter'])}) …")
            self._segmenter = self.load_segmenter(
                where["segmenter"], where["segmenter_config"], where["device"]
            )
            self._made_of["segmenter"] = segmenter
        _check(cancelled)
        if self._policy is None:
            emit("loading", text=f"Loading the policy ({_shown(where['policy'])}) …")
            self._policy = self.load_policy(where["policy"], where["device"], where["precision"])
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
            },
            "scopes": list(self.scopes),
        }

    def _unload(self, request: Message, emit: Emit, cancelled: Cancelled) -> Message:
        self._sessions.clear()
        self._policy = self._segmenter = None
        self._made_of.clear()
        self.free_memory()
        return {"event": "done"}

    def _info(self, request: Message, emit: Emit, cancelled: Cancelled) -> Message:
        """Whether the chosen policy fits, told from its files before anything is loaded."""
        where, device = str(request.get("policy") or DEMO), str(request.get("device") or "auto")
        found = policies.find(where)
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
            for other in (memory.PRECISIONS if device.startswith("cuda") else ("fp32",))
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

    def free_memory(self) -> None:
        """Give back what nobody holds any more."""
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def memory(self) -> Message:
        """Memory of the device in use, in bytes: {"device", "total", "free", "used"}; used is this process's
        own.
        """
        torch = sys.modules.get("torch")
        device = str(getattr(self._segmenter, "device", "cpu"))
        if torch is None or not device.startswith("cuda"):
            return {"device": "CPU", "total": None, "free": memory.free_bytes("cpu"), "used": None}
        free, total = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
        return {"device": name, "total": total, "free": free, "used": torch.cuda.memory_reserved(device)}

    # Questions

    def _ask(self, request: Message, emit: Emit, cancelled: Cancelled) -> Message:
        """Open a question: about an image, or a run that another worker has begun."""
        if self._policy is None or self._segmenter is None:
            raise ModelError("no models are loaded", remedy="Load them first.")
        if request.get("scope", "slice") not in self.scopes:
            raise InputError("this worker cannot be asked about that", value=request.get("scope"))
        if not request.get("head"):
            check_asked(str(request["question"]), self._policy.card)
        if request.get("scope") == "volume":
            return self._ask_volume(request)
        head, limits = request.get("head"), Limits(**(request.get("limits") or {}))
        card = self._policy.card
        if head:
            picture, source = picture_from_json(head["picture"]), str(head["picture"].get("source") or "")
            if head["picture"].get("orientation") not in (None, card.orientation.value):
                raise InputError(
                    "this run was made with a policy that sees pictures turned another way",
                    remedy="Choose the policy that it was made with under Models, or ask the question anew.",
                )
        else:
            picture = cut_picture(request["image"], card)
            self._has_read(request["image"])
            source = str(request["image"].get("name") or "")
        episode = Episode(picture, str(request["question"]), self._policy, self._segmenter, limits)
        self._sessions[str(request["session"])] = _Session(episode, recorded=dict(request.get("known") or {}))
        return {"event": "done", "head": head_of(episode, source)}

    def _ask_volume(self, request: Message) -> Message:
        assert self._policy is not None
        image = request.get("image") or {}
        stack = stack_from(image, scan_of(image), self._policy.card, request.get("head"))
        self._has_read(image)
        question = VolumeQuestion(request, stack, self._policy, self._segmenter)
        self._sessions[str(request["session"])] = question
        return {"event": "done", "head": question.head()}

    def _step(self, request: Message, emit: Emit, cancelled: Cancelled) -> Message:
        volume = self._volume(request)
        if volume is not None:
            return volume.step(request, emit, cancelled)
        session = self._at(request)
        if request.get("rejected"):
            self._rewind(session, (*session.now, str(request["rejected"])))
            session.episode.reject()
            session.now = session.now[:-1]
        step = session.episode.step(
            on_text=lambda piece: emit("text", text=piece),
            cancelled=cancelled,
            on_retry=lambda reason: emit("retry", text=reason),
        )
        return self._told(session, step, emit)

    def _add(self, request: Message, emit: Emit, cancelled: Cancelled) -> Message:
        volume = self._volume(request)
        if volume is not None:
            return volume.add(request, emit, cancelled)
        session = self._at(request)
        click = request["click"]
        step = session.episode.add(Click(click["x"], click["y"], bool(click["positive"])))
        return self._told(session, step, emit)

    def _spread(self, request: Message, emit: Emit, cancelled: Cancelled) -> Message:
        volume = self._volume(request)
        if volume is None:
            raise InputError("this is for questions about volumes", value=request.get("session"))
        return volume.spread(request, emit, cancelled)

    def _close(self, request: Message, emit: Emit, cancelled: Cancelled) -> Message:
        self._sessions.pop(str(request.get("session")), None)
        self._remove_images()
        return {"event": "done"}

    def _has_read(self, image: Message) -> None:
        file = Path(str(image["file"]))
        if file.parent == self.folder:
            self._images.add(file)
        self._remove_images()

    def _remove_images(self) -> None:
        """A worker may live for weeks, and a volume takes hundreds of megabytes. A mapped one is not lost by this;
        Windows refuses it until the question is closed.
        """
        for file in tuple(self._images):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
                self._images.discard(file)

    def _told(self, session: _Session, step: Step | None, emit: Emit) -> Message:
        """Send the new step, if there is one, and say how the run stands."""
        episode = session.episode
        outcome = {"status": episode.status, "reason": episode.reason, "answer": episode.answer}
        if step is not None:
            after, uid = session.now, uuid.uuid4().hex[:12]
            session.steps[uid] = step
            session.now = (*after, uid)
            record = {**step_to_json(step, episode.picture.geometry), "uid": uid}
            emit("step", step=record, after=list(after), **outcome)
        return {"event": "done", **outcome}

    def _volume(self, request: Message) -> VolumeQuestion | None:
        """The request's question if it is about a volume."""
        session = self._sessions.get(str(request.get("session")))
        return session if isinstance(session, VolumeQuestion) else None

    def _at(self, request: Message) -> _Session:
        """The request's session, its episode standing where the request wants to go on."""
        session = self._sessions.get(str(request.get("session")))
        if not isinstance(session, _Session):
            raise InputError(
                "this question is not open", value=request.get("session"), remedy="Ask it first."
            )
        self._rewind(session, tuple(str(uid) for uid in request.get("after", session.now)))
        return session

    def _rewind(self, session: _Session, uids: tuple[str, ...]) -> None:
        episode = session.episode
        if uids == session.now and not episode.note:
            return
        steps: list[Step] = []
        for uid in uids:
            if uid not in session.steps:
                if uid not in session.recorded:
                    raise InputError("this worker does not know that step", value=uid)
                recorded = step_from_json(session.recorded[uid], episode.picture.geometry)
                session.steps[uid] = episode.relive(steps, recorded)
            steps.append(session.steps[uid])
        episode.restore(steps)
        session.now = uids


_DEFAULTS = {"policy": DEMO, "segmenter": DEMO, "segmenter_config": "", "device": "auto", "precision": "auto"}


def cut_picture(image: Message, card: ModelCard) -> Picture:
    """The picture of the slice that an `ask` describes, as the policy of this card wants it. Raises InputError.

    `image` holds

    - "file": an .npy in Slicer's order (K, J, I), memory-mapped here. It may hold the slice alone, one voxel
      thick; it then stands for the whole volume, which costs nothing;
    - "shape" (I, J, K) of the volume, "affine" (4, 4) voxel → RAS mm, "axis" and "index" of the slice;
    - "window": (minimum, maximum) in grey values that must be used, or None;
    - "shown": the one used where neither a person nor the policy's card (for what may be CT) asks
      for one, or None for the 1st and 99th percentile;
    - "range", for a whole volume: first and last slice, and "roi": six voxel indices, see stack.stack_of;
    - "name" and "modality", for people.
    """
    scan, window = scan_of(image), image.get("window") or None
    preferred = card.window if card.window is not None and scan.may_be_ct else image.get("shown")
    plane, index = "xyz"[int(image["axis"])], int(image["index"])
    return cut(scan, plane, index, window, card.orientation, preferred, card.frame)


def scan_of(image: Message) -> Scan:
    """The scan behind an `image`, see `cut_picture`. Raises InputError."""
    try:
        voxels = np.load(image["file"], mmap_mode="r", allow_pickle=False)
        shape = tuple(int(n) for n in image["shape"])
        axis = int(image["axis"])
        affine = np.array(image["affine"], dtype=np.float64)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError("the image that came with the question cannot be read", value=str(error)) from error
    voxels = voxels.transpose()
    slab = tuple(1 if each == axis else n for each, n in enumerate(shape))
    if voxels.shape not in (shape, slab):
        raise InputError("the image has another shape than was said", value=f"{voxels.shape} for {shape}")
    return Scan(
        voxels=np.broadcast_to(voxels, shape),
        affine=affine,
        kind="volume",
        path=Path(str(image.get("name") or "volume")),
        name=str(image.get("name") or ""),
        modality=str(image.get("modality") or ""),
    )


def _device(name: str) -> str:
    if name != "auto":
        return name
    with contextlib.suppress(ImportError):
        import torch

        if torch.cuda.is_available():
            return "cuda"
    return "cpu"


def _shown(where: str) -> str:
    return "demonstration" if where == DEMO else Path(where).name


def _check(cancelled: Cancelled) -> None:
    if cancelled():
        raise Stopped()
