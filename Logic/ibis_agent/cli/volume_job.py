"""One volume run from files to files: scan → VolumeRun → 3D mask and trajectory.

What can be wrong with what the person gave is found before a model is loaded or a file written. What is shown
at the terminal is in volume_session; what is done is in volume_run. Torch comes with `load`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ibis_agent.policy as policies
from ibis_agent import files
from ibis_agent.cli import request, runner
from ibis_agent.cli.request import MASK_FORMATS, Request, reading_lines
from ibis_agent.cli.runner import REVIEW_NAME, TRAJECTORY_NAME, load_policy, load_segmenter
from ibis_agent.errors import InputError
from ibis_agent.fields import Fields
from ibis_agent.mask import files as mask_files
from ibis_agent.mask import structures
from ibis_agent.policy.card import ModelCard
from ibis_agent.record.volume_record import VolumeTrajectory
from ibis_agent.run.episode import Limits
from ibis_agent.run.volume_actions import Follow, VolumeLimits
from ibis_agent.scan.frame import frame_from
from ibis_agent.scan.geometry import Orientation
from ibis_agent.scan.load import load_scan
from ibis_agent.scan.picture import check_window
from ibis_agent.scan.slices import Stack, stack_of

if TYPE_CHECKING:
    from ibis_agent.run.volume_run import VolumeRun
    from ibis_agent.segmenter.contract import Segmenter

_ROOM = 64 * 2**20


@dataclass(frozen=True)
class VolumeRequest:
    """What a person asks of a volume run, beside what every run is asked.

    Attributes:
        base: scan, question, plane, window, models, results.
        slices: first and last slice; None for all.
        roi: i0 i1 j0 j1 k0 k1, voxels of the file that masks must stay in; None for everywhere.
        looks: the most second looks; None for the usual.
        follow: "auto", "memory" or "carry", see volume_run.VolumeLimits.
    """

    base: Request
    slices: tuple[int, int] | None = None
    roi: tuple[int, ...] | None = None
    looks: int | None = None
    follow: Follow = "auto"


class VolumeJob:
    """A request that passed every check; then its run, and its files.

    Attributes:
        stack: the slices that are worked on.
        run: there after `load`.
        notes: what a person should know, such as that other weights are used than in the resumed run.
    """

    run: VolumeRun

    def __init__(self, asked: VolumeRequest) -> None:
        """Check everything, and make the folders. Raises IbisError, and leaves nothing behind then."""
        base = asked.base
        self.asked, self.notes = asked, list[str]()
        if base.index is not None:
            remedy = "Leave it out, or leave --volume out."
            raise InputError("--slice cannot be used with --volume", value=base.index, remedy=remedy)
        if asked.looks is not None and asked.looks < 0:
            raise InputError(
                "the second looks cannot be negative", value=asked.looks, remedy="0 is for none."
            )
        if base.scan is None:
            raise InputError("there is no scan", remedy="Name a volume or a DICOM folder.")
        self.policy_source = policies.find(base.policy)
        self.card: ModelCard = request._card(self.policy_source, base.history)
        self.resumed = None if base.resume is None else VolumeTrajectory.load(base.resume)
        self.limits = self._limits()
        self.question = request._question(base, self.card, self.resumed)
        self.stack: Stack = self._stack(base) if self.resumed is None else self._stack_again(self.resumed)
        name = base.scan.resolve().name
        self.source = name
        self.folder = request._folder(
            base, f"{request._stem(name)}-{self.stack.geometry(self.stack.first).plane}"
        )
        self.masks = self._mask_files(base)
        request._check_models(base, self.policy_source)
        self._made: list[Path] = []
        try:
            for folder in (self.folder, *(path.parent for path in self.masks)):
                self._made[:0] = runner._missing_folders(folder)
                files.check_writable_folder(folder, _ROOM)
        except BaseException:
            self.abandon()
            raise

    def description(self) -> list[tuple[str, str]]:
        """What is going to be done, as (term, words)."""
        stack, base = self.stack, self.asked.base
        geometry = stack.geometry(stack.first)
        where = f"{geometry.plane}, slices {stack.first} to {stack.last} of {len(stack)}"
        where += f", window {stack.window[0]:g} to {stack.window[1]:g}"
        if stack.roi is not None:
            where += ", inside the region of interest"
        return [
            ("scan", self.source),
            ("slices", where),
            ("question", self.question),
            ("policy", self.card.name + (f" ({self.card.note})" if self.card.note else "")),
            ("segmenter", base.segmenter.name if base.segmenter else "demo segmenter"),
            *reading_lines(stack.scan.told),
        ]

    def load(self) -> None:
        """Load the models and open the run. Raises ModelError."""
        segmenter: Any = load_segmenter(self.asked.base)
        policy = load_policy(self.policy_source, self.asked.base)
        policy.card = dataclasses.replace(policy.card, history=self.card.history)
        self.begin(policy, segmenter)

    def begin(self, policy: Any, segmenter: Segmenter) -> None:
        """Open the run with models that are loaded already."""
        from ibis_agent.run.volume_run import VolumeRun

        self.run = VolumeRun(self.stack, self.question, policy, segmenter, self.limits)
        if self.resumed is not None:
            self.run.go_to(self.resumed.volume_actions())
            self.notes += self.resumed.other_models(policy, segmenter)
            others = [str(each.number) for each in self.resumed.differences(self.run)]
            if others:
                self.notes.append(f"made anew, these slices are not as recorded: {', '.join(others)}")

    def finish(self) -> dict[str, Path]:
        """Write everything as it stands. Returns the files by what they are. Raises OutputError."""
        from ibis_agent.record.review import write_review
        from ibis_agent.record.volume_record import save_volume, volume_to_json

        written = {"trajectory": self.folder / TRAJECTORY_NAME}
        record = volume_to_json(self.run, self.source)
        runner.remove_stale_results(self.folder, self.asked.base.scan)
        save_volume(record, written["trajectory"])
        if self.asked.base.review:
            written["review"] = self.folder / REVIEW_NAME
            write_review(written["review"], record)
        volume, answer = self.run.volume(), self.run.answer or ""
        for path in self.masks:
            mask_files.write_mask(
                path,
                volume,
                self.stack.scan,
                name=structures.name_for(self.question, answer),
                colour=structures.colour_for(self.question, answer),
                structure=structures.structure_for(self.question, answer),
            )
            written["mask" if "mask" not in written else f"mask {path.suffix}"] = path
        return written

    def summary(self, written: dict[str, Path]) -> dict[str, Any]:
        """The whole run in plain values."""
        run = self.run
        return {
            "question": self.question,
            "answer": run.answer,
            "status": run.status,
            "reason": run.reason,
            "key_slice": run.key,
            "actions": len(run.actions),
            "second_looks": run.looks,
            "volume_ml": run.volume_ml,
            "areas_mm2": {str(index): each for index, each in run.areas_mm2().items() if each},
            "files": {what: str(path) for what, path in written.items()},
        }

    def abandon(self) -> None:
        """Remove the folders that were made for this run, if nothing is in them."""
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _limits(self) -> VolumeLimits:
        """Those asked for; where nothing was said, the resumed run's own, or the usual."""
        asked, base, limits = self.asked, self.asked.base, VolumeLimits()
        if self.resumed is not None:
            own = Fields(self.resumed.head, base.resume).inside("limits")
            turns, repeats = (own.inside("episode").whole(key, 1) for key in ("max_turns", "max_repeats"))
            follow: Any = own.choice("follow", ("memory", "carry"))
            limits = VolumeLimits(Limits(turns, repeats), own.whole("looks", 0), follow=follow)
        turns = limits.episode.max_turns if base.max_turns is None else base.max_turns
        repeats = limits.episode.max_repeats if base.max_repeats is None else base.max_repeats
        return VolumeLimits(
            Limits(turns, repeats),
            limits.looks if asked.looks is None else asked.looks,
            follow=limits.follow if asked.follow == "auto" else asked.follow,
        )

    def _stack(self, base: Request) -> Stack:
        assert base.scan is not None
        window = None if base.window is None else check_window(base.window)
        scan = load_scan(base.scan, series=base.series, modality=base.modality)
        if window is None and scan.window is None and scan.may_be_ct:
            window = self.card.window
        return stack_of(
            scan,
            base.plane or "axial",
            window,
            base.orientation or self.card.orientation,
            self.asked.slices,
            self.asked.roi,
            self.card.frame,
        )

    def _stack_again(self, recorded: VolumeTrajectory) -> Stack:
        """The slices that a recorded run was about, cut anew. Raises InputError where they are others now."""
        base, asked = self.asked.base, self.asked
        assert base.scan is not None
        for option, value in (
            ("--plane", base.plane),
            ("--window", base.window),
            ("--orientation", base.orientation),
            ("--range", asked.slices),
            ("--roi", asked.roi),
        ):
            if value is not None:
                remedy = "Leave it out: it is in the trajectory."
                raise InputError(
                    f"{option} cannot be chosen again for a run that is resumed",
                    file=base.resume,
                    value=value,
                    remedy=remedy,
                )
        volume = Fields(recorded.head, base.resume).inside("volume")
        orientation = volume.choice("orientation", [each.value for each in Orientation])
        if orientation != self.card.orientation.value:
            raise InputError(
                "the run to resume was made with pictures turned another way than this policy expects",
                file=base.resume,
                value=f"{orientation}, the policy wants {self.card.orientation.value}",
                remedy="Choose the policy that it was made with, or start a new run.",
            )
        stack = stack_of(
            load_scan(base.scan, series=base.series, modality=base.modality),
            "xyz"[volume.whole("axis", 0) % 3],
            [each.plain_number() for each in volume.list_of("window", 2)],
            orientation,
            (recorded.first, recorded.last),
            volume.value("roi"),
            frame_from(volume) or "slice",
        )
        recorded.check_stack(stack, base.resume)
        return stack

    def _mask_files(self, base: Request) -> tuple[Path, ...]:
        if base.mask is not None and base.mask_formats:
            remedy = "The end of --mask says the format; leave --mask-format out."
            raise InputError("the mask's format is said twice", value=base.mask_formats[0], remedy=remedy)
        formats = dict.fromkeys(base.mask_formats or ("nii.gz",))
        paths = [base.mask] if base.mask else [self.folder / f"mask{MASK_FORMATS[each]}" for each in formats]
        for path in paths:
            mask_files.check_mask_path(path, "volume")
        request._spare_the_scan(base, paths)
        return tuple(paths)
