"""SAM2's memory over a stack of slices: a mask on one slice found again in its neighbours.

What the network does at one slice is in slice_network. A slice with clicks or a given mask is an anchor (sam2: a
conditioning frame); all others are found from memory. Which slices to visit, and when to stop, is decided by the run.

Weights whose memory was never trained cannot do that: for them a slice is found by a click at the deepest point of
the last mask on the way, that mask's logits being the ones before the click ("carry"); islands that touch nothing
of that mask are left out, if it is to be so ("linked").

Equality with sam2's video predictor: test_propagation.py. Differences, on purpose: clicks are
answered by the published engine's protocol (several masks at every click, the best score wins), a clicked
slice shows its object even where the object score says that there is none, and of many anchors only the nearest
are attended to.
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
from ibis_agent.segmenter.sam2.predictor import Sam2Predictor
from ibis_agent.segmenter.sam2.slice_network import ABSENT, Output, SliceNetwork, memory_is_trained

_LOGIT_BOUND = 32.0


@dataclass(frozen=True)
class State:
    """All that a propagation knows, to come back to: shares everything with its neighbours in time."""

    anchors: dict[int, dict[str, Any]]
    tracked: dict[int, dict[str, Any]]
    found: dict[int, Found]

    def pieces(self) -> dict[int, int]:
        """See contract.FollowerState."""
        outs = [*self.anchors.values(), *self.tracked.values()]
        held = {
            id(out): sum(each.nbytes for each in out.values() if isinstance(each, Tensor)) for out in outs
        }
        return held | {id(each): each.nbytes for each in self.found.values()}


class Propagation(SliceNetwork):
    """One object followed through a stack: contract.Follower says what its methods do.

        spread = segmenter.follower(picture_of, len(stack), (512, 512))
        spread.anchor(40, [Click(0.4, 0.5)])
        for found in spread.follow(40, +1, last=79): ...
        spread.found[52].mask

    Several objects of one stack share what the segmenter keeps of its slices.
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
        self._begun: set[int] = set()  # slices that began with a mask of their own

    @property
    def anchors(self) -> list[int]:
        """The slices that were clicked or given, in order."""
        return sorted(self._anchors)

    def state(self) -> State:
        """What `restore` takes back. Costs no copies of arrays."""
        return State(dict(self._anchors), dict(self._tracked), dict(self.found))

    def restore(self, state: State) -> None:
        self._anchors, self._tracked = dict(state.anchors), dict(state.tracked)
        self.found = dict(state.found)

    def predict(
        self, index: int, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Prediction:
        """What the clicks make of a slice, memory of other slices included; changes nothing.

        As Segmenter.predict, which it equals where nothing is known of other slices.
        """
        out = self._clicked(index, clicks, previous_logits)
        return Prediction(
            mask=self._mask(out["pred_masks"]),
            logits=out["pred_masks"][0, 0].clamp(-_LOGIT_BOUND, _LOGIT_BOUND).cpu().numpy(),
            score=float(out["scores"].max()),
            scores=out["scores"],
        )

    def standing(self, index: int) -> Prediction | None:
        """What is known of a slice in the form that clicks go on from; None where nothing is."""
        out = self._anchors.get(index) or self._tracked.get(index)
        if index in self.found and out is None:
            return self.segmenter.started(self.found[index].mask)
        if out is None or index not in self.found:
            return None
        logits = out["pred_masks"][0, 0].float().clamp(-_LOGIT_BOUND, _LOGIT_BOUND).cpu().numpy()
        found = self.found[index]
        return Prediction(found.mask, logits, found.score, np.array([found.score], np.float32))

    def anchor(
        self, index: int, clicks: Sequence[Prompt], previous_logits: np.ndarray | None = None
    ) -> Found:
        """Make a slice an anchor as `predict` answers it: all clicks there, and the logits before the last."""
        return self._settle(index, self._clicked(index, clicks, previous_logits))

    def begin(self, masks: Mapping[int, np.ndarray]) -> None:
        """See contract.Follower. Only a single mask is encoded: of others nothing is followed."""
        if len(masks) == 1:
            self.anchor_mask(*next(iter(masks.items())))
            return
        for index, mask in masks.items():
            self.found[index] = Found(index, mask, 1.0, float(mask.any()))
            if mask.any():
                self._begun.add(index)

    def _ends_before(self, index: int) -> bool:
        """Whether ways end before this slice: it was prompted, or began with a mask of its own."""
        return index in self._anchors or index in self._begun

    def anchor_mask(self, index: int, mask: np.ndarray) -> Found:
        """Make a slice an anchor with a given (H, W) mask, which is kept to the pixel."""
        if mask.shape != self.size:
            raise InputError("the mask and the slice have different sizes", value=mask.shape)
        return self._settle(index, self._given(index, mask), mask)

    def release(self, index: int) -> None:
        """An anchor that is taken back: its slice is unknown until it is found again."""
        self._anchors.pop(index, None)
        self.found.pop(index, None)

    def follow(
        self,
        start: int,
        direction: int,
        last: int,
        patience: int | None = None,
        settle: bool = False,
    ) -> Iterator[Found]:
        """Find the object again in the slices after `start` up to `last`, one by one.

        Args:
            start: an anchor, or a slice that is known.
            direction: +1 or -1.
            last: the last slice to visit, included.
            patience: end after so many slices in a row without the object; None goes on to `last`.
            settle: what is visited was known before: end where it comes out as it was.

        Ends before another anchor. What that one's half of the way holds is kept where this one finds nothing. Every
        slice that came out stays known, also when the caller stops early.
        """
        if start not in self.found:
            raise InputError("this slice has no mask to start from", value=start)
        if direction not in (-1, 1) or not 0 <= last < self.count:
            raise InputError("these slices are not in the stack", value=f"{start} {direction} {last}")
        missed, same, border = self.missed(start, direction), 0, self._border(start, direction)
        for index in range(start + direction, last + direction, direction):
            if self._ends_before(index):
                # What a click on the other side says still reaches this one: through the memory of all anchors.
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
        """How many slices in a row are without the object where a way has got to `start`; 0 at an anchor."""
        count = 0
        while start in self._tracked and not self.found[start].mask.any():
            count, start = count + 1, start - direction
        return count

    def forget_beyond(self, index: int, direction: int, last: int) -> None:
        """The object has ended: what an earlier pass found further on is gone, up to another anchor's half."""
        border = self._border(index, direction)
        for beyond in range(index + direction, last + direction, direction):
            if beyond * direction >= border or self._ends_before(beyond):
                return
            self._tracked.pop(beyond, None)
            self.found.pop(beyond, None)

    def _border(self, start: int, direction: int) -> float:
        """From which slice on, times the direction, a way through `start` is nearer to the anchor that it leads to
        than to the one that it comes from; infinite where it leads to none.
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
        """(1, 1, S/4, S/4) logits of what is known of a slice."""
        out = self._anchors.get(index) or self._tracked.get(index)
        if out is not None:
            low: Tensor = out["pred_masks"]
            return low
        started = self.segmenter.started(self.found[index].mask).logits
        return torch.from_numpy(started)[None, None].to(self.segmenter.device)

    def _carry(self, index: int, beside: int) -> Found:
        """A slice found by the last mask on the way to it, and a click where that is deepest."""
        step = beside - index
        while not self.found[beside].mask.any() and beside + step in self.found:
            beside += step  # over slices where it was lost; `follow`'s patience says how many those may be
        features, before = self.embedding(index), self.found[beside].mask
        click, carried = Click(0.5, 0.5), None
        if before.any():
            click, carried = deepest(before), self._low(beside).clamp(-_LOGIT_BOUND, _LOGIT_BOUND)
        with self.segmenter.computing():
            seen = self.segmenter.without_memory(features)
            # Nobody clicked here: whether the object goes on in this slice is for the object score to say.
            out = self._heads(seen, features, [click], carried, believed=False)
        if self.way == "linked" and carried is not None:
            out["pred_masks"] = linked(out["pred_masks"], carried, -_LOGIT_BOUND)
        # How well the two masks fit stands for how likely the object is: many segmenters' object score knows only
        # memories.
        fit = dice(before, self._mask(out["pred_masks"])) if before.any() else 0.0
        if fit < self.following.least_fit or float(out["scores"].max()) < self.following.least_score:
            out["pred_masks"], fit = torch.full_like(out["pred_masks"], ABSENT), 0.0
        likely = min(max(1 - (1 - fit) ** 2, 1e-6), 1 - 1e-6)  # an organ that tapers off fits by a half
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
        # As in sam2: the first prompts of a stack, and those of any slice not yet visited, know of no others. It
        # stays so for later ones there, so that a click that was moved is as if it had been made where it is now.
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
