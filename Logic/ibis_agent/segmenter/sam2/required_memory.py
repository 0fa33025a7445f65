"""The memory that a SAM2 needs, from its settings."""

from __future__ import annotations

from ibis_agent.segmenter.sam2.architecture import Architecture

_TORCH_ITSELF = 100_000_000  # bytes of code and buffers loaded with the first picture


def memory_estimate(found: Architecture) -> int:
    """Peak memory of the weights and one picture in float32, in bytes, within a fifth.

    The peak is at the finest feature map with (S/4)² positions: ten times the width of the encoder's first stage
    (input, normalised, twice the fourfold hidden layer) and three times the width of the feature pyramid.
    Measured on a CPU with sam2.1 tiny at 512 (0.37 GB) and 1024 (0.77 GB) and large (1.44 GB).
    """
    encoder = found.settings["image_encoder"]
    width, pyramid = int(encoder["trunk"]["embed_dim"]), int(encoder["neck"]["d_model"])
    peak = (found.image_size // 4) ** 2 * (10 * width + 3 * pyramid)
    return (found.parameters + peak) * 4 + _TORCH_ITSELF
