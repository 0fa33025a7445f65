"""One run from files to files: picture → episode → mask, trajectory, review page.

What can be wrong with what the person gave is found when a `Run` is made (by request.check), before a model
is loaded or a file written. Options and printing are in cli and session; what a step does is in episode.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ibis_agent.segmenter as segmenters
from ibis_agent import files
from ibis_agent.actions import Click, format_click
from ibis_agent.cli.request import MASK_FORMATS, Request, check, reading_lines
from ibis_agent.mask import files as mask_files
from ibis_agent.mask import masks, structures
from ibis_agent.policy.contract import OnText, Policy, PolicySource
from ibis_agent.record import review
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.episode import Episode, Step
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.segmenter.contract import PictureSegmenter, Segmenter

TRAJECTORY_NAME, REVIEW_NAME = "trajectory.json", "review.html"
# Room for the results of one slice; a mask of a volume is compressed and nearly empty.
_ROOM = 16 * 2**20


class Run:
    """A run over one picture.

        run = Run(Request(scan=Path("ct.nii.gz"), question="Segment the liver", out=Path("out")))
        run.load()
        while run.episode.status == "ready":
            run.step()
        run.finish()

    Attributes:
        job: what is done, checked.
        episode: there after `load`.
        notes: what a person should know, such as that other weights are used than in the resumed run.
    """

    episode: Episode

    def __init__(self, request: Request) -> None:
        """Check everything, and make the folders. Raises IbisError, and leaves nothing behind then."""
        self.job = check(request)
        self.notes: list[str] = []
        self._saved = False
        self._created = self.job.resumed.created if self.job.resumed else ""
        self._made_folders: list[Path] = []
        try:
            for folder in (self.job.folder, *(path.parent for path in self.job.masks)):
                self._made_folders[:0] = _missing_folders(folder)
                files.check_writable_folder(folder, _ROOM)
        except BaseException:
            self.abandon()
            raise

    def description(self) -> list[tuple[str, str]]:
        """What is going to be done, as (term, words)."""
        picture, geometry = self.job.picture, self.job.picture.geometry
        where = f"{geometry.width} × {geometry.height} pixels"
        if geometry.plane != "picture":
            where = f"{geometry.plane}, slice {geometry.index} of {geometry.shape[geometry.axis]}, {where}"
        if picture.window:
            where += f", window {picture.window[0]:g} to {picture.window[1]:g}"
        models = self.job.card.name + (f" ({self.job.card.note})" if self.job.card.note else "")
        segmenter = self.job.request.segmenter.name if self.job.request.segmenter else "demo segmenter"
        return [
            ("scan", self.job.source),
            ("picture", where),
            ("question", self.job.question),
            ("policy", models),
            ("segmenter", segmenter),
            *reading_lines(picture.notes),
        ]

    def load(self) -> None:
        """Load the models and open the episode. Raises ModelError."""
        segmenter = load_segmenter(self.job.request)
        policy = load_policy(self.job.policy, self.job.request)
        policy.card = dataclasses.replace(policy.card, history=self.job.card.history)
        self.begin(policy, segmenter)

    def begin(self, policy: Policy | None, segmenter: PictureSegmenter) -> None:
        """Open the episode with models that are loaded already."""
        job = self.job
        if job.resumed is None:
            self.episode = Episode(job.picture, job.question, policy, segmenter, job.limits)
            return
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            self.episode = job.resumed.to_episode(policy, segmenter, job.limits)
        self.notes += [str(each.message) for each in told if each.category is UserWarning]

    def step(
        self,
        on_text: OnText | None = None,
        on_retry: Callable[[str], object] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Step | None:
        """Let the policy act once and keep the result on disk. See Episode.step."""
        step = self.episode.step(on_text, cancelled, on_retry)
        self.save()
        return step

    def change(self, do: Callable[[], object]) -> None:
        """Do something to the episode and keep the result on disk."""
        do()
        self.save()

    def save(self) -> Path:
        """Write the trajectory as it stands, whole or not at all. Returns its file. Raises OutputError."""
        path = self.job.folder / TRAJECTORY_NAME
        resume, untouched = self.job.request.resume, not (self.episode.can_undo or self.episode.can_redo)
        if untouched and resume is not None and path.exists() and path.samefile(resume):
            return path  # nothing was done yet: the record stays, and the mask beside it
        trajectory = Trajectory.of(self.episode, self.job.source)
        self._created = self._created or trajectory.created
        if not self._saved and path.exists():
            remove_stale_results(self.job.folder, self.job.request.scan)
        dataclasses.replace(trajectory, created=self._created).save(path)
        self._saved = True
        return path

    def finish(self) -> dict[str, Path]:
        """Write everything. Returns the files by what they are. Raises OutputError."""
        written = {"trajectory": self.save()}
        answer = self.episode.answer or ""
        for path in self.job.masks:
            write_mask(path, self.episode.mask, self.job.picture.geometry, self.job.question, answer)
            written["mask" if len(self.job.masks) == 1 else _kind(path)] = path
        if self.job.request.review:
            record = Trajectory.of(self.episode, self.job.source)
            path = self.job.folder / REVIEW_NAME
            review.write_review(path, dataclasses.replace(record, created=self._created).to_json())
            written["review"] = path
        return written

    def discard(self) -> None:
        """Leave nothing of this run behind. A resumed run's own file stays as the last step left it."""
        if self._saved and self.job.resumed is None:
            (self.job.folder / TRAJECTORY_NAME).unlink(missing_ok=True)
        self.abandon()

    def abandon(self) -> None:
        """Remove the folders that were made for this run, if nothing is in them."""
        for folder in self._made_folders:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def facts_of(self, number: int) -> dict[str, Any]:
        """What there is to tell about step `number`: plain values, and `…_text` for people."""
        step = self.episode.steps[number - 1]
        before = masks.area(self.episode.steps[number - 2].mask) if number > 1 else 0
        pixels = masks.area(step.mask)
        clicked = isinstance(step.action, Click)
        each = self.job.picture.geometry.pixel_area_mm2
        return {
            "number": step.number,
            "by": step.by,
            "thinking": step.thinking,
            "action": format_click(step.action) if isinstance(step.action, Click) else "Terminate",
            "answer": None if isinstance(step.action, Click) else step.action.answer,
            "sign": ("+" if step.action.positive else "-") if isinstance(step.action, Click) else "=",
            "area_px": pixels,
            "area_mm2": None if each is None else pixels * each,
            "area_text": self.area_text(step.mask),
            "change_text": self._amount(pixels - before, sign=True),
            "score": step.score if clicked else None,
            "seconds": dict(step.seconds),
            "seconds_text": _seconds_text(step),
        }

    def area_text(self, mask: np.ndarray) -> str:
        """The area of a (H, W) mask in mm², or in pixels for a photograph."""
        return self._amount(masks.area(mask))

    def summary(self, written: dict[str, Path]) -> dict[str, Any]:
        """The whole run in plain values."""
        episode, each = self.episode, self.job.picture.geometry.pixel_area_mm2
        pixels = masks.area(episode.mask)
        return {
            "question": self.job.question,
            "answer": episode.answer,
            "status": episode.status,
            "reason": episode.reason,
            "steps": len(episode.steps),
            "area_px": pixels,
            "area_mm2": None if each is None else pixels * each,
            "files": {what: str(path) for what, path in written.items()},
        }

    def _amount(self, pixels: int, sign: bool = False) -> str:
        each = self.job.picture.geometry.pixel_area_mm2
        number, unit = (pixels, "px") if each is None else (pixels * each, "mm²")
        digits = ".1f" if abs(number) < 10 and number != int(number) else ".0f"
        return f"{number:{'+' if sign else ''}{digits}} {unit}"


def remove_stale_results(folder: Path, scan: Path | None) -> None:
    """Mask and page of an earlier run in this folder: beside the new record they would belie it."""
    names = [REVIEW_NAME, *(f"mask{end}" for end in MASK_FORMATS.values())]
    for path in (folder / name for name in names):
        if path.is_file() and not (scan is not None and path.samefile(scan)):
            path.unlink()


def load_policy(found: PolicySource, request: Request) -> Policy:
    """The policy of a request. Imports torch. Raises ModelError."""
    return found.open(request.device, request.precision)


def load_segmenter(request: Request) -> Segmenter:
    """The segmenter of a request. Imports torch. Raises ModelError."""
    return segmenters.open(request.segmenter, request.segmenter_config, request.device)


def write_mask(path: Path, mask: np.ndarray, geometry: PictureGeometry, question: str, answer: str) -> None:
    """Write a (H, W) mask into the scan's grid, named and coloured after the question or the answer."""
    mask_files.write_mask(
        path,
        mask,
        geometry,
        name=structures.name_for(question, answer),
        colour=structures.colour_for(question, answer),
        structure=structures.structure_for(question, answer),
    )


def _kind(path: Path) -> str:
    return "mask" + next(
        end for end in sorted(MASK_FORMATS.values(), key=len, reverse=True) if path.name.endswith(end)
    )


def _missing_folders(folder: Path) -> list[Path]:
    """`folder` and its parents that do not exist yet, innermost first."""
    missing = []
    while not os.path.exists(folder) and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    return missing


def _seconds_text(step: Step) -> str:
    parts = [
        f"{who} {step.seconds.get(who, 0):.2f}" for who in ("policy", "segmenter") if step.seconds.get(who)
    ]
    return f"{step.seconds.get('total', 0):.2f} s" + (f" ({', '.join(parts)})" if len(parts) > 1 else "")
