"""Promptable segmenters, one package a kind, and `open`, the one place that tells the kinds apart.

segmenter = open("MedSAM2_latest.pt")    # a file of weights, or "demo"
segmenter.predict(segmenter.embed(rgb), [Click(0.4, 0.5)]).mask
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ibis_agent.segmenter.contract import Segmenter
    from ibis_agent.segmenter.nninteractive.source import NnInteractiveAddress
    from ibis_agent.segmenter.sam2.source import Sam2File

DEMO = "demo"


def is_address(where: object) -> bool:
    """Whether it is a segmenter on a server."""
    return isinstance(where, str) and where.startswith("nninteractive:")


def find(
    where: str | os.PathLike[str] | None = DEMO,
    config: str | os.PathLike[str] | None = None,
    agreed: str = "",
) -> Sam2File | NnInteractiveAddress:
    """What lies at `where`, told from its files; nothing is loaded. Raises ModelError.

    Args:
        where: a file of weights, "demo" (None, too) for the demonstration segmenter of this package, or
            "nninteractive:http://HOST:PORT".
        config: the name of an architecture or a YAML file, where the weights do not tell.
        agreed: the host that slices may be sent to.
    """
    if is_address(where):
        from ibis_agent.segmenter.nninteractive.source import NnInteractiveAddress

        return NnInteractiveAddress(str(where), agreed)
    from ibis_agent.segmenter.sam2.source import Sam2File

    return Sam2File(None if where is None or where == DEMO else where, config)


def open(
    where: str | os.PathLike[str] | None = DEMO,
    config: str | os.PathLike[str] | None = None,
    device: str = "auto",
    precision: str = "auto",
    first_box: bool = False,
    agreed: str = "",
) -> Segmenter:
    """Load the segmenter at `where`, see `find`.

    Args:
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1".
        precision: "auto" (fp16 on CUDA as published, fp32 elsewhere), "fp32", "fp16", "bf16".
        first_box: ask a first click alone a second time, with a box around the mask that it made, as MedSAM2 was
            trained.

    Raises ModelError with file, value and remedy.
    """
    return find(where, config, agreed).open(device, precision, first_box)
