"""Several structures in one scan: one run after the other, with the same models and image features.

    several = Several(Request(scan=Path("ct.nii.gz"), question="Segment the liver and the spleen", out=Path("out")))
    several.load()
    for runner in several.runs():
        runner.do(runner.run.run)
    several.finish()

Each structure has a folder with the results of its run. Beside these folders are the common label file, in which
overlaps are resolved, the measurements, a page with all structures, and `structures.json`, which is needed to resume.
These common results are written in several_results.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ibis_agent.policy as policies
from ibis_agent import files
from ibis_agent.cli.claim import Claim, new_folder
from ibis_agent.cli.record_path import TRAJECTORY_NAME
from ibis_agent.cli.request import Request, Task, check
from ibis_agent.cli.runner import Runner, load_models, remove_results
from ibis_agent.cli.several_results import (
    LABELS,
    STRUCTURES_NAME,
    Part,
    Results,
    asked_to_json,
    resumed,
)
from ibis_agent.errors import InputError
from ibis_agent.mask import MASK_FORMATS, structures
from ibis_agent.mask.overlaps import MOST
from ibis_agent.policy.contract import Policy
from ibis_agent.policy.vocabulary import check_asked, questions_in, wording
from ibis_agent.record.journal import beside
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.given import Given
from ibis_agent.run.run import Run
from ibis_agent.scan.slices import Stack
from ibis_agent.segmenter.contract import Segmenter


def questions_of(request: Request, prompts: Sequence[str]) -> list[str]:
    """One question for each structure, without duplicates. Raises InputError, ModelError."""
    card = policies.find(request.policy).card
    found = [question for prompt in prompts for question in questions_in(prompt, card)]
    if len(found) > MOST:
        raise InputError("too many structures", value=len(found), remedy=f"Ask for at most {MOST}.")
    return list({wording(each, card.vocabulary).casefold(): each for each in reversed(found)}.values())[::-1]


def is_of_several(path: Path | None) -> bool:
    """Whether the path to resume is a structures.json or its folder."""
    return path is not None and (path.name == STRUCTURES_NAME or (path / STRUCTURES_NAME).is_file())


class Several:
    """Runs for several structures, and their files.

    Attributes:
        task: the checked task of the first one; all share its scan and slices.
        parts: the structures, in the order of the questions.
        folder: for the results.
    """

    def __init__(self, request: Request, questions: Sequence[str] | None = None) -> None:
        """Check everything, and create the folder. If it raises IbisError, nothing is left behind.

        request: if `resume` names a structures.json or its folder, that is continued, and only scan, models and device
            may be given besides.
        questions: each for one or more structures; None means those of the request.
        """
        self._created = ""
        self._claim: Claim | None = None
        self._made = False
        self._models: tuple[Policy | None, Segmenter] | None = None
        if request.resume is not None:
            request, questions, self._created = resumed(request, questions)
        elif questions is None:
            questions = [] if request.question is None else [request.question]
        asked = questions_of(request, questions)
        if not asked:
            raise InputError(
                "there is no question", remedy='Name the structures: --prompt "the liver and the spleen".'
            )
        self.task = check(dataclasses.replace(request, question=asked[0]), asked)
        for question in asked:
            check_asked(question, self.task.card)
        if not self.task.named:
            self.task = self.task.moved(new_folder(self.task.folder))
            self._made = True
        self.folder = self.task.folder
        try:
            files.check_writable_folder(self.folder)
            self._claim = Claim(self.folder)
            self.parts = _parts(asked, self.folder)
            self._results = Results(self.folder, self.task, _label_paths(self.task), self.parts)
            self._results.check_places()
            if self._created:
                self._find_what_is_there()
        except BaseException:
            self.abandon()
            raise

    @property
    def written(self) -> bool:
        """Whether the common results exist: the process may have been killed just before writing them."""
        return not self.left and self._results.written()

    @property
    def left(self) -> list[Part]:
        """The structures that are not finished."""
        return [part for part in self.parts if not part.done]

    def load(self) -> None:
        """Load the models. Raises ModelError."""
        self.begin(*load_models(self.task))

    def begin(self, policy: Policy | None, segmenter: Segmenter) -> None:
        """Use models that are already loaded, and write structures.json."""
        self._models = policy, segmenter
        if not self._created:
            self._created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            self._results.remove()
            for part in self.parts:  # records of an earlier run in this folder have other settings
                record = part.folder / TRAJECTORY_NAME
                if record.exists():
                    remove_results(part.folder, self.task.request.inputs)
                for path in (record, beside(record)):
                    path.unlink(missing_ok=True)
            for part in self.parts:
                self._keep_given(part)
        self._save()

    def runs(self) -> Iterator[Runner]:
        """A runner for each remaining structure; the caller does its steps. Its results are written before the next."""
        for part in self.left:
            assert self._models is not None, "load the models first"
            runner = Runner(self._task_of(part))
            given = runner.task.given
            if given.start_name and not given.start:
                runner.notes.append(f"{given.start_name} is empty here: the run starts without a mask")
            try:
                runner.begin(*self._models)
                yield runner
            except BaseException:
                runner.give_back()
                raise
            if runner.discarded:
                continue
            if not runner.written:
                runner.finish()
            self.keep(part, Trajectory.of(runner.run, self.task.source))

    def keep(self, part: Part, record: Trajectory) -> None:
        """Store the result of a structure."""
        part.take(record)
        self._save()

    def finish(self) -> dict[str, Path]:
        """Write labels, measurements and page for the finished structures.

        Returns the files by kind. Raises OutputError.
        """
        written = self._results.write(review=self.task.request.review)
        self._save(written)
        self.give_back()
        return written

    def summary(self, written: Mapping[str, Path]) -> dict[str, Any]:
        """All structures as plain values."""
        return self._results.summary(written)

    def thumbnail(self) -> str:
        """A thumbnail of the slice with the most marked pixels, after `finish` has written the labels."""
        return self._results.thumbnail()

    @property
    def notes(self) -> list[str]:
        """How overlaps were resolved, and which structures are empty, after `finish` has written the labels."""
        return self._results.notes

    def abandon(self) -> None:
        """Release the folder, and remove it if it was created for this run and is empty."""
        self.give_back()
        if self._made:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def give_back(self) -> None:
        """Allow others to write into the folder."""
        if self._claim is not None:
            self._claim.release()

    def _find_what_is_there(self) -> None:
        """The records of a resumed run. Raises InputError if they belong to another scan or question."""
        for part in self.parts:
            path = part.folder / TRAJECTORY_NAME
            if not path.is_file():
                continue
            record = Trajectory.load(path)
            self._check_same(part, record, path)
            if record.status == "ended":
                part.take(record)
            else:
                part.begun = record

    def _check_same(self, part: Part, record: Trajectory, path: Path) -> None:
        slices, remedy = self.task.slices, "Start a new run with another --out."
        if record.question != part.question:
            raise InputError(
                "the record belongs to another question", file=path, value=record.question, remedy=remedy
            )
        if isinstance(slices, Stack):
            record.check_stack(slices, path)
        elif not np.array_equal(record.picture.rgb, slices.picture(slices.first).rgb):
            raise InputError(
                "the record belongs to another picture",
                file=path,
                remedy="Give the scan that it was made with.",
            )

    def _task_of(self, part: Part) -> Task:
        """The first task's slices with this structure's question, in its own folder."""
        task, flat = self.task, self.task.slices.geometry(self.task.slices.first).plane == "picture"
        path = part.folder / TRAJECTORY_NAME if part.begun else None
        request = dataclasses.replace(
            task.request,
            question=part.question,
            out=part.folder,
            mask=None,
            mask_formats=(),
            resume=path,
            report=False,
        )
        changes: dict[str, Any] = {"given": self._given_of(part)}
        if part.begun:
            changes |= {"settings": None, "resumed": part.begun}
        masks = (part.folder / ("mask.png" if flat else "mask.nii.gz"),)
        return dataclasses.replace(
            task, request=request, question=part.question, folder=part.folder, masks=masks, **changes
        )

    def _given_of(self, part: Part) -> Given:
        return part.begun.given if part.begun else self.task.givens[self.parts.index(part)]

    def _keep_given(self, part: Part) -> None:
        """Write the record of a run that starts from a mask in advance, so that a resumed run finds the mask."""
        given, task = self._given_of(part), self.task
        if given.start or given.excluded:
            policy, segmenter = self._models or (None, None)
            run = Run(task.slices, part.question, policy, segmenter, task.settings, given=given)  # type: ignore[arg-type]
            part.folder.mkdir(parents=True, exist_ok=True)
            Trajectory.of(run, task.source).save(part.folder / TRAJECTORY_NAME)

    def _save(self, written: Mapping[str, Path] | None = None) -> None:
        self._results.save(self._created, asked_to_json(self.task.request), written)


def _parts(questions: Sequence[str], folder: Path) -> list[Part]:
    """A unique name and folder for each structure."""
    parts: list[Part] = []
    names: dict[str, int] = {}
    for number, question in enumerate(questions, 1):
        name = structures.name_for(question)
        names[name] = names.get(name, 0) + 1
        unique = name if names[name] == 1 else f"{name} {names[name]}"
        place = re.sub(r"[^\w-]+", "-", unique.lower()).strip("-") or "structure"
        if any(each.folder.name == place for each in parts):
            place += f"-{number}"
        parts.append(Part(number, unique, question, folder / place))
    return parts


def _label_paths(task: Task) -> tuple[Path, ...]:
    """The label files, corresponding to the mask files of a single structure."""
    own = [task.folder / f"mask{end}" for end in MASK_FORMATS.values()]
    return tuple(
        path.with_name(path.name.replace("mask", LABELS, 1)) if path in own else path for path in task.masks
    )
