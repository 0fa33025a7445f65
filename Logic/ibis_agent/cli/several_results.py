"""The common results for several structures: labels with overlaps resolved, measurements, a page, a summary."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ibis_agent import files
from ibis_agent.cli.mask_paths import REPORT_NAME
from ibis_agent.cli.request import Request, Task
from ibis_agent.errors import IbisError, InputError
from ibis_agent.fields import Fields, read_json
from ibis_agent.mask import MASK_FORMATS, ending_of
from ibis_agent.mask.files import Named, write_labels
from ibis_agent.mask.masks import decode_rle, encode_rle
from ibis_agent.mask.measurements import Measurements, answer_with_size
from ibis_agent.mask.overlaps import Overlaps
from ibis_agent.mask.structures import colour_for, structure_for
from ibis_agent.record.cohort_page import write_table
from ibis_agent.record.structures_page import write_structures_page
from ibis_agent.record.thumbnails import thumbnail
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.measured import measures_of
from ibis_agent.run.settings import Follow
from ibis_agent.scan.checks import stem
from ibis_agent.scan.geometry import Orientation
from ibis_agent.scan.slices import Stack

STRUCTURES_NAME, TABLE_NAME, PAGE_NAME, LABELS = "structures.json", "measures.csv", "index.html", "labels"
_SCHEMA = "ibis-structures/1"
_SIDE = 320  # pixels; size of the pictures on the page
# The options that affect the results and cannot be changed on resuming, with their types.
_KEPT: dict[str, tuple[type, ...]] = {
    "plane": (str,), "index": (int,), "window": (int, float), "orientation": (str,), "series": (str,),
    "modality": (str,), "max_turns": (int,), "max_repeats": (int,), "history": (int,), "mask_formats": (str,),
    "volume": (bool,), "slices": (int,), "roi": (int,), "looks": (int,), "follow": (str,), "review": (bool,),
    "report": (bool,),
}  # fmt: skip
_LISTS = ("window", "mask_formats", "slices", "roi")


def doubt_of(scores: Iterable[float | None], status: str) -> float:
    """0 to 1: one minus the mean of the segmenter's scores over the slices of the mask; 1 for a paused run or without
    scores.
    """
    known = [float(score) for score in scores if score is not None]
    if not known or status == "paused":
        return 1.0
    return round(min(1.0, max(0.0, 1.0 - float(np.mean(known)))), 4)


@dataclass(eq=False)
class Part:
    """One structure.

    Attributes:
        number: its label, from 1.
        name: of the segment, unique. question, folder: of its run.
        begun: the record of an unfinished run, to resume from.
        done: its result.
    """

    number: int
    name: str
    question: str
    folder: Path
    begun: Trajectory | None = None
    done: Done | None = None

    def take(self, record: Trajectory) -> None:
        self.begun, self.done = None, Done.of(record)

    @property
    def segment(self) -> Named:
        answer = self.done.answer if self.done else ""
        return Named(self.name, colour_for(self.question, answer), structure_for(self.question, answer))


@dataclass(frozen=True, eq=False)
class Done:
    """The result of a finished run: its masks as run lengths and their scores, by slice, and its status."""

    answer: str
    status: str
    reason: str
    caveats: tuple[str, ...]
    masks: Mapping[int, str]
    scores: Mapping[int, float]

    @classmethod
    def of(cls, record: Trajectory) -> Done:
        masks = {n: str(row["mask_rle"]) for n, row in record.rows.items()}
        scores = {n: float(row.get("score") or 0.0) for n, row in record.rows.items()}
        if record.alone:
            index = record.slices.first
            last = [step.score for step in record.steps if step.score is not None][-1:]
            masks, scores = {index: encode_rle(record.mask)}, {index: float(last[0]) if last else 0.0}
        return cls(record.answer or "", record.status, record.reason, record.caveats, masks, scores)

    @property
    def doubt(self) -> float:
        """See `doubt_of`."""
        return doubt_of([score for n, score in self.scores.items() if self.masks[n]], self.status)


@dataclass(eq=False)
class Results:
    """The files beside the structures' folders. paths: the label files."""

    folder: Path
    task: Task
    paths: Sequence[Path]
    parts: Sequence[Part]
    notes: list[str] = field(default_factory=list)
    _measures: dict[int, Measurements] = field(default_factory=dict)
    _most: str = ""

    def check_places(self) -> None:
        """Raises InputError if the results would overwrite what is read, or files that are not ours."""
        remedy = "Choose another --out or --mask."
        for path in (*self.paths, self.names):
            files.check_not_input(path, self.task.request.inputs)
        if not (self.folder / STRUCTURES_NAME).is_file():
            page = [self.folder / PAGE_NAME] if self.task.request.review else []
            page += [self.folder / REPORT_NAME] if self.task.request.report else []
            for path in (*self._own_labels(), self.folder / TABLE_NAME, *page):
                if path.exists():
                    raise InputError("the results would overwrite this file", file=path, remedy=remedy)
        if self.names.exists() and not _is_names(self.names):
            raise InputError(
                "the names of the labels would overwrite this file", file=self.names, remedy=remedy
            )

    @property
    def names(self) -> Path:
        """The file with the names of the labels."""
        return self.paths[0].with_name(stem(self.paths[0]) + ".json")

    def _own_labels(self) -> list[Path]:
        return [self.folder / f"{LABELS}{end}" for end in (*MASK_FORMATS.values(), ".json")]

    def written(self) -> bool:
        """Whether the label files exist, or the empty result of a DICOM format."""
        return self.names.exists() and (self.folder / TABLE_NAME).exists()

    def remove(self) -> None:
        """Remove the results of an earlier run in this folder, as they would not match the new ones; never an input."""
        if not (self.folder / STRUCTURES_NAME).is_file():
            return
        others = (self.folder / each for each in (TABLE_NAME, PAGE_NAME, REPORT_NAME))
        for path in (*self._own_labels(), *others):
            if path.is_file() and not files.is_one_of(path, self.task.request.inputs):
                path.unlink()

    def write(self, review: bool = True) -> dict[str, Path]:
        """Write labels, names, measurements and page for the finished structures.

        Returns the files by kind. Raises OutputError.
        """
        labels, overlaps = self._labels()
        done = [part for part in self.parts if part.done]
        unit = "pixels" if labels.ndim == 2 else "voxels"
        self.notes = overlaps.sentences({part.number: part.name for part in self.parts}, unit)
        self._measures = {part.number: measures_of(self.task.slices, labels == part.number) for part in done}
        self.notes += [
            f"{each.name}: nothing was segmented." for each in done if not self._measures[each.number].voxels
        ]
        largest = max(done, key=lambda part: self._measures[part.number].area)
        self._most = self._picture(largest, labels, 160)
        written = self._write_labels(labels)
        written["measures"] = self.folder / TABLE_NAME
        scan = str(self.task.request.scan)
        rows = [self._row(part) for part in done]
        write_table(
            written["measures"], [{"name": self.task.source, "scan": scan, "error": "", "structures": rows}]
        )
        if review:
            written["page"] = self.folder / PAGE_NAME
            shown = [{**self._row(part), "thumbnail": self._picture(part, labels)} for part in done]
            left = [part.name for part in self.parts if not part.done]
            write_structures_page(written["page"], self.task.source, shown, self.notes, left)
        return written

    def thumbnail(self) -> str:
        return self._most

    def summary(self, written: Mapping[str, Path]) -> dict[str, Any]:
        return {
            "structures": [self._row(part) for part in self.parts],
            "notes": self.notes,
            "files": {what: str(path) for what, path in written.items()},
        }

    def save(self, created: str, asked: Mapping[str, Any], written: Mapping[str, Path] | None) -> None:
        """Write structures.json: the request, and the status of each structure."""
        content = {
            "schema": _SCHEMA,
            "created": created,
            "source": self.task.source,
            "settings": dict(asked),
            "structures": [self._row(part) for part in self.parts],
            "notes": self.notes,
            "files": [path.name for path in (written or {}).values()],
        }
        files.write_json(self.folder / STRUCTURES_NAME, content)

    def _labels(self) -> tuple[np.ndarray, Overlaps]:
        """Labels, (H, W) for a single slice, otherwise (I, J, K) in the scan's own voxel order; and the overlaps."""
        slices, overlaps = self.task.slices, Overlaps()
        geometry = slices.geometry(slices.first)
        flat = not isinstance(slices, Stack)
        labels = np.zeros((geometry.height, geometry.width) if flat else geometry.shape, np.uint8)
        done = {part.number: part.done for part in self.parts if part.done}
        for index in sorted({n for each in done.values() for n in each.masks}):
            here = slices.geometry(index)
            known = {number: each for number, each in done.items() if each.masks.get(index)}
            if not known:
                continue
            masks = {
                number: decode_rle(each.masks[index], (here.height, here.width))
                for number, each in known.items()
            }
            settled = overlaps.settle(masks, {number: each.scores[index] for number, each in known.items()})
            (labels if flat else here.extract(labels))[...] = settled
        return labels, overlaps

    def _write_labels(self, labels: np.ndarray) -> dict[str, Path]:
        task, written = self.task, dict[str, Path]()
        slices = task.slices
        where: Any = slices.scan if isinstance(slices, Stack) else slices.geometry(slices.first)
        dicom = None if task.request.scan is None else (task.request.scan, task.request.series)
        segments = [part.segment for part in self.parts]
        for path in self.paths:
            if path.name.endswith(".dcm") and not labels.any():
                self.notes.append(f"nothing was segmented, so {path.name} is not written")
                continue
            write_labels(path, labels, where, segments, dicom=dicom)
            written[LABELS if len(self.paths) == 1 else LABELS + ending_of(path.name)] = path
            if task.request.report and path.name.endswith(".seg.dcm"):
                written["report"] = self._write_report(path)
        files.write_json(self.names, _names(self.parts))
        return {**written, "names": self.names}

    def _write_report(self, seg: Path) -> Path:
        from ibis_agent.mask.dicom_report import write_report

        geometry, request = self.task.slices.geometry(self.task.slices.first), self.task.request
        assert request.scan is not None
        # As in a DICOM SEG, where an empty structure has no segment.
        shown = [part for part in self.parts if part.done and self._measures[part.number].voxels]
        found = [(self._measures[part.number], part.segment.structure) for part in shown]
        where = geometry.affine, geometry.shape, request.series
        return write_report(self.folder / REPORT_NAME, seg, found, request.scan, *where)

    def _row(self, part: Part) -> dict[str, Any]:
        """The facts about a structure, as plain values."""
        row: dict[str, Any] = {
            "label": part.number, "name": part.name, "question": part.question, "folder": part.folder.name,
            "colour": list(part.segment.colour), "status": "to do", "answer": "",
        }  # fmt: skip
        done, measures = part.done, self._measures.get(part.number)
        if done is None:
            return row
        row |= {"status": done.status, "reason": done.reason, "answer": done.answer}
        row |= {"caveats": list(done.caveats), "doubt": done.doubt}
        if measures is not None:
            row["measurements"] = measures.to_json()
            row["answer"] = answer_with_size(part.question, done.answer, measures)
        return row

    def _picture(self, part: Part, labels: np.ndarray, side: int = _SIDE) -> str:
        """The slice with the structure's largest area, showing all structures in their colours."""
        slices, measures = self.task.slices, self._measures[part.number]
        index = slices.first if measures.area_slice is None else measures.area_slice
        geometry = slices.geometry(index)
        here = labels if labels.ndim == 2 else geometry.extract(labels)
        masks = [(here == each.number, each.segment.colour) for each in self.parts]
        return thumbnail(geometry, slices.picture(index).rgb, masks, side)


def _is_names(path: Path) -> bool:
    """Whether a file was written by `_names`."""
    try:
        content = read_json(path)
    except IbisError:
        return False
    return isinstance(content, dict) and {"labels", "segments"} <= content.keys()


def _names(parts: Sequence[Part]) -> dict[str, Any]:
    """The names of the labels; `labels` as in nnU-Net's dataset.json."""
    segments = []
    for part in parts:
        code = part.segment.structure.code if part.segment.structure else None
        coded = None if code is None else dataclasses.asdict(code)
        segments.append(
            {"label": part.number, "name": part.name, "colour": list(part.segment.colour), "code": coded}
        )
    return {"labels": {"background": 0, **{part.name: part.number for part in parts}}, "segments": segments}


def asked_to_json(request: Request) -> dict[str, Any]:
    """The options that affect the results, besides scan, questions and models."""
    kept: dict[str, Any] = json.loads(json.dumps({key: getattr(request, key) for key in _KEPT}))
    return kept


def resumed(request: Request, questions: Sequence[str] | None) -> tuple[Request, list[str], str]:
    """The request of a stopped run with the scan and models of `request`; the questions; when it was created.

    Raises InputError for a damaged structures.json, and for options that cannot be changed.
    """
    assert request.resume is not None
    path = request.resume if request.resume.name == STRUCTURES_NAME else request.resume / STRUCTURES_NAME
    fields = Fields(read_json(path), path)
    if fields.text("schema") != _SCHEMA:
        raise fields.error("schema", f"must be {_SCHEMA}")
    if request.scan is None:
        raise InputError(
            "resuming a run for several structures needs the scan",
            file=path,
            value=fields.text("source"),
            remedy=f"Give it too: ibis-agent run SCAN --resume {request.resume}",
        )
    plain = Request()
    again = [key for key in _KEPT if key != "review" and getattr(request, key) != getattr(plain, key)]
    if again or questions or request.question or request.out or request.mask or request.masks:
        raise InputError(
            "these options cannot be changed when resuming a run for several structures",
            file=path,
            value=", ".join(again) or None,
            remedy="Give only the scan, the models and --resume.",
        )
    kept = fields.inside("settings")
    changes = {key: _checked(kept, key) for key in _KEPT}
    if changes["orientation"]:
        changes["orientation"] = Orientation(kept.choice("orientation", [each.value for each in Orientation]))
    if changes["follow"]:
        kept.choice("follow", get_args(Follow))
    asked = [each.text("question") for each in fields.list_of("structures")]
    if not asked:
        raise fields.error("structures", "must not be empty", "[]")
    return (
        dataclasses.replace(request, **changes, resume=None, out=path.parent),
        asked,
        fields.text("created"),
    )


def _checked(kept: Fields, key: str) -> Any:
    value, types = kept.value(key, None), _KEPT[key]
    listed = value if isinstance(value, list) else [value]
    if value is not None and (
        isinstance(value, list) != (key in _LISTS)
        or not all(
            isinstance(each, types) and (bool in types or not isinstance(each, bool)) for each in listed
        )
    ):
        raise kept.error(key, "is not a valid request")
    if value is None:
        return getattr(Request(), key)
    return tuple(value) if key in _LISTS else value
