"""A page with two masks of one scan side by side, slice by slice, with the same protection as the review page."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ibis_agent import files
from ibis_agent.mask.masks import dice
from ibis_agent.record import review
from ibis_agent.record.review_pictures import fitted, read_png, runs_of
from ibis_agent.record.review_view import edges_of
from ibis_agent.scan.geometry import PictureGeometry

Json = Mapping[str, Any]


def write_comparison(
    path: str | os.PathLike[str],
    names: tuple[str, str],
    lines: Sequence[tuple[str, str]],
    geometry: PictureGeometry,
    masks: Mapping[int, tuple[np.ndarray, np.ndarray]],
    pictures: Mapping[int, Json],
) -> None:
    """Write the page atomically. Raises OutputError.

    Args:
        names: of A and B.
        lines: the measures, as (name, value).
        geometry: of any slice.
        masks: by slice, the (H, W) masks of A and of B.
        pictures: by slice, as in records; slices without one are black.
    """

    def pixels() -> Iterator[tuple[int, np.ndarray]]:
        for index in masks:
            if index in pictures:
                yield index, read_png(pictures[index]["png"], geometry.height, geometry.width)

    shown = fitted(pixels(), (), list(masks))
    each = geometry.pixel_area_mm2 or 1.0
    slices: list[dict[str, Any]] = []
    for index, (a, b) in sorted(masks.items()):
        picture = shown.get(index)
        slices.append(
            {
                "index": index,
                "png": picture.png if picture else "",
                "reduced": picture.reduced if picture else 1,
                "runs": [runs_of(a), runs_of(b)],
                "areas": [round(float(mask.sum()) * each, 2) for mask in (a, b)],
                "dice": round(dice(a, b), 4),
            }
        )
    view = {
        "names": list(names),
        "lines": [list(line) for line in lines],
        "picture": {
            "width": geometry.width,
            "height": geometry.height,
            "col_mm": geometry.col_mm or 1.0,
            "row_mm": geometry.row_mm or 1.0,
            "real_mm": geometry.row_mm is not None,
            "edges": edges_of(geometry),
        },
        "slices": slices,
        "worst": int(np.argmin([slice_["dice"] for slice_ in slices])),
    }
    page = review.page_of(
        view,
        "comparison_page.html",
        title=f"{names[0]} and {names[1]} – IBIS comparison",
        scripts=("review_drawing.js", "comparison_page.js"),
    )
    files.write_text(path, page)
