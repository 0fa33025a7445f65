"""Questions about whole volumes, as the worker holds them: a run, and the actions that it may have to go back to.

What requests there are is in protocol, how they come to a question is in workbench.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ibis_agent.actions import Click
from ibis_agent.engine.protocol import Message
from ibis_agent.errors import Cancelled, InputError
from ibis_agent.fields import Fields
from ibis_agent.policy.card import ModelCard
from ibis_agent.record.volume_record import action_from_json, action_to_json, head_of_run, slice_to_json
from ibis_agent.run.episode import Limits
from ibis_agent.run.volume_actions import Progress, VolumeAction, VolumeLimits, Watch
from ibis_agent.scan.frame import Frame, Kind, frame_from
from ibis_agent.scan.slices import Stack, stack_of

Emit = Callable[..., None]


class VolumeQuestion:
    """One open question about a volume."""

    def __init__(self, request: Message, stack: Stack, policy: Any, segmenter: Any) -> None:
        """request: an `ask` with scope "volume". Raises InputError."""
        from ibis_agent.run.volume_run import VolumeRun

        head, limits = request.get("head") or {}, dict(request.get("limits") or {})
        episode = Limits(
            **{"max_turns": 6, **{key: limits.pop(key) for key in ("max_turns",) if key in limits}}
        )
        if head:
            limits["follow"] = head["limits"]["follow"]
        self.run = VolumeRun(
            stack,
            str(request["question"]),
            policy,
            segmenter,
            VolumeLimits(episode=episode, **limits),
        )
        self._actions: dict[str, VolumeAction] = {}
        self._recorded: Mapping[str, Message] = dict(request.get("known") or {})
        self._now: tuple[str, ...] = ()

    def head(self) -> Message:
        """See volume_record.head_of_run."""
        return head_of_run(self.run, self.run.slices.scan.name)  # type: ignore[attr-defined]

    def step(self, request: Message, emit: Emit, cancelled: Callable[[], bool]) -> Message:
        """What comes next: one action, or a correction and what depends on it."""
        rejected = str(request.get("rejected") or "")
        self._go_to([*request.get("after", self._now), *filter(None, [rejected])], cancelled)
        if rejected:
            self.run.reject()
            self._now = self._now[:-1]
        return self._watched(self.run.step, emit, cancelled)

    def add(self, request: Message, emit: Emit, cancelled: Callable[[], bool]) -> Message:
        """A click of the person's on any slice."""
        click, replaced = request["click"], request.get("replace")
        self._go_to(request.get("after", self._now), cancelled)
        made = Click(click["x"], click["y"], bool(click["positive"]))
        index = int(request["slice"])
        return self._watched(lambda watch: self.run.click(index, made, replaced, watch), emit, cancelled)

    def spread(self, request: Message, emit: Emit, cancelled: Callable[[], bool]) -> Message:
        """What depends on a clicked slice is found again."""
        self._go_to(request.get("after", self._now), cancelled)
        return self._watched(lambda watch: self.run.spread(int(request["slice"]), watch), emit, cancelled)

    def _watched(self, act: Callable[[Watch], object], emit: Emit, cancelled: Callable[[], bool]) -> Message:
        """Do something, tell of every slice and action, and say how the run stands."""
        before = len(self._now)

        def progress(done: Progress, found: Any) -> None:
            known = slice_to_json(self.run, done.index)
            emit(
                "slice", slice=done.index, known=known, done=done.done, total=done.total,
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
            # A growth that was stopped is an action with the slices that were done.
            if len(self._now) == before:
                raise
            stopped = True
        return {"event": "done", "stopped": stopped, **self._outcome()}

    def _tell(self, action: VolumeAction, emit: Emit) -> None:
        run, uid, after = self.run, uuid.uuid4().hex[:12], self._now
        self._actions[uid] = action
        self._now = (*after, uid)
        touched = {str(index): slice_to_json(run, index) for index in action.touched}
        record = action_to_json(action, run.slices.geometry(run.slices.first))
        emit("step", step={**record, "uid": uid, "touched": touched}, after=list(after), **self._outcome())

    def _outcome(self) -> Message:
        return {"status": self.run.status, "reason": self.run.reason, "answer": self.run.answer}

    def _go_to(self, uids: Sequence[Any], cancelled: Callable[[], bool]) -> None:
        wanted = tuple(str(uid) for uid in uids)
        if wanted == self._now and self.run.rejected is None:
            return
        geometry = self.run.slices.geometry(self.run.slices.first)
        for number, uid in enumerate(wanted, 1):
            if uid in self._actions:
                continue
            if uid not in self._recorded:
                raise InputError("this worker does not know that action", value=uid)
            self._actions[uid] = action_from_json(Fields(self._recorded[uid]), geometry, number)
        self.run.go_to([self._actions[uid] for uid in wanted], Watch(cancelled=cancelled))
        self._now = wanted


def stack_from(image: Message, scan: Any, card: ModelCard, head: Message | None) -> Stack:
    """The slices that an `ask` is about; those of `head` where a run goes on. Raises InputError."""
    frame: Kind | Frame
    if head:
        volume = head["volume"]
        if volume.get("orientation") != card.orientation.value:
            raise InputError(
                "this run was made with a policy that sees pictures turned another way",
                remedy="Choose the policy that it was made with under Models, or ask the question anew.",
            )
        window, roi = volume["window"], volume["roi"]
        frame = frame_from(Fields(volume)) or "slice"
        slices: Any = (volume["first"], volume["last"])
    else:
        slices, roi, frame = image.get("range"), image.get("roi"), card.frame
        window = image.get("window") or (card.window if scan.may_be_ct else None) or image.get("shown")
    return stack_of(scan, "xyz"[int(image["axis"])], window, card.orientation, slices, roi, frame)
