"""How much memory a SAM2 needs, told from its settings."""

from __future__ import annotations

from ibis_agent.segmenter.sam2.architecture import Architecture

_TORCH_ITSELF = 100_000_000  # bytes of code and buffers that come with the first picture


def memory_estimate(found: Architecture, bytes_each: int = 4) -> int:
    """Bytes that the weights and one picture take at most, within a fifth: for telling before trying.

    The peak lies at the finest feature map, (S/4)² places: ten times the width of the encoder's first stage
    (input, normalised, twice the fourfold hidden layer) and three times the width of the feature pyramid.
    Measured on a CPU with sam2.1 tiny at 512 (0.37 GB) and 1024 (0.77 GB) and large (1.44 GB).
    """
    encoder = found.settings["image_encoder"]
    width, pyramid = int(encoder["trunk"]["embed_dim"]), int(encoder["neck"]["d_model"])
    peak = (found.image_size // 4) ** 2 * (10 * width + 3 * pyramid)
    return (found.parameters + peak) * bytes_each + _TORCH_ITSELF
