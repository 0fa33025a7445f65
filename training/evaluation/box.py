"""The segmenter asked with a box, as a third way to compare with: what a person with a mouse would draw.

The agent has no boxes; this drives the sam2 network as sam2's own predictors do with one: two corner points
of their own kinds before all else, and one mask instead of several, since a box leaves little in doubt.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from ibis_agent.errors import InputError
from ibis_agent.segmenter.sam2.predictor import Sam2Embedding, Sam2Predictor

_CORNERS = (2, 3)  # what the prompt encoder calls the upper left and the lower right corner


def box_of(truth: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, right, bottom): the outermost pixels of an (H, W) mask, as sam2 draws boxes in training.

    Raises InputError for an empty mask.
    """
    rows, columns = np.flatnonzero(truth.any(axis=1)), np.flatnonzero(truth.any(axis=0))
    if not rows.size:
        raise InputError("an empty mask has no box")
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


@torch.inference_mode()
def predict_box(
    segmenter: Sam2Predictor, embedding: Sam2Embedding, box: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The (H, W) bool mask for a box in the picture's pixels, and its (S/4, S/4) float32 logits.

    Raises ModelError when the network fails.
    """
    corners = torch.tensor(box, dtype=torch.float32).reshape(1, 2, 2)
    corners = corners / torch.tensor([embedding.width, embedding.height]) * segmenter.image_size
    model = segmenter.model
    with segmenter.computing():
        sparse, dense = model.sam_prompt_encoder(
            points=(corners.to(segmenter.device), torch.tensor([_CORNERS], device=segmenter.device)),
            boxes=None,
            masks=None,
        )
        low, _, _, _ = model.sam_mask_decoder(
            image_embeddings=segmenter.without_memory(embedding),
            image_pe=model.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
            repeat_image=False,
            high_res_features=segmenter.fine(embedding),
        )
        logits = low.float()
        size = (embedding.height, embedding.width)
        full = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return (full[0, 0] > 0).cpu().numpy(), logits[0, 0].cpu().numpy()
