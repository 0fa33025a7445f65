"""The result of one scan of a cohort: the answer, the measurements, the doubt, a thumbnail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ibis_agent import files
from ibis_agent.cli.record_path import TRAJECTORY_NAME
from ibis_agent.cli.several_results import STRUCTURES_NAME, doubt_of
from ibis_agent.errors import InputError
from ibis_agent.fields import read_json
from ibis_agent.record.recorded_slices import RecordedSlice, recorded_slices
from ibis_agent.record.review_pictures import read_png
from ibis_agent.record.thumbnails import CYAN, thumbnail

if TYPE_CHECKING:
    from ibis_agent.cli.cohort_scans import Entry
    from ibis_agent.cli.runner import Runner
    from ibis_agent.cli.several import Several

RESULT_NAME = "result.json"


@dataclass(frozen=True)
class Result:
    """One scan's row in the table and its card on the page. If there is an `error`, nothing else is set.

    doubt: see `doubt_of`. With several structures, each has a row in `structures`, and the highest doubt counts.
    """

    name: str
    scan: str
    question: str = ""
    answer: str = ""
    status: str = ""
    doubt: float = 1.0
    measurements: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    thumbnail: str = ""
    error: str = ""
    structures: Sequence[Mapping[str, Any]] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def save(self, folder: Path) -> None:
        """Write it into the scan's folder, as the last file. Raises OutputError."""
        files.write_json(folder / RESULT_NAME, self.to_json())

    @classmethod
    def load(cls, folder: Path) -> Result | None:
        """The result of a finished scan; None if it is missing or damaged."""
        try:
            return cls(**read_json(folder / RESULT_NAME))
        except (InputError, TypeError):
            return None


def is_result(path: Path) -> bool:
    """Whether a scan's results may overwrite this: an earlier result, an incomplete one, or nothing."""
    if not path.is_dir():
        return not path.exists()
    held = {each.name for each in path.iterdir()}
    return not held or bool(held & {RESULT_NAME, TRAJECTORY_NAME, STRUCTURES_NAME})


def result_of(entry: Entry, runner: Runner, seconds: float) -> Result:
    """The result of a finished and saved run."""
    record: dict[str, Any] = read_json(runner.task.folder / TRAJECTORY_NAME)
    slices = recorded_slices(record)
    status = str(record.get("status") or "")
    return Result(
        name=entry.name,
        scan=entry.scan,
        question=str(record["question"]),
        answer=str(record.get("answer") or ""),
        status=status,
        doubt=doubt_of(_scores(record, slices), status),
        measurements=dict(record["measurements"]),
        seconds=round(seconds, 2),
        thumbnail=_thumbnail(max(slices, key=lambda each: int(each.mask.sum()))),
    )


def result_of_several(entry: Entry, several: Several, seconds: float) -> Result:
    """The result of finished and saved runs for several structures."""
    rows = several.summary({})["structures"]
    return Result(
        name=entry.name,
        scan=entry.scan,
        question=", ".join(row["question"] for row in rows),
        answer=" ".join([*(row["answer"] for row in rows), *several.notes]),
        status="paused" if any(row["status"] == "paused" for row in rows) else "ended",
        doubt=max(row["doubt"] for row in rows),
        seconds=round(seconds, 2),
        thumbnail=several.thumbnail(),
        structures=rows,
    )


def _scores(record: Mapping[str, Any], slices: list[RecordedSlice]) -> list[float | None]:
    """The segmenter's scores of the slices with a mask; for a single slice, that of its last mask."""
    if "slices" in record:
        return [each.row.get("score") for each in slices if each.mask.any()]
    return [step["score"] for step in record["steps"] if step.get("score") is not None][-1:]


def _thumbnail(shown: RecordedSlice) -> str:
    """The largest slice with its mask, as base64 of a small PNG."""
    pixels = read_png(shown.picture["png"], shown.geometry.height, shown.geometry.width)
    return thumbnail(shown.geometry, pixels, [(shown.mask, CYAN)])
