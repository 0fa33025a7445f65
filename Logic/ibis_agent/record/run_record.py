"""The state of a run on the client side, which must not lose it: question, slices, actions, undo and redo.

A `RunRecord` needs no models and no worker: going back, undo and redo only select which of the existing steps count.
The next request tells the worker which ones (`after`). The record is also saved in the scene, and can be converted to
a trajectory at any time.

Steps are the JSON objects of records with an additional key `uid`, which identifies the step to the worker: the steps
of a single slice (schema ibis-trajectory/1), or the actions of a volume (ibis-volume/1). Actions have a further key
`touched`: the new state of the slices that they changed, by slice (see steps.slice_to_json; null if nothing is known
any more). Reading and writing record files is in trajectory.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from ibis_agent.actions import Prompt
from ibis_agent.errors import InputError
from ibis_agent.fields import Fields
from ibis_agent.mask.masks import decode_rle
from ibis_agent.record.forms import put_together
from ibis_agent.record.steps import begun, click_from_json
from ibis_agent.run.undo import UndoHistory
from ibis_agent.scan.frame import Frame, frame_from
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.scan.picture import Picture

Scope = Literal["slice", "volume"]
SCOPES: dict[str, Scope] = {"ibis-run/1": "slice", "ibis-volume-run/1": "volume"}
_ACCEPTED = "The person accepted the mask."

Json = dict[str, Any]


@dataclass(frozen=True)
class Position:
    """One state of a run: which steps count, and the status."""

    steps: tuple[str, ...] = ()
    status: str = "ready"
    reason: str = ""
    answer: str | None = None
    caveats: tuple[str, ...] = ()  # warnings about the answer
    rejected: str | None = None  # the step that the person rejected last, to be told to the policy


class RunRecord:
    """One question's run, about a slice or a volume. `number` means after that many steps; None means after all.

    Attributes:
        session: identifies the run to the worker; new for every record, kept when it is saved.
        question: the question.
        scope: "slice" or "volume".
        head: the record without its steps and outcome (pictures, models, limits), after the worker has answered.
        changes: incremented with every change, so that owners can tell whether they must save it again.
    """

    def __init__(self, question: str, scope: Scope = "slice", session: str | None = None):
        self.session = session or uuid.uuid4().hex
        self.question, self.scope = question, scope
        self.head: Json = {}
        self._known: dict[str, Json] = {}
        self._state = Position()
        self._history: UndoHistory[Position] = UndoHistory()
        self.changes = 0

    @property
    def steps(self) -> list[Json]:
        """The steps that count, first to last."""
        return [self._known[uid] for uid in self._state.steps]

    @property
    def after(self) -> list[str]:
        """Their uids: the basis of the next request."""
        return list(self._state.steps)

    @property
    def status(self) -> str:
        """ "ready", "paused" (needs a person) or "ended"."""
        return self._state.status

    @property
    def reason(self) -> str:
        return self._state.reason

    @property
    def caveats(self) -> tuple[str, ...]:
        """Warnings about the answer; the one about an unfamiliar scan also after going back."""
        lasting = filter(None, [self.head.get("unfamiliar")])
        return tuple(dict.fromkeys((*lasting, *self._state.caveats)))

    @property
    def answer(self) -> str | None:
        return self._state.answer

    @property
    def rejected(self) -> Json | None:
        """The rejected step, until something follows."""
        return self._known.get(self._state.rejected or "")

    @property
    def geometry(self) -> PictureGeometry:
        """The geometry of the slice, or of the first one in the range. Raises InputError before the worker has opened
        the run."""
        if not self.head:
            raise InputError("this run has no slices yet")
        return PictureGeometry.from_json(self._cut["geometry"])

    @property
    def frame(self) -> Frame | None:
        """The part of every slice that the models see; None for all of it. Raises InputError like `geometry`."""
        return frame_from(Fields(self._cut)) if self.head else None

    def geometry_of(self, index: int) -> PictureGeometry:
        return replace(self.geometry, index=index)

    @property
    def range(self) -> tuple[int, int]:
        """The first and the last slice that may be worked on."""
        if self.scope == "slice":
            return self.geometry.index, self.geometry.index
        return int(self._cut["first"]), int(self._cut["last"])

    @property
    def _cut(self) -> Json:
        cut: Json = self.head["picture" if self.scope == "slice" else "volume"]
        return cut

    def can_undo(self) -> bool:
        return bool(self._history.past)

    def can_redo(self) -> bool:
        return bool(self._history.future)

    def can_reject(self) -> bool:
        """Whether the last step was made by the policy, so that it can be rejected."""
        return self._last_word() is not None

    def slices(self, number: int | None = None) -> dict[int, Json]:
        """The known state of every slice (see steps.slice_to_json)."""
        steps, known = self.steps[:number], self._begun() if self.head else {}
        if self.scope == "slice":
            return {self.geometry.index: steps[-1]} if steps else known
        for action in steps:
            for index, each in action["touched"].items():
                if each is None:
                    known.pop(int(index), None)
                else:
                    known[int(index)] = each
        return known

    def _begun(self) -> dict[int, Json]:
        """The state before the first step: the given mask."""
        return begun(Fields(self.head), self.geometry)

    def mask(self, number: int | None = None, index: int | None = None) -> np.ndarray:
        """The (H, W) bool mask of a slice (None: the first one). Raises InputError if there is no such step."""
        if number is not None and not 0 <= number <= len(self.after):
            raise self._no_such_step(number)
        return self.decode(self.slices(number).get(self.range[0] if index is None else index))

    def _no_such_step(self, number: int) -> InputError:
        remedy = f"Give a number from 0 to {len(self.after)}."
        return InputError("there is no such step", value=number, remedy=remedy)

    def decode(self, known: Mapping[str, Any] | None) -> np.ndarray:
        """(H, W) bool of an entry of `slices`; empty for None."""
        shape = self.geometry.height, self.geometry.width
        return np.zeros(shape, bool) if known is None else decode_rle(str(known["mask_rle"]), shape)

    def areas_mm2(self, number: int | None = None) -> dict[int, float]:
        """The areas by slice, for all visited slices."""
        return {
            index: float(each["area_mm2"] or each["area_px"])
            for index, each in sorted(self.slices(number).items())
        }

    def volume_ml(self, number: int | None = None) -> float:
        return sum(self.areas_mm2(number).values()) * float(self._cut["gap_mm"]) / 1000

    def clicks_on(self, index: int, number: int | None = None) -> list[Prompt]:
        """All current clicks and boxes of a slice of a volume."""
        made = [each for each in self.steps[:number] if each["kind"] == "click" and each["slice"] == index]
        return [click_from_json(each) for each in made[-1]["clicks"]] if made else []

    def clicked(self, number: int | None = None) -> list[int]:
        """The slices of a volume with clicks."""
        return sorted({int(each["slice"]) for each in self.steps[:number] if each["kind"] == "click"})

    def open(self, head: Mapping[str, Any]) -> None:
        """The worker has cut the slices. A record that already has slices keeps them, because its steps belong to
        them."""
        self.changes += 1
        if not self.head:
            self.head = dict(head)
        else:
            self.head.pop("unfamiliar", None)
            self.head |= {key: head[key] for key in ("models", "unfamiliar") if key in head}

    def extend(self, after: Iterable[str], step: Mapping[str, Any], outcome: Mapping[str, Any]) -> bool:
        """Add a step made after the steps `after`. Returns False and changes nothing if these are not the first of
        the current steps, because the person has gone back meanwhile."""
        base = tuple(after)
        if base != self._state.steps[: len(base)]:
            return False
        uid = str(step["uid"])
        self._known[uid] = {**step, "number": len(base) + 1}
        self._go(Position((*base, uid), **_outcome(outcome)))
        return True

    def settle(self, outcome: Mapping[str, Any]) -> None:
        """Set the status when a request resulted in no step (two unreadable replies, a limit)."""
        self._stand(replace(self._state, **_outcome(outcome)))

    def back(self, number: int) -> None:
        """Keep the first `number` steps. Can be undone. Raises InputError if there are fewer."""
        count = len(self._state.steps)
        if not 0 <= number <= count:
            raise self._no_such_step(number)
        if number < count:
            kept = self._state.steps[:number]
            self._go(Position(kept, **self._left_by(kept)))

    def reject(self) -> None:
        """Undo the policy's last step, with the propagation that followed, and tell the policy about it at the next
        one.

        Can be undone. On a single slice, also a person's last step. Raises InputError if there is nothing to reject.
        """
        number = self._last_word() or (len(self.after) if self.scope == "slice" else 0)
        if not number:
            raise InputError("the last action was not made by the policy", remedy="Go back instead.")
        kept = self._state.steps[: number - 1]
        self._go(Position(kept, **self._left_by(kept), rejected=self._state.steps[number - 1]))

    def _last_word(self) -> int | None:
        """The number of the step that `reject` undoes: the last one, or the look before the propagation."""
        steps = self.steps
        number = len(steps)
        if self.scope == "slice":
            return number if steps and steps[-1]["by"] == "policy" else None
        while (
            number
            and steps[number - 1]["kind"] == "grow"
            and steps[number - 1]["slice"] == steps[-1]["slice"]
        ):
            number -= 1
        word = steps[number - 1] if number else {}
        of_policy = word.get("by") == "policy" and bool(word.get("steps"))
        return number if of_policy and (number == len(steps) or word.get("look")) else None

    def finish(self) -> None:
        """The person accepts the mask: adds a final step by the person, unless the run has already ended."""
        steps = self.steps
        if not steps or self._ends(steps[-1]):
            return
        end: Json = {**steps[-1], "thinking": "", "reply": "", "seconds": {}}
        end["action"] = {"kind": "terminate", "answer": ""}
        answer: str | None = ""
        if self.scope == "volume":
            end = {
                "kind": "end",
                "slice": steps[-1]["slice"],
                "words": _ACCEPTED,
                "touched": {},
                "seconds": 0.0,
            }
            end |= {key: [] for key in ("steps", "clicks", "ways")}
            answer = self.answer
        end |= {"uid": uuid.uuid4().hex[:12], "by": "person"}
        outcome = {"status": "ended", "reason": _ACCEPTED, "answer": answer, "caveats": self._state.caveats}
        self.extend(self.after, end, outcome)

    def undo(self) -> None:
        """Undo the last change, if there is one."""
        if self.can_undo():
            self._history.undo(self._state, self._stand)

    def redo(self) -> None:
        """Redo the last undone change, if there is one."""
        if self.can_redo():
            self._history.redo(self._state, self._stand)

    def _stand(self, position: Position) -> None:
        self._state = position
        self.changes += 1

    def _go(self, position: Position) -> None:
        self._history.leave(self._state)
        self._stand(position)

    def _ends(self, step: Json) -> bool:
        return step["kind"] == "end" if self.scope == "volume" else step["action"]["kind"] == "terminate"

    def _left_by(self, uids: Sequence[str]) -> Json:
        """The status after these steps: ended, if a click after the end was undone."""
        kept = [self._known[uid] for uid in uids]
        ended, reason, answer = bool(kept) and self._ends(kept[-1]), "", None
        if self.scope == "volume":
            said = [each["steps"][-1]["action"] for each in kept if each["kind"] == "done" and each["steps"]]
            reason, answer = kept[-1]["words"] if ended else "", said[-1].get("answer") if said else None
        elif ended:
            reason = _ACCEPTED if kept[-1]["by"] == "person" else "The policy ended."
            answer = kept[-1]["action"]["answer"]
        return _outcome({"status": "ended" if ended else "ready", "reason": reason, "answer": answer})

    def trajectory(
        self,
        picture_of: Callable[[int], Picture] | None = None,
        inside: Callable[[int], np.ndarray | None] = lambda index: None,
    ) -> Json:
        """The complete record of the run so far. picture_of: returns the picture of a slice of a volume."""
        outcome: Json = {"answer": self.answer, "status": self.status, "reason": self.reason}
        outcome |= {"caveats": list(self.caveats)} if self.caveats else {}
        if self.scope == "slice":
            return {**self.head, "question": self.question, **outcome, "steps": self.steps}
        if picture_of is None:
            raise InputError("the record of a volume needs its pictures")
        told = ("uid", "touched")
        actions = [{key: each[key] for key in each if key not in told} for each in self.steps]
        return put_together(self.head, outcome, actions, self.slices(), picture_of, inside)

    def known(self) -> Json:
        """All steps that may still be used, by uid, for a worker that continues the run: without the masks of a
        volume's slices, which the worker recomputes.
        """
        return {
            uid: {key: each[key] for key in each if key != "touched"} for uid, each in self._all().items()
        }

    def _all(self) -> dict[str, Json]:
        kept = [self._state, *self._history.past, *self._history.future]
        used = {uid for state in kept for uid in (*state.steps, state.rejected)}
        return {uid: step for uid, step in self._known.items() if uid in used}

    def to_json(self) -> Json:
        """Everything, including undo and redo."""
        return {
            "schema": next(schema for schema, scope in SCOPES.items() if scope == self.scope),
            "session": self.session,
            "question": self.question,
            "head": self.head,
            "known": self._all(),
            "state": _position_to_json(self._state),
            "undo": [_position_to_json(state) for state in self._history.past],
            "redo": [_position_to_json(state) for state in self._history.future],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> RunRecord:
        """The reverse of `to_json`. Raises InputError for anything else."""
        try:
            scope = SCOPES.get(record["schema"])
            if scope is None:
                raise ValueError(f"schema {record['schema']}")
            run = cls(str(record["question"]), scope, str(record["session"]))
            run.head = dict(record["head"])
            run._known = {str(uid): dict(step) for uid, step in record["known"].items()}
            run._state = run._checked(record["state"])
            past, future = ([run._checked(each) for each in record[key]] for key in ("undo", "redo"))
            run._history = UndoHistory(past, future)
            if run._known:
                PictureGeometry.from_json(run._cut["geometry"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError("this is not a saved run", value=f"{type(error).__name__}: {error}") from error
        return run

    def _checked(self, state: Mapping[str, Any]) -> Position:
        steps = tuple(str(uid) for uid in state["steps"])
        missing = [uid for uid in steps if uid not in self._known]
        if missing:
            raise ValueError(f"a step is missing: {missing[0]}")
        return Position(steps, **_outcome(state), rejected=state.get("rejected"))


def _position_to_json(state: Position) -> Json:
    values = asdict(state)
    return values if state.caveats else {key: values[key] for key in values if key != "caveats"}


def _outcome(message: Mapping[str, Any]) -> Json:
    return {
        "status": str(message.get("status", "ready")),
        "reason": str(message.get("reason") or ""),
        "answer": message.get("answer"),
        "caveats": tuple(str(each) for each in message.get("caveats") or ()),
    }
