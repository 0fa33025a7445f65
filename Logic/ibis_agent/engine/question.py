"""One open question in the worker: a run over a slice or a volume, with all steps it may have to go back to."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from ibis_agent.engine.protocol import Message
from ibis_agent.errors import Cancelled, InputError
from ibis_agent.fields import Fields
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.contract import Policy
from ibis_agent.record.pictures import picture_from_json, subject_from_json
from ibis_agent.record.steps import (
    action_from_json,
    action_to_json,
    actions_of,
    click_from_json,
    given_from_json,
    slice_to_json,
    step_from_json,
    step_to_json,
)
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.action import Progress, RunAction, Watch
from ibis_agent.run.caveats import caveats
from ibis_agent.run.episode import Limits
from ibis_agent.run.given import Given, given
from ibis_agent.run.run import Run
from ibis_agent.run.settings import Settings
from ibis_agent.scan.frame import Frame, Kind, frame_from
from ibis_agent.scan.load import check_modality
from ibis_agent.scan.picture import Picture, cut
from ibis_agent.scan.scan import Scan
from ibis_agent.scan.slices import Slices, one_slice, stack_of
from ibis_agent.segmenter.contract import Found, Segmenter

Emit = Callable[..., None]
IsCancelled = Callable[[], bool]
_TURNED = "this run was made with a policy that uses a different image orientation"
_OTHER_POLICY = "Choose that policy under Models, or ask the question again."


class Question:
    """One open question."""

    def __init__(self, request: Message, policy: Policy, segmenter: Segmenter) -> None:
        """request: an `ask`, see protocol. Raises InputError."""
        head, scope = request.get("head"), str(request.get("scope") or "slice")
        image = request.get("image") or {}
        if scope == "volume":
            slices, self._source = volume_slices(image, policy.card, head), str(image.get("name") or "")
        else:
            slices, self._source = single_slice(image, policy.card, head)
        settings = _settings(scope, dict(request.get("limits") or {}), head)
        self._geometry = slices.geometry(slices.first)
        masks = given_from_json(Fields(dict(head)), self._geometry) if head else given_masks(request, slices)
        self.run = Run(slices, str(request["question"]), policy, segmenter, settings, given=masks)
        self._actions: dict[str, RunAction] = {}
        self._recorded: Mapping[str, Message] = dict(request.get("known") or {})
        self._now: tuple[str, ...] = ()

    def head(self) -> Message:
        """See Trajectory.head."""
        return Trajectory.of(self.run, self._source).head()

    def step(self, request: Message, emit: Emit, cancelled: IsCancelled) -> Message:
        """Perform the next action, or a second look and its propagation. See Run.step."""
        rejected = str(request.get("rejected") or "")
        self._go_to([*request.get("after", self._now), *filter(None, [rejected])], cancelled)
        if rejected:
            self.run.reject()
            self._now = self._now[:-1]
        return self._watched(self.run.step, emit, cancelled)

    def add(self, request: Message, emit: Emit, cancelled: IsCancelled) -> Message:
        """A user's prompt on any slice."""
        click, replaced = click_from_json(request["click"]), request.get("replace")
        index = self.run.slices.first if self.run.alone else int(request["slice"])
        self._go_to(request.get("after", self._now), cancelled)
        return self._watched(lambda watch: self.run.click(index, click, replaced, watch), emit, cancelled)

    def spread(self, request: Message, emit: Emit, cancelled: IsCancelled) -> Message:
        """Propagate a corrected slice again."""
        if self.run.alone:
            raise InputError("this is only possible for volumes", value=request.get("session"))
        self._go_to(request.get("after", self._now), cancelled)
        return self._watched(lambda watch: self.run.spread(int(request["slice"]), watch), emit, cancelled)

    def _watched(self, act: Callable[[Watch], object], emit: Emit, cancelled: IsCancelled) -> Message:
        """Call `act`, report every slice and action, and return the `done` event."""
        before = len(self._now)

        def progress(done: Progress, found: Found) -> None:
            emit(
                "slice", slice=done.index, known=self._slice(done.index), done=done.done, total=done.total,
                seconds_left=round(done.seconds_left, 2),
            )  # fmt: skip

        watch = Watch(
            action=lambda action: self._tell(action, emit),
            progress=progress,
            text=lambda piece: emit("text", text=piece),
            retry=lambda reason: emit("retry", text=reason),
            cancelled=cancelled,
        )
        stopped = False
        try:
            act(watch)
        except Cancelled:
            # A stopped propagation is an action with the slices it has done.
            if len(self._now) == before:
                raise
            stopped = True
        return {"event": "done", "stopped": stopped, **self._outcome()}

    def _tell(self, action: RunAction, emit: Emit) -> None:
        uid, after = uuid.uuid4().hex[:12], self._now
        self._actions[uid] = action
        self._now = (*after, uid)
        if self.run.alone:
            record = step_to_json(action.steps[-1], self._geometry)
        else:
            touched = {str(index): self._slice(index) for index in action.touched}
            record = {**action_to_json(action, self._geometry), "touched": touched}
        emit("step", step={**record, "uid": uid}, after=list(after), **self._outcome())

    def _slice(self, index: int) -> Message | None:
        run = self.run
        return slice_to_json(run.found.get(index), run.mask(index), index, run.pixel_mm2)

    def _outcome(self) -> Message:
        run = self.run
        said = {"status": run.status, "reason": run.reason, "answer": run.answer}
        return {**said, "caveats": list(caveats(run))}

    def _go_to(self, uids: Sequence[Any], cancelled: IsCancelled) -> None:
        wanted = tuple(str(uid) for uid in uids)
        if wanted == self._now and self.run.rejected is None:
            return
        for uid in wanted:
            if uid not in self._actions and uid not in self._recorded:
                raise InputError("the worker does not have this step", value=uid)
        actions: Sequence[RunAction]
        if self.run.alone and any(uid not in self._actions for uid in wanted):
            given = [
                self._actions[uid].steps[-1]
                if uid in self._actions
                else step_from_json(self._recorded[uid], self._geometry)
                for uid in wanted
            ]
            made = actions_of(given, self._geometry.index)
            actions = [self._actions.get(uid, each) for uid, each in zip(wanted, made, strict=True)]
        else:
            actions = [
                self._actions[uid]
                if uid in self._actions
                else action_from_json(Fields(self._recorded[uid]), self._geometry, number)
                for number, uid in enumerate(wanted, 1)
            ]
        self.run.go_to(actions, Watch(cancelled=cancelled))
        self._actions.update(zip(wanted, self.run.actions, strict=True))
        self._now = wanted


def _settings(scope: str, limits: dict[str, Any], head: Message | None) -> Settings:
    """The requested settings; a resumed run keeps its kind of propagation."""
    turns: dict[str, int] = {key: limits.pop(key) for key in ("max_turns", "max_repeats") if key in limits}
    if scope == "slice":
        return Settings(Limits(**turns, **limits), follow="alone")
    if head:
        limits["follow"] = head["limits"]["follow"]
    turns.setdefault("max_turns", 6)
    return Settings(Limits(**turns), **limits)


def single_slice(image: Message, card: ModelCard, head: Message | None) -> tuple[Slices, str]:
    """The slice of an `ask`, or of `head` if a run is resumed, and the scan's name. Raises InputError."""
    if not head:
        return one_slice(cut_picture(image, card)), str(image.get("name") or "")
    recorded = head["picture"]
    if recorded.get("orientation") not in (None, card.orientation.value):
        raise InputError(_TURNED, remedy=_OTHER_POLICY)
    slices = one_slice(picture_from_json(recorded), subject_from_json(recorded))
    return slices, str(recorded.get("source") or "")


def volume_slices(image: Message, card: ModelCard, head: Message | None) -> Slices:
    """The slices of an `ask`, or of `head` if a run is resumed. Raises InputError."""
    scan, frame, known = scan_of(image), cast("Kind | Frame", card.frame), None
    if head:
        volume = head["volume"]
        if volume.get("orientation") != card.orientation.value:
            raise InputError(_TURNED, remedy=_OTHER_POLICY)
        window, roi = volume["window"], volume["roi"]
        frame = frame_from(Fields(volume)) or "slice"
        # The scene may contain only the recorded pictures, whose grey values do not tell it.
        known = subject_from_json(volume) if {"modality", "region"} & set(volume) else None
        slices: Any = (volume["first"], volume["last"])
    else:
        slices, roi = image.get("range"), image.get("roi")
        window = image.get("window") or (card.window if scan.may_be_ct else None) or image.get("shown")
    stack = stack_of(scan, "xyz"[int(image["axis"])], window, card.orientation, slices, roi, frame)
    return dataclasses.replace(stack, known=known)


def given_masks(request: Message, slices: Slices) -> Given:
    """The masks of an `ask`: the starting mask "start", and "exclude", which the run's masks never enter.

    Each is {"file", "name"}: an .npy of the same shape as the image's file (see `cut_picture`), where non-zero voxels
    belong to the mask, and a name for people and the record. Raises InputError.
    """
    masks, names = [], []
    for key in ("start", "exclude"):
        given_one, held = request.get(key) or {}, dict[int, np.ndarray]()
        if given_one:
            image = {**request["image"], "file": given_one.get("file"), "colour": False}
            voxels = scan_of(image).voxels
            for index in range(slices.first, slices.last + 1):
                inside, mask = slices.inside(index), slices.geometry(index).extract(voxels) != 0
                held[index] = mask if inside is None or key == "exclude" else mask & inside
        masks.append(held)
        names.append(str(given_one.get("name") or ""))
    made = given(masks[0], masks[1], names[0], names[1])
    if request.get("start") and not made.start:
        remedy = "Choose a slice or range that contains it."
        raise InputError("the mask to start from is not on these slices", value=names[0], remedy=remedy)
    return made


def cut_picture(image: Message, card: ModelCard) -> Picture:
    """The picture of the slice that an `ask` describes. Raises InputError.

    `image` has

    - "file": an .npy in Slicer's axis order (K, J, I), memory-mapped here. It may contain only the slice, one voxel
      thick, which then stands for the whole volume;
    - "shape" (I, J, K) of the volume, "affine" (4, 4) voxel → RAS mm, "axis" and "index" of the slice;
    - "window": (minimum, maximum) in grey values, if the user chose it, or None;
    - "shown": the window used if neither the user nor the policy's card (for possible CT) sets one, or None for the
      1st and 99th percentile;
    - "range", for a volume: first and last slice; "roi": six voxel indices, see scan.slices.stack_of;
    - "colour": true if the file has another axis for red, green and blue (uint8): a photograph, used unchanged;
    - "name", for people; "modality" from the file, or "";
    - "taken_as": the modality that the user chose, or None; "likeness": [whether it looks like CT, the reason], from
      the whole volume, if the modality is unknown.
    """
    if image.get("colour"):
        channels = [scan_of(image, channel) for channel in range(3)]
        place = "xyz"[int(image["axis"])], int(image["index"]), card.orientation
        geometry = channels[0].geometry(*place)
        planes = [geometry.extract(each.voxels) for each in channels]
        return Picture(np.stack(planes, axis=2).astype(np.uint8), geometry, None)
    scan, window = scan_of(image), image.get("window") or None
    preferred = card.window if card.window is not None and scan.may_be_ct else image.get("shown")
    plane, index = "xyz"[int(image["axis"])], int(image["index"])
    return cut(scan, plane, index, window, card.orientation, preferred, card.frame)


def scan_of(image: Message, channel: int | None = None) -> Scan:
    """The scan of an `image`, see `cut_picture`; channel: of a colour image. Raises InputError."""
    try:
        voxels = np.load(image["file"], mmap_mode="r", allow_pickle=False)
        shape = tuple(int(n) for n in image["shape"])
        axis = int(image["axis"])
        affine = np.array(image["affine"], dtype=np.float64)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError("the image of the question cannot be read", value=str(error)) from error
    voxels = (voxels if channel is None else voxels[..., channel]).transpose()
    slab = tuple(1 if each == axis else n for each, n in enumerate(shape))
    if voxels.shape not in (shape, slab):
        raise InputError("the image does not have the given shape", value=f"{voxels.shape} for {shape}")
    likeness = image.get("likeness")
    scan = Scan(
        voxels=np.broadcast_to(voxels, shape),
        affine=affine,
        kind="volume",
        path=Path(str(image.get("name") or "volume")),
        name=str(image.get("name") or ""),
        modality=str(image.get("modality") or ""),
        likeness=(bool(likeness[0]), str(likeness[1])) if likeness else None,
    )
    return scan.taken_as(check_modality(str(image["taken_as"]))) if image.get("taken_as") else scan
