"""One run from files to files: scan → run → mask, trajectory, review page.

Input errors are found when a `Runner` is created (by request.check), before a model is loaded or a file written.
Options and printing are in commands and session, descriptions in description; what a step does is in run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ibis_agent.segmenter as segmenters
from ibis_agent import files
from ibis_agent.cli.claim import Claim, new_folder
from ibis_agent.cli.mask_paths import REPORT_NAME
from ibis_agent.cli.record_path import TRAJECTORY_NAME
from ibis_agent.cli.request import Request, Task, check
from ibis_agent.errors import IbisError, InputError
from ibis_agent.mask import MASK_FORMATS, ending_of, structures
from ibis_agent.mask import files as mask_files
from ibis_agent.policy.contract import Policy, PolicySource
from ibis_agent.record.review import write_review
from ibis_agent.record.run_file import RunFile
from ibis_agent.run.measured import measured
from ibis_agent.run.run import Run
from ibis_agent.run.state import Place
from ibis_agent.scan.slices import Stack
from ibis_agent.segmenter.contract import Segmenter

REVIEW_NAME = "review.html"
# Bytes needed for the results of a slice and of a volume, whose mask is compressed and nearly empty.
_ROOM, _ROOM_OF_A_VOLUME = 16 * 2**20, 64 * 2**20


class Runner:
    """A run over a slice or a volume, and its files.

        runner = Runner(Request(scan=Path("ct.nii.gz"), question="Segment the liver", out=Path("out")))
        runner.load()
        while runner.run.status == "ready":
            runner.do(runner.run.step)
        runner.finish()

    Attributes:
        task: the checked task.
        run: set by `load`.
        notes: notes for the person, such as that the weights differ from those of the resumed run.
        written: the files, once `finish` has written them.
        discarded: whether the run was discarded.
    """

    run: Run

    def __init__(self, request: Request | Task) -> None:
        """Check everything, and create the folders. If it raises IbisError, nothing is left behind."""
        self.task = request if isinstance(request, Task) else check(request)
        self.notes: list[str] = []
        self.written: dict[str, Path] = {}
        self.discarded = False
        self._saved = False
        self._kept: Place | None = None  # the state of the run when it was last saved or resumed
        self._made_folders: list[Path] = []
        self._claim: Claim | None = None
        room = _ROOM_OF_A_VOLUME if isinstance(self.task.slices, Stack) else _ROOM
        try:
            if not self.task.named:
                self._made_folders = _missing_folders(self.task.folder.parent)
                self.task = self.task.moved(new_folder(self.task.folder))
                self._made_folders.insert(0, self.task.folder)
            for folder in (self.task.folder, *(path.parent for path in self.task.masks)):
                self._made_folders[:0] = _missing_folders(folder)
                files.check_writable_folder(folder, room)
            self._spare_others()
            self._claim = Claim(self.task.folder)
        except BaseException:
            self.abandon()
            raise
        created = self.task.resumed.created if self.task.resumed else ""
        self._file = RunFile(self.task.folder / TRAJECTORY_NAME, self.task.source, created)

    def load(self) -> None:
        """Load the models and open the run. Raises ModelError."""
        policy, segmenter = load_models(self.task)
        if licence := segmenter.identity.get("licence"):
            self.notes.append(f"the segmenter's weights are under the licence {licence}")
        self.begin(policy, segmenter)

    def begin(self, policy: Policy | None, segmenter: Segmenter) -> None:
        """Open the run with models that are already loaded."""
        task = self.task
        if task.resumed is None:
            self.run = Run(task.slices, task.question, policy, segmenter, task.settings, given=task.given)
            return
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            self.run = task.resumed.to_run(policy, segmenter, task.settings, task.slices)
        self._kept = self.run.place()
        self.notes += [str(each.message) for each in told if each.category is UserWarning]

    def do(self, act: Callable[[], object]) -> None:
        """Call `act` and save the run to disk, also if it fails."""
        try:
            act()
        except BaseException:
            with contextlib.suppress(IbisError):
                self.save()
            raise
        self.save()

    def save(self) -> Path:
        """Save the run to disk atomically. Returns its file. Raises OutputError."""
        place, kept = self.run.place(), self._kept
        if kept is None or (place.actions, place.halt) != (kept.actions, kept.halt):
            if place.actions or self._saved or place.halt:
                self._remove_earlier()
                self._file.save(self.run)
                self._saved = True
            self._kept = place
        return self._file.path

    def finish(self) -> dict[str, Path]:
        """Write all results. Returns the files by kind. Raises OutputError."""
        task, run, record = self.task, self.run, None
        if not self._is_untouched():
            self._remove_earlier()
            record = self._file.finish(run, measured(run).to_json())
            self._saved = True
        written = {"trajectory": self._file.path}
        # A volume of one slice is treated as a single slice; its mask still covers the whole scan.
        mask: np.ndarray = run.volume() if isinstance(task.slices, Stack) else run.mask()
        for path in task.masks:
            if path.name.endswith(".dcm") and not mask.any():
                self.notes.append(f"nothing was segmented, so {path.name} is not written")
                continue
            self._write_mask(path, mask)
            written["mask" if len(task.masks) == 1 else f"mask{ending_of(path.name)}"] = path
            if task.request.report and path.name.endswith(".seg.dcm"):
                written["report"] = self._write_report(path)
        if task.request.review:
            record = record or self._file.record(run)
            written["review"] = task.folder / REVIEW_NAME
            write_review(written["review"], record.to_json(png=False), record.slices.picture)
        self.give_back()
        self.written = written
        return written

    def discard(self) -> None:
        """Remove all files of this run. The file of a resumed run stays as it was after its last step."""
        self.discarded = True
        if self._saved and self.task.resumed is None:
            self._file.remove()
        self.abandon()

    def abandon(self) -> None:
        """Release the folder, and remove the folders created for this run if they are empty."""
        self.give_back()
        for folder in self._made_folders:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def give_back(self) -> None:
        """Allow others to write into the folder."""
        if self._claim is not None:
            self._claim.release()

    def _is_untouched(self) -> bool:
        """Whether a resumed run is unchanged, so that its record and mask stay."""
        self.save()
        resume, path = self.task.request.resume, self._file.path
        return not self._saved and resume is not None and path.exists() and path.samefile(resume)

    def _spare_others(self) -> None:
        """Raises InputError if the results would overwrite files that were not written by a run. --mask is exempt."""
        task, folder = self.task, self.task.folder
        if not task.named or (folder / TRAJECTORY_NAME).exists():
            return
        own = [path for path in task.masks if path != task.request.mask]
        own += [folder / REVIEW_NAME] if task.request.review else []
        own += [folder / REPORT_NAME] if task.request.report else []
        for path in own:
            if path.exists():
                remedy = "Choose another --out, an empty folder."
                raise InputError("the results would overwrite this file", file=path, remedy=remedy)

    def _remove_earlier(self) -> None:
        """Remove the mask and page of an earlier run in this folder: they would not match the new record."""
        if self._saved or not self._file.path.exists():
            return
        remove_results(self.task.folder, self.task.request.inputs)

    def _write_mask(self, path: Path, mask: np.ndarray) -> None:
        geometry: Any = self.task.slices.geometry(self.task.slices.first)
        if isinstance(self.task.slices, Stack):
            geometry = self.task.slices.scan
        request = self.task.request
        dicom = None if request.scan is None else (request.scan, request.series)
        write_mask(path, mask, geometry, self.task.question, self.run.answer or "", dicom)

    def _write_report(self, seg: Path) -> Path:
        from ibis_agent.mask.dicom_report import write_report

        task, run = self.task, self.run
        geometry, scan = task.slices.geometry(task.slices.first), task.request.scan
        assert scan is not None
        structure = structures.structure_for(task.question, run.answer or "")
        where = geometry.affine, geometry.shape, task.request.series
        return write_report(task.folder / REPORT_NAME, seg, [(measured(run), structure)], scan, *where)


def remove_results(folder: Path, inputs: Sequence[Path]) -> None:
    """Remove files that an earlier run wrote beside its record; never what this one reads."""
    for name in (REVIEW_NAME, REPORT_NAME, *(f"mask{end}" for end in MASK_FORMATS.values())):
        path = folder / name
        if path.is_file() and not files.is_one_of(path, inputs):
            path.unlink()


def load_models(task: Task) -> tuple[Policy, Segmenter]:
    """Load both models of a task. Raises ModelError."""
    segmenter, policy = load_segmenter(task.request), load_policy(task.policy, task.request)
    policy.card = dataclasses.replace(policy.card, history=task.card.history)
    return policy, segmenter


def load_policy(found: PolicySource, request: Request) -> Policy:
    """Load the policy of a request. Imports torch. Raises ModelError."""
    return found.open(request.device, request.precision)


def load_segmenter(request: Request) -> Segmenter:
    """Load the segmenter of a request. Imports torch. Raises ModelError."""
    return segmenters.open(
        request.segmenter,
        request.segmenter_config,
        request.device,
        first_box=request.first_box,
        agreed=request.send_slices_to,
    )


def write_mask(
    path: Path,
    mask: np.ndarray,
    where: Any,
    question: str,
    answer: str,
    dicom: tuple[Path, str | None] | None = None,
) -> None:
    """Write a mask in the scan's grid, with name and colour from the question or the answer.

    mask, where: (H, W) and its PictureGeometry, or (I, J, K) and the Scan or a geometry. dicom: the scan's folder and
    series, which a DICOM SEG or RTSTRUCT references.
    """
    mask_files.write_mask(
        path,
        mask,
        where,
        name=structures.name_for(question, answer),
        colour=structures.colour_for(question, answer),
        structure=structures.structure_for(question, answer),
        dicom=dicom,
    )


def _missing_folders(folder: Path) -> list[Path]:
    """`folder` and its parents that do not exist yet, innermost first."""
    missing = []
    while not os.path.exists(folder) and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    return missing
