"""What a run consists of, kept by the side that must not lose it: question, picture, steps, and the way back.

A `RunRecord` needs no models and no worker: going back, undoing and redoing only choose which of the steps
that exist count. The worker is told which ones (`after`) when something is to follow them. The record is also
what is saved with a scene, and it gives the trajectory at any moment.

Steps are the JSON objects of trajectories (schema ibis-trajectory/1) with one more key, `uid`, which names
the step to the worker. How trajectories are read and written as files is in trajectory.py.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ibis_agent.actions import Click
from ibis_agent.errors import InputError
from ibis_agent.mask.masks import decode_rle
from ibis_agent.scan.geometry import PictureGeometry

SCHEMA = "ibis-run/1"
_MOST_UNDOS = 200

Json = dict[str, Any]


@dataclass(frozen=True)
class _State:
    """One position in a run: which steps count, and how it stands."""

    steps: tuple[str, ...] = ()
    status: str = "ready"
    reason: str = ""
    answer: str | None = None
    rejected: str | None = None  # the step that the person took back last and wants the policy to know of


class RunRecord:
    """One question's run.

    Attributes:
        session: names the run to the worker; new for every record, kept when it is saved.
        question: what was asked.
        head: the trajectory without its steps and outcome (picture, models, limits), once the worker has
            answered.
    """

    schema = SCHEMA

    def __init__(self, question: str, session: str | None = None):
        self.session = session or uuid.uuid4().hex
        self.question = question
        self.head: Json = {}
        self._known: dict[str, Json] = {}
        self._state = _State()
        self._undo: list[_State] = []
        self._redo: list[_State] = []

    # What is

    @property
    def steps(self) -> list[Json]:
        """The steps that count, first to last."""
        return [self._known[uid] for uid in self._state.steps]

    @property
    def after(self) -> list[str]:
        """Their uids: what the next request builds on."""
        return list(self._state.steps)

    @property
    def status(self) -> str:
        """ "ready", "paused" (a person has to look) or "ended"."""
        return self._state.status

    @property
    def reason(self) -> str:
        return self._state.reason

    @property
    def answer(self) -> str | None:
        return self._state.answer

    @property
    def rejected(self) -> Json | None:
        """The step that was rejected, as long as nothing has followed."""
        return self._known.get(self._state.rejected or "")

    @property
    def geometry(self) -> PictureGeometry:
        """Where the picture lies. Raises InputError before the worker has opened the run."""
        if "picture" not in self.head:
            raise InputError("this run has no picture yet")
        return PictureGeometry.from_json(self.head["picture"]["geometry"])

    def can_undo(self) -> bool:
        return bool(self._undo)

    def can_redo(self) -> bool:
        return bool(self._redo)

    def can_reject(self) -> bool:
        """Whether the last step is something the policy said, so that it can be told that it was wrong."""
        steps = self.steps
        return (
            bool(steps)
            and steps[-1]["by"] == "policy"
            and steps[-1]["action"]["kind"] in ("click", "terminate")
        )

    def mask(self, number: int | None = None) -> np.ndarray:
        """(H, W) bool mask after step `number` (0: before the first; None: the last)."""
        steps = self.steps
        number = len(steps) if number is None else number
        picture = self.head["picture"]
        shape = (int(picture["height"]), int(picture["width"]))
        if not 0 <= number <= len(steps):
            raise InputError("there is no such step", value=number, remedy=f"There are {len(steps)}.")
        return decode_rle(steps[number - 1]["mask_rle"], shape) if number else np.zeros(shape, bool)

    def clicks(self, number: int | None = None) -> list[tuple[int, Click]]:
        """(step number, click) of every click up to step `number` (None: the last)."""
        found = []
        for step in self.steps[: len(self._state.steps) if number is None else number]:
            action = step["action"]
            if action["kind"] == "click":
                found.append((int(step["number"]), Click(action["x"], action["y"], action["positive"])))
        return found

    # What happens

    def open(self, head: Mapping[str, Any]) -> None:
        """The worker has cut the picture. A record that has one already keeps it: its steps belong to that
        one.
        """
        if not self.head:
            self.head = dict(head)
        else:
            self.head["models"] = head.get("models", self.head.get("models", {}))

    def extend(self, after: Iterable[str], step: Mapping[str, Any], outcome: Mapping[str, Any]) -> bool:
        """A step has been made after the steps `after`. False, and nothing changes, if those are not the
        first of the present ones: the person has gone elsewhere since."""
        base = tuple(after)
        if base != self._state.steps[: len(base)]:
            return False
        uid = str(step["uid"])
        self._known[uid] = {**step, "number": len(base) + 1}
        self._go(_State((*base, uid), **_outcome(outcome)))
        return True

    def settle(self, outcome: Mapping[str, Any]) -> None:
        """How the run stands now, where no step came of a request (two unreadable replies, a limit)."""
        self._state = replace(self._state, **_outcome(outcome))

    def back(self, number: int) -> None:
        """Keep the first `number` steps. Can be undone."""
        if not 0 <= number <= len(self._state.steps):
            raise InputError(
                "there is no such step", value=number, remedy=f"There are {len(self._state.steps)}."
            )
        if number < len(self._state.steps):
            kept = self._state.steps[:number]
            self._go(_State(kept, **self._left_by(kept)))

    def reject(self) -> None:
        """Take the last step back, and let the policy know of it at the next one. Can be undone."""
        if not self._state.steps:
            raise InputError("there is no step to reject")
        self._reject(len(self._state.steps))

    def finish(self) -> None:
        """The person accepts the mask as it is: an end of theirs, unless the run has ended already."""
        steps = self.steps
        if not steps or steps[-1]["action"]["kind"] == "terminate":
            return
        end = {
            **steps[-1],
            "uid": uuid.uuid4().hex[:12],
            "by": "person",
            "thinking": "",
            "reply": "",
            "action": {"kind": "terminate", "answer": ""},
            "seconds": {},
        }
        self.extend(
            self.after, end, {"status": "ended", "reason": "The person accepted the mask.", "answer": ""}
        )

    def undo(self) -> None:
        if self._undo:
            self._redo.append(self._state)
            self._state = self._undo.pop()

    def redo(self) -> None:
        if self._redo:
            self._undo.append(self._state)
            self._state = self._redo.pop()

    def _reject(self, number: int) -> None:
        """Go back to before step `number`, which the policy is told of."""
        kept = self._state.steps[: number - 1]
        self._go(_State(kept, **self._left_by(kept), rejected=self._state.steps[number - 1]))

    def _left_by(self, uids: Sequence[str]) -> Json:
        """How a run stands after these steps: ended, where a click had followed an end and was taken back."""
        last = self._known[uids[-1]] if uids else {}
        if not uids or last["action"]["kind"] != "terminate":
            return _outcome({})
        who = "The person accepted the mask." if last["by"] == "person" else "The policy ended."
        return {"status": "ended", "reason": who, "answer": last["action"]["answer"]}

    def _go(self, state: _State) -> None:
        self._undo = [*self._undo, self._state][-_MOST_UNDOS:]
        self._redo = []
        self._state = state

    # What lasts

    def trajectory(self) -> Json:
        """The record of the run so far, in the trajectories' schema."""
        return {
            **self.head,
            "question": self.question,
            "answer": self._state.answer,
            "status": self._state.status,
            "reason": self._state.reason,
            "steps": self.steps,
        }

    def known(self) -> Json:
        """All steps that can still come to count, by uid, as a worker needs them to go on with the run."""
        kept = [self._state, *self._undo, *self._redo]
        used = {uid for state in kept for uid in (*state.steps, state.rejected)}
        return {uid: step for uid, step in self._known.items() if uid in used}

    def to_json(self) -> Json:
        """Everything, the way back included."""
        return {
            "schema": self.schema,
            "session": self.session,
            "question": self.question,
            "head": self.head,
            "known": RunRecord.known(self),
            "state": _state_to_json(self._state),
            "undo": [_state_to_json(state) for state in self._undo],
            "redo": [_state_to_json(state) for state in self._redo],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> RunRecord:
        """The reverse of `to_json`. Raises InputError for anything that is no record."""
        try:
            if record["schema"] != cls.schema:
                raise ValueError(f"schema {record['schema']}")
            run = cls(str(record["question"]), str(record["session"]))
            run.head = dict(record["head"])
            run._known = {str(uid): dict(step) for uid, step in record["known"].items()}
            run._state = run._checked(record["state"])
            run._undo = [run._checked(state) for state in record["undo"]]
            run._redo = [run._checked(state) for state in record["redo"]]
            if run._known:
                run._check_head()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError("this is no saved run", value=f"{type(error).__name__}: {error}") from error
        return run

    def _check_head(self) -> None:
        PictureGeometry.from_json(self.head["picture"]["geometry"])

    def _checked(self, state: Mapping[str, Any]) -> _State:
        steps = tuple(str(uid) for uid in state["steps"])
        missing = [uid for uid in steps if uid not in self._known]
        if missing:
            raise ValueError(f"a step is missing: {missing[0]}")
        return _State(steps, **_outcome(state), rejected=state.get("rejected"))


def _outcome(message: Mapping[str, Any]) -> Json:
    return {
        "status": str(message.get("status", "ready")),
        "reason": str(message.get("reason") or ""),
        "answer": message.get("answer"),
    }


def _state_to_json(state: _State) -> Json:
    return {
        "steps": list(state.steps),
        "status": state.status,
        "reason": state.reason,
        "answer": state.answer,
        "rejected": state.rejected,
    }
