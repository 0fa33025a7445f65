"""Propagation of a mask through a stack of slices with SAM2's memory.

A slice with prompts or a given mask is an anchor (sam2: a conditioning frame); other slices are segmented from memory.
The run decides which slices to visit.

If the weights' memory was never trained, a slice is segmented by a click at the deepest point of the last mask, with
that mask's logits as mask prompt ("carry"); optionally without the components that do not touch that mask ("linked").

test_propagation.py compares it with sam2's video predictor. Intended differences: clicks follow the published protocol
(several candidates at every click, the best score wins); a clicked slice shows its object even if the object score
says it is absent; only the nearest anchors are attended to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ibis_agent.actions import Click, Prompt
from ibis_agent.errors import InputError, ModelError
from ibis_agent.mask.masks import dice, iou
from ibis_agent.segmenter.contract import Following, Found, PictureOf, Prediction, Way
from ibis_agent.segmenter.sam2.carrying import deepest, linked
from ibis_agent.segmenter.sam2.predictor import LOGIT_BOUND, Sam2Predictor
from ibis_agent.segmenter.sam2.slice_network import ABSENT, Output, SliceNetwork, memory_is_trained


@dataclass(frozen=True)
class State:
    """See contract.FollowerState."""

    anchors: dict[int, dict[str, Any]]
    tracked: dict[int, dict[str, Any]]
    found: dict[int, Found]

    def pieces(self) -> dict[int, int]:
        outs = [*self.anchors.values(), *self.tracked.values()]
        held = {
            id(out): sum(each.nbytes for each in out.values() if isinstance(each, Tensor)) for out in outs
        }
        return held | {id(each): each.nbytes for each in self.found.values()}


class Propagation(SliceNetwork):
    """A contract.Follower with SAM2's network.

        spread = segmenter.follower(picture_of, len(stack), (512, 512))
        spread.anchor(40, [Click(0.4, 0.5)])
        for found in spread.follow(40, +1, last=79): ...
        spread.found[52].mask

    Several objects in one stack share the segmenter's embeddings.
    """

    def __init__(
        self,
        segmenter: Sam2Predictor,
        picture_of: PictureOf,
        count: int,
        size: tuple[int, int],
        way: Way = "auto",
        following: Following | None = None,
    ) -> None:
        """See Segmenter.follower."""
        super().__init__(segmenter, picture_of, count, size, following)
        self.way: Way = way
        if way == "auto":
            self.way = "memory" if memory_is_trained(self._model) else "linked"
        self._anchors: dict[int, dict[str, Any]] = {}
        self._tracked: dict[int, dict[str, Any]] = {}
        self.found: dict[int, Found] = {}
        self._begun: set[int] = set()  # slices with a non-empty starting mask

    @property
    def anchors(self) -> list[int]:
        return sorted(self._anchors)

    def state(self) -> State:
        return State(dict(self._anchors), dict(self._tracked), dict(self.found))

    def restore(self, state: State) -> None:
        self._anchors, self._tracked = dict(state.anchors), dict(state.tracked)
        self.found = dict(state.found)

    def predict(
        self, index: int, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Prediction:
        """See contract.Follower. Equal to Segmenter.predict if no other slice has a mask."""
        out = self._clicked(index, clicks, previous_logits)
        return Prediction(
            mask=self._mask(out["pred_masks"]),
            logits=out["pred_masks"][0, 0].clamp(-LOGIT_BOUND, LOGIT_BOUND).cpu().numpy(),
            score=float(out["scores"].max()),
            scores=out["scores"],
        )

    def standing(self, index: int) -> Prediction | None:
        out = self._anchors.get(index) or self._tracked.get(index)
        if index in self.found and out is None:
            return self.segmenter.started(self.found[index].mask)
        if out is None or index not in self.found:
            return None
        logits = out["pred_masks"][0, 0].float().clamp(-LOGIT_BOUND, LOGIT_BOUND).cpu().numpy()
        found = self.found[index]
        return Prediction(found.mask, logits, found.score, np.array([found.score], np.float32))

    def anchor(
        self, index: int, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Found:
        return self._settle(index, self._clicked(index, clicks, previous_logits))

    def begin(self, masks: Mapping[int, np.ndarray]) -> None:
        """See contract.Follower. Only a single mask is encoded, because several are not propagated."""
        if len(masks) == 1:
            self.anchor_mask(*next(iter(masks.items())))
            return
        for index, mask in masks.items():
            self.found[index] = Found(index, mask, 1.0, float(mask.any()))
            if mask.any():
                self._begun.add(index)

    def _ends_before(self, index: int) -> bool:
        """Whether propagation ends before this slice: it is an anchor, or has a starting mask."""
        return index in self._anchors or index in self._begun

    def anchor_mask(self, index: int, mask: np.ndarray) -> Found:
        """Make a slice an anchor with a given (H, W) bool mask, which stays unchanged. Raises InputError."""
        if mask.shape != self.size:
            raise InputError("the mask and the slice have different sizes", value=mask.shape)
        return self._settle(index, self._given(index, mask), mask)

    def follow(
        self,
        start: int,
        direction: int,
        last: int,
        patience: int | None = None,
        settle: bool = False,
    ) -> Iterator[Found]:
        """See contract.Follower. In the half nearer to another anchor, known masks are kept where this finds none."""
        if start not in self.found:
            raise InputError("this slice has no mask to start from", value=start)
        if direction not in (-1, 1) or not 0 <= last < self.count:
            raise InputError("these slices are not in the stack", value=f"{start} {direction} {last}")
        missed, same, border = self.missed(start, direction), 0, self._border(start, direction)
        for index in range(start + direction, last + direction, direction):
            if self._ends_before(index):
                # An anchor on the other side still has an influence, through the memory of all anchors.
                return
            before, tracked = self.found.get(index), self._tracked.get(index)
            found = self._track(index, direction < 0)
            lost = before is not None and before.mask.any() and not found.mask.any()
            if lost and tracked is not None and index * direction >= border:
                self.found[index], self._tracked[index] = before, tracked  # type: ignore[assignment]
                return
            yield found
            missed = 0 if found.mask.any() else missed + 1
            if patience is not None and missed >= patience:
                self.forget_beyond(index, direction, last)
                return
            if settle and before is not None:
                both_empty = not (before.mask.any() or found.mask.any())
                same = (
                    same + 1
                    if both_empty or iou(before.mask, found.mask) >= self.following.settled_iou
                    else 0
                )
                if same >= self.following.settled_slices:
                    return

    def missed(self, start: int, direction: int) -> int:
        count = 0
        while start in self._tracked and not self.found[start].mask.any():
            count, start = count + 1, start - direction
        return count

    def forget_beyond(self, index: int, direction: int, last: int) -> None:
        """See contract.Follower. Masks in the half nearer to another anchor stay."""
        border = self._border(index, direction)
        for beyond in range(index + direction, last + direction, direction):
            if beyond * direction >= border or self._ends_before(beyond):
                return
            self._tracked.pop(beyond, None)
            self.found.pop(beyond, None)

    def _border(self, start: int, direction: int) -> float:
        """The slice, times the direction, from which the next anchor ahead is nearer than the last one behind.

        Infinite without an anchor on both sides.
        """
        ahead = [n for n in self._anchors if (n - start) * direction > 0]
        behind = [n for n in self._anchors if (n - start) * direction <= 0]
        if not ahead or not behind:
            return math.inf
        nearest = min(ahead, key=lambda n: abs(n - start)), min(behind, key=lambda n: abs(n - start))
        return sum(nearest) / 2 * direction

    @torch.inference_mode()
    def _track(self, index: int, reverse: bool) -> Found:
        if self.way != "memory":
            return self._carry(index, index + (1 if reverse else -1))
        features = self.embedding(index)
        with self.segmenter.computing():
            seen = self._with_memory(index, features, reverse, self._anchors, self._tracked)
            made = self._heads(seen, features, None, None, believed=False)
        self._tracked[index] = out = Output(made, self, index, from_person=False)
        return self._keep(index, out, anchor=False)

    def _low(self, index: int) -> Tensor:
        """(1, 1, S/4, S/4) logits of a slice's mask."""
        out = self._anchors.get(index) or self._tracked.get(index)
        if out is not None:
            low: Tensor = out["pred_masks"]
            return low
        started = self.segmenter.started(self.found[index].mask).logits
        return torch.from_numpy(started)[None, None].to(self.segmenter.device)

    def _carry(self, index: int, beside: int) -> Found:
        """Segment a slice from the last mask before it and a click at its deepest point."""
        step = beside - index
        while not self.found[beside].mask.any() and beside + step in self.found:
            beside += step  # skip slices where it was lost; the patience of `follow` limits them
        features, before = self.embedding(index), self.found[beside].mask
        click, carried = Click(0.5, 0.5), None
        if before.any():
            click, carried = deepest(before), self._low(beside).clamp(-LOGIT_BOUND, LOGIT_BOUND)
        with self.segmenter.computing():
            seen = self.segmenter.without_memory(features)
            # Not a user's click: the object score decides whether the object is in this slice.
            out = self._heads(seen, features, [click], carried, believed=False)
        if self.way == "linked" and carried is not None:
            out["pred_masks"] = linked(out["pred_masks"], carried, -LOGIT_BOUND)
        # The Dice of the two masks serves as presence: many segmenters' object score was trained only with memory.
        fit = dice(before, self._mask(out["pred_masks"])) if before.any() else 0.0
        if fit < self.following.least_fit or float(out["scores"].max()) < self.following.least_score:
            out["pred_masks"], fit = torch.full_like(out["pred_masks"], ABSENT), 0.0
        likely = min(max(1 - (1 - fit) ** 2, 1e-6), 1 - 1e-6)  # the end of an organ has a Dice of about 0.5
        odds = math.log(likely / (1 - likely))
        out["object_score_logits"] = torch.full_like(out["object_score_logits"], odds)
        self._tracked[index] = out
        return self._keep(index, out, anchor=False)

    @torch.inference_mode()
    def _clicked(
        self, index: int, clicks: Sequence[Prompt], previous_logits: np.ndarray | None
    ) -> dict[str, Any]:
        if not clicks:
            raise InputError("the segmenter needs a click", remedy="Pass at least one click.")
        features = self.embedding(index)
        others = {n: out for n, out in self._anchors.items() if n != index}
        # As in sam2, the first prompts of a stack, and those on a slice not yet visited, do not use memory. Later ones
        # there do not either, so that a replaced click gives the same result as if it had been made first.
        alone = not others or self._anchors.get(index, {}).get("alone", index not in self.found)
        with self.segmenter.computing():
            if self.way == "memory" and not alone:
                nearest = min(others, key=lambda n: abs(n - index))
                seen = self._with_memory(index, features, nearest > index, others, self._tracked)
            else:
                seen = self.segmenter.without_memory(features)
            out = self._heads(seen, features, clicks, previous_logits, believed=True)
            box = self.segmenter.box_after(clicks, previous_logits, self._mask(out["pred_masks"]))
            if box is not None:
                out = self._heads(seen, features, [box, *clicks], None, believed=True)
            return {**out, "alone": alone}

    def _settle(self, index: int, out: dict[str, Any], mask: np.ndarray | None = None) -> Found:
        self._anchors[index] = out = Output(out, self, index, from_person=True)
        self._tracked.pop(index, None)
        return self._keep(index, out, anchor=True, mask=mask)

    def _keep(self, index: int, out: dict[str, Any], anchor: bool, mask: np.ndarray | None = None) -> Found:
        scores = out.pop("scores")
        if not np.isfinite(scores).all():
            raise ModelError(
                "the segmenter computed NaN or infinite values",
                value=f"slice {index}, {self.segmenter.precision}",
                remedy="Try precision fp32.",
            )
        shown = self._mask(out["pred_masks"]) if mask is None else np.array(mask, dtype=bool)
        presence = float(torch.sigmoid(out["object_score_logits"].float())[0, 0])
        found = Found(index, shown, float(scores.max()), presence, anchor)
        self.found[index] = found
        return found
