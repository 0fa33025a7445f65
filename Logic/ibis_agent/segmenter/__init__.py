"""Promptable segmenters, one package per kind. `open` and `find` alone decide which kind a file or address is.

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
    """Whether a segmenter is given by a server's address."""
    return isinstance(where, str) and where.startswith("nninteractive:")


def find(
    where: str | os.PathLike[str] | None = DEMO,
    config: str | os.PathLike[str] | None = None,
    agreed: str = "",
) -> Sam2File | NnInteractiveAddress:
    """The segmenter at `where` without loading it. Raises ModelError.

    Args:
        where: a weights file, "demo" or None for the demonstration segmenter of this package, or
            "nninteractive:http://HOST:PORT".
        config: the name of an architecture or a YAML file, if the weights do not tell.
        agreed: the host that the user agreed to send slices to.
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
    """Load the segmenter at `where`, or connect to it. where, config, agreed: see `find`.

    Args:
        device: "auto" (CUDA if available), "cpu", "cuda" or "cuda:1".
        precision: "auto" (fp16 on CUDA as published, fp32 elsewhere), "fp32", "fp16" or "bf16".
        first_box: after a single first click, predict again with a box around its mask, as MedSAM2 was trained.

    Raises InputError without consent to send slices, and ModelError with file, value and remedy.
    """
    return find(where, config, agreed).open(device, precision, first_box)
