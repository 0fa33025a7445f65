"""What a run over a volume consists of, kept by the side that must not lose it.

As run_record, whose way back, undo and saving it shares; but a step here is an action of a volume run (schema
ibis-volume/1) with two more keys: `uid` names it to the worker, and `touched` holds what has become known of
slices with it, by slice (see volume_record.slice_to_json; null for a slice that is not known any more).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ibis_agent.actions import Click
from ibis_agent.errors import InputError
from ibis_agent.mask.masks import decode_rle
from ibis_agent.record.run_record import Json, RunRecord
from ibis_agent.record.volume_record import put_together
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.scan.picture import Picture


class VolumeRunRecord(RunRecord):
    """One question's run through a volume. `number` means: after so many actions; None is after all."""

    schema = "ibis-volume-run/1"

    @property
    def geometry(self) -> PictureGeometry:
        """Of the first slice that may be worked on. Raises InputError before the worker has opened the run."""
        if not self.head:
            raise InputError("this run has no slices yet")
        return PictureGeometry.from_json(self.head["volume"]["geometry"])

    def geometry_of(self, index: int) -> PictureGeometry:
        return replace(self.geometry, index=index)

    @property
    def range(self) -> tuple[int, int]:
        """The first and the last slice that may be worked on."""
        volume = self.head["volume"]
        return int(volume["first"]), int(volume["last"])

    def slices(self, number: int | None = None) -> dict[int, Json]:
        """What is known of every slice (see volume_record.slice_to_json)."""
        known: dict[int, Json] = {}
        for action in self.steps[:number]:
            for index, each in action["touched"].items():
                if each is None:
                    known.pop(int(index), None)
                else:
                    known[int(index)] = each
        return known

    def mask_of(self, index: int, number: int | None = None) -> np.ndarray:
        """(H, W) bool: the object in a slice."""
        return self.decode(self.slices(number).get(index))

    def decode(self, known: Mapping[str, Any] | None) -> np.ndarray:
        """(H, W) bool of an entry of `slices`; empty for None."""
        shape = self.geometry.height, self.geometry.width
        return np.zeros(shape, bool) if known is None else decode_rle(str(known["mask_rle"]), shape)

    def areas_mm2(self, number: int | None = None) -> dict[int, float]:
        """By slice, of all that were visited."""
        return {index: float(each["area_mm2"]) for index, each in sorted(self.slices(number).items())}

    def volume_ml(self, number: int | None = None) -> float:
        return sum(self.areas_mm2(number).values()) * float(self.head["volume"]["gap_mm"]) / 1000

    def clicks_on(self, index: int, number: int | None = None) -> list[Click]:
        """All clicks that a slice stands on."""
        made = [each for each in self.steps[:number] if each["kind"] == "click" and each["slice"] == index]
        return [Click(c["x"], c["y"], bool(c["positive"])) for c in made[-1]["clicks"]] if made else []

    def known(self) -> Json:
        """As RunRecord.known, without the masks of slices, which a worker makes again."""
        return {
            uid: {key: each[key] for key in each if key != "touched"} for uid, each in super().known().items()
        }

    def clicked(self, number: int | None = None) -> list[int]:
        """The slices that were clicked."""
        return sorted({int(each["slice"]) for each in self.steps[:number] if each["kind"] == "click"})

    def reject(self) -> None:
        """As RunRecord.reject, of a word of the policy's, with what grew from it.

        Raises InputError where the last action is none.
        """
        number = self._last_word()
        if number is None:
            raise InputError("the last action is no word of the policy's", remedy="Go back instead.")
        self._reject(number)

    def can_reject(self) -> bool:
        return self._last_word() is not None

    def _last_word(self) -> int | None:
        """The number of the action that `reject` takes back: the last one, or the look that growth followed."""
        steps = self.steps
        number = len(steps)
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
        """The person accepts the mask as it is: an end of theirs, unless the run has ended already."""
        steps = self.steps
        if not steps or steps[-1]["kind"] == "end":
            return
        words = "The person accepted the mask."
        end = {
            "uid": uuid.uuid4().hex[:12],
            "kind": "end",
            "slice": steps[-1]["slice"],
            "by": "person",
            "words": words,
            **{key: [] for key in ("steps", "clicks", "ways")},
            "touched": {},
            "seconds": 0.0,
        }
        self.extend(self.after, end, {"status": "ended", "reason": words, "answer": self.answer})

    def trajectory_with(
        self,
        picture_of: Callable[[int], Picture],
        inside: Callable[[int], np.ndarray | None] = lambda index: None,
    ) -> Json:
        """The whole record of the run so far (schema ibis-volume/1). picture_of: the picture of a slice."""
        outcome = {"answer": self.answer, "status": self.status, "reason": self.reason}
        told = ("uid", "touched")
        actions = [{key: each[key] for key in each if key not in told} for each in self.steps]
        return put_together(self.head, outcome, actions, self.slices(), picture_of, inside)

    def _left_by(self, uids: Sequence[str]) -> Json:
        kept = [self._known[uid] for uid in uids]
        ended = bool(kept) and kept[-1]["kind"] == "end"
        said = [each["steps"][-1]["action"] for each in kept if each["kind"] == "done" and each["steps"]]
        return {
            "status": "ended" if ended else "ready",
            "reason": kept[-1]["words"] if ended else "",
            "answer": said[-1].get("answer") if said else None,
        }

    def _check_head(self) -> None:
        _ = self.geometry
