"""SAM2's network at one slice of a stack: prompt encoder, mask decoder, and memory attention.

Drives the memory parts of the sam2 package's network as its video predictor does. Each slice keeps only a small Output.
Its spatial memory is cached for the slices last used, and computed again when needed, with identical bits, from the
Output and the slice's embedding.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ibis_agent.actions import Prompt
from ibis_agent.segmenter.contract import Following, PictureOf
from ibis_agent.segmenter.embeddings import KeptEmbeddings, key_of
from ibis_agent.segmenter.sam2.predictor import Sam2Embedding, Sam2Predictor, marks_of, several

ABSENT = -1024.0  # sam2's logit for an absent object
# Bytes of spatial memories: 512 slices with MedSAM2; sam2 attends to fifteen of them.
_MEMORIES = 2**26


class Output(dict[str, Any]):
    """The network's output for a slice, with sam2's keys "pred_masks", "obj_ptr" and "object_score_logits".

    "maskmem_features" and "maskmem_pos_enc" are computed when sam2 reads them, see SliceNetwork.
    """

    def __init__(self, made: Mapping[str, Any], network: SliceNetwork, index: int, from_person: bool) -> None:
        super().__init__(made)
        self.index, self.from_person, self.key = index, from_person, object()
        self._network = weakref.proxy(network)  # otherwise a cycle would keep a finished run in memory

    def __missing__(self, name: str) -> Any:
        if name == "maskmem_features":
            return self._network.memory_of(self)
        if name == "maskmem_pos_enc":
            return self._network.memory_positions(self)
        raise KeyError(name)


class SliceNetwork:
    """The network on the slices of one stack. memories: the cached spatial memories."""

    def __init__(
        self,
        segmenter: Sam2Predictor,
        picture_of: PictureOf,
        count: int,
        size: tuple[int, int],
        following: Following | None = None,
    ) -> None:
        """See Segmenter.follower."""
        self.following = following or Following()
        self.segmenter, self.count, self.size = segmenter, count, size
        self.memories = KeptEmbeddings(_MEMORIES, _MEMORIES)
        self._picture_of, self._keys = picture_of, dict[int, bytes]()
        self._model = segmenter.model
        self._memory_positions: list[Tensor] = []

    def embedding(self, index: int) -> Sam2Embedding:
        """A slice's embedding, with the precision of the cache. Raises what picture_of and encoding raise."""
        kept, segmenter = self.segmenter.kept, self.segmenter
        shown = None
        if index not in self._keys:
            shown = self._picture_of(index)
            self._keys[index] = key_of(shown)

        def make() -> Sam2Embedding:
            made = segmenter.encode(self._picture_of(index) if shown is None else shown)
            return made.to(segmenter.device, torch.float16) if kept.half else made

        found = kept.get(("slice", kept.half, self._keys[index]), make)
        assert isinstance(found, Sam2Embedding)
        return found.to(segmenter.device, torch.float32)

    def marks(self, prompts: Sequence[Prompt]) -> list[tuple[float, float, int]]:
        """See predictor.marks_of."""
        return marks_of(prompts, *self.size)

    def memory_of(self, out: Output) -> Tensor:
        """(1, C', h, w) bfloat16, as in sam2: the spatial memory that other slices attend to."""
        kept = self.memories.get(out.key, lambda: Sam2Embedding((self._encoded(out),), *self.size))
        assert isinstance(kept, Sam2Embedding)
        return kept.levels[0]

    def memory_positions(self, out: Output) -> list[Tensor]:
        """The position encodings of spatial memories, the same for all slices."""
        if not self._memory_positions:
            self._encoded(out)
        return self._memory_positions

    @torch.inference_mode()
    def _encoded(self, out: Output) -> Tensor:
        level, side = self.embedding(out.index).levels[-1], self.segmenter.image_size
        with self.segmenter.computing():
            full = F.interpolate(out["pred_masks"], (side, side), mode="bilinear", align_corners=False)
            memory, positions = self._model._encode_new_memory(
                current_vision_feats=[_flat(level)],
                feat_sizes=[tuple(level.shape[-2:])],
                pred_masks_high_res=full,
                object_score_logits=out["object_score_logits"],
                is_mask_from_pts=out.from_person,
            )
        if not self._memory_positions:
            self._memory_positions = [each[:1].clone() for each in positions]
        return memory.to(torch.bfloat16)

    @torch.inference_mode()
    def _given(self, index: int, mask: np.ndarray) -> dict[str, Any]:
        """sam2's output for a given (H, W) mask of a slice."""
        side = self.segmenter.image_size
        with self.segmenter.computing():
            given = torch.from_numpy(np.array(mask, dtype=np.float32)).to(self.segmenter.device)[None, None]
            if given.shape[-2:] != (side, side):
                given = F.interpolate(
                    given, (side, side), mode="bilinear", align_corners=False, antialias=True
                )
                given = (given >= 0.5).float()
            levels = self.embedding(index).levels
            seen = self._model.track_step(
                frame_idx=index,
                is_init_cond_frame=True,
                current_vision_feats=[_flat(level) for level in levels],
                current_vision_pos_embeds=[],
                feat_sizes=[tuple(level.shape[-2:]) for level in levels],
                point_inputs=None,
                mask_inputs=given,
                output_dict={},
                num_frames=self.count,
                run_mem_encoder=False,
            )
        out = {key: seen[key] for key in ("pred_masks", "obj_ptr", "object_score_logits")}
        out["pred_masks"] = out["pred_masks"].float()
        return {**out, "scores": np.ones(1, np.float32)}

    def _mask(self, low: Tensor) -> np.ndarray:
        """(1, 1, S/4, S/4) logits → (H, W) bool."""
        full = F.interpolate(low, self.size, mode="bilinear", align_corners=False)
        return (full[0, 0] > 0).cpu().numpy()

    def _with_memory(
        self,
        index: int,
        features: Sam2Embedding,
        reverse: bool,
        anchors: Mapping[int, dict[str, Any]],
        tracked: Mapping[int, dict[str, Any]],
    ) -> Tensor:
        """(1, C, h, w): the slice's coarsest features after attention to the memory of other slices."""
        level, position = features.levels[-1], self.segmenter.positions[-1]
        nearest = sorted(anchors, key=lambda n: (abs(n - index), n))[: self.following.most_anchors]
        return self._model._prepare_memory_conditioned_features(
            frame_idx=index,
            is_init_cond_frame=False,
            current_vision_feats=[_flat(level)],
            current_vision_pos_embeds=[_flat(position)],
            feat_sizes=[tuple(level.shape[-2:])],
            output_dict={
                "cond_frame_outputs": {n: anchors[n] for n in anchors if n in nearest},
                "non_cond_frame_outputs": tracked,
            },
            num_frames=self.count,
            track_in_reverse=reverse,
        )

    def _heads(
        self,
        seen: Tensor,
        features: Sam2Embedding,
        clicks: Sequence[Prompt] | None,
        previous_logits: np.ndarray | Tensor | None,
        believed: bool,
    ) -> dict[str, Any]:
        """sam2's prompt encoder and mask decoder, and the object pointer of the mask with the best score.

        believed: the user clicked the object, so it counts as present whatever the object score says.
        """
        model, device, side = self._model, self.segmenter.device, self.segmenter.image_size
        if clicks is None:
            points = torch.zeros(1, 1, 2, device=device)
            labels = -torch.ones(1, 1, dtype=torch.int32, device=device)
        else:
            height, width = self.size
            marks = self.marks(clicks)
            points = torch.tensor([place[:2] for place in marks], dtype=torch.float32)
            points = points / torch.tensor([width, height]) * side
            points = points[None].to(device)
            labels = torch.tensor([[kind for _, _, kind in marks]], dtype=torch.int32, device=device)
        prior = previous_logits
        if isinstance(previous_logits, np.ndarray):
            prior = torch.from_numpy(np.array(previous_logits, dtype=np.float32))[None, None].to(device)
        sparse, dense = model.sam_prompt_encoder(points=(points, labels), boxes=None, masks=prior)
        many = _tracks_with_several(model) if clicks is None else several(marks)
        masks, scores, tokens, presence = model.sam_mask_decoder(
            image_embeddings=seen,
            image_pe=self.segmenter.places,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=many,
            repeat_image=False,
            high_res_features=self.segmenter.fine(features),
        )
        masks, there = masks.float(), presence > 0
        if not model.pred_obj_scores or believed:
            there = torch.ones_like(there)
        masks = torch.where(there[:, None, None], masks, ABSENT)
        best = int(scores[0].argmax())
        pointer = model.obj_ptr_proj(tokens[:, best if tokens.shape[1] > 1 else 0])
        if model.pred_obj_scores:
            known = presence.sigmoid() if model.soft_no_obj_ptr and not believed else there.float()
            if model.fixed_no_obj_ptr:
                pointer = known * pointer
            pointer = pointer + (1 - known) * model.no_obj_ptr
        if believed:
            presence = presence.float().clamp(min=1e-3)
        return {
            # A copy, because a view would keep all candidates alive.
            "pred_masks": masks[:, best : best + 1].clone(),
            "obj_ptr": pointer,
            "object_score_logits": presence.float(),
            "scores": scores[0].float().cpu().numpy(),
        }


def memory_is_trained(model: Any) -> bool:
    """Whether a SAM2's memory parts were ever trained: untrained layer scales all have the same value."""
    scales = [
        value for name, value in model.memory_encoder.fuser.named_parameters() if name.endswith("gamma")
    ]
    return not scales or any(bool((scale != scale.flatten()[0]).any()) for scale in scales)


def _tracks_with_several(model: Any) -> bool:
    """Whether sam2 uses several candidate masks on slices without a click."""
    return bool(
        model.multimask_output_in_sam
        and model.multimask_output_for_tracking
        and model.multimask_min_pt_num <= 0 <= model.multimask_max_pt_num
    )


def _flat(level: Tensor) -> Tensor:
    """(1, C, H, W) → (H·W, 1, C), for sam2's attention."""
    return level.flatten(2).permute(2, 0, 1)
