"""The request for a run, and every check that needs no model.

A `Request` holds the person's options; `check` turns it into a complete and valid `Task`. Nothing is written here and
no model is loaded; torch is imported only to look into a checkpoint.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ibis_agent.policy as policies
import ibis_agent.segmenter as segmenters
from ibis_agent.cli.given_masks import MaskFiles
from ibis_agent.cli.mask_paths import mask_paths
from ibis_agent.errors import InputError
from ibis_agent.mask.structures import name_for
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.contract import PolicySource
from ibis_agent.policy.prompts import check_question
from ibis_agent.policy.vocabulary import check_asked
from ibis_agent.record.pictures import orientation_of
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.episode import Limits
from ibis_agent.run.given import Given
from ibis_agent.run.settings import Follow, Settings
from ibis_agent.run.unfamiliar import unfamiliar
from ibis_agent.scan import checks
from ibis_agent.scan.geometry import Orientation
from ibis_agent.scan.load import load_scan
from ibis_agent.scan.modality import UNNAMED
from ibis_agent.scan.picture import check_window, cut
from ibis_agent.scan.slices import Slices, Stack, one_slice, stack_of

_LONGEST_STEM = 200  # bytes; the limit for file names is 255, and plane, slice and number follow
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,2})?", re.ASCII)


@dataclass(frozen=True)
class Request:
    """The options of a run; see `ibis-agent run --help`. None means the default, or the card's value."""

    scan: Path | None = None
    question: str | None = None
    questions: tuple[str, ...] = ()  # several questions instead of `question`; see several
    plane: str | None = None
    index: int | None = None
    window: tuple[float, ...] | None = None
    orientation: Orientation | None = None
    series: str | None = None
    modality: str | None = None
    policy: Path | PolicySource | None = None
    segmenter: Path | str | None = None
    send_slices_to: str = ""
    segmenter_config: str | None = None
    first_box: bool = False
    device: str = "auto"
    precision: str = "auto"
    max_turns: int | None = None
    max_repeats: int | None = None
    history: int | None = None
    out: Path | None = None
    mask: Path | None = None
    mask_formats: tuple[str, ...] = ()
    resume: Path | None = None
    review: bool = True
    report: bool = False
    volume: bool = False
    slices: tuple[int, int] | None = None
    roi: tuple[int, ...] | None = None
    looks: int | None = None
    follow: Follow | None = None
    masks: MaskFiles = field(default_factory=MaskFiles)

    @property
    def inputs(self) -> list[Path]:
        """The files that the run reads, which its results must not overwrite."""
        named = [self.scan, *(path for _, path in self.masks.start), self.masks.exclude]
        return [path for path in named if path is not None]


@dataclass(frozen=True)
class Task:
    """A request that passed every check.

    Attributes:
        request: what was asked.
        policy: the source of the policy.
        card: the policy's card, with the request's history.
        question: the question.
        slices: the slices to work on: one, or a stack.
        source: the name of the scan.
        settings: None if a resumed run keeps its own.
        resumed: the run to continue.
        folder: for the results; if none was given, the first choice of its name.
        masks: the files for the mask.
        given: the masks to start from and to exclude; with several structures, those of the first one.
        givens: the same for each structure.
        caution: a warning before the run, such as that the policy was not trained on this kind of scan.
    """

    request: Request
    policy: PolicySource
    card: ModelCard
    question: str
    slices: Slices
    source: str
    settings: Settings | None
    resumed: Trajectory | None
    folder: Path
    masks: tuple[Path, ...]
    given: Given
    givens: tuple[Given, ...]
    caution: str = ""

    @property
    def named(self) -> bool:
        """Whether the person chose the folder."""
        return self.request.out is not None or self.request.resume is not None

    def moved(self, folder: Path) -> Task:
        """The same task with another folder for its results."""
        masks = (folder / each.name if each.parent == self.folder else each for each in self.masks)
        return dataclasses.replace(self, folder=folder, masks=tuple(masks))


def check(request: Request, asked: Sequence[str] = ()) -> Task:
    """Check a request. Raises InputError or ModelError naming file, value and remedy.

    asked: with several structures, all questions.
    """
    policy = policies.find(request.policy)
    card = _card(policy, request.history)
    _check_device(request)
    resumed = None if request.resume is None else Trajectory.load(request.resume)
    volume = request.volume if resumed is None else not resumed.alone
    _check_scope(request, volume, resumed)
    request.masks.check(len(asked) or 1)
    settings = _settings(request, volume, resumed)
    question = _question(request, card, resumed)
    names = [name_for(each) for each in asked or [question]]
    slices, source, stem, given = (_stack if volume else _slice)(request, card, resumed, names)
    caution = unfamiliar(card, slices)
    folder = _folder(request, stem)
    where = slices.geometry(slices.first)
    named, formats, inputs = request.mask, request.mask_formats, request.inputs
    paths = tuple(mask_paths(named, formats, folder, where, volume, request.scan, inputs))
    _check_models(request, policy)
    return Task(
        request,
        policy,
        card,
        question,
        slices,
        source,
        settings,
        resumed,
        folder,
        paths,
        given[0],
        given,
        caution,
    )


def check_options(request: Request) -> None:
    """Check what needs no scan, for a request about many. Raises InputError or ModelError."""
    _card(policies.find(request.policy), request.history)
    _check_device(request)
    _check_scope(request, request.volume, None)
    _settings(request, request.volume, None)
    if request.window is not None:
        check_window(request.window)


def _check_device(request: Request) -> None:
    if not _DEVICE.fullmatch(request.device):
        raise InputError(
            "there is no such device", value=request.device, remedy="Use auto, cpu, cuda or cuda:1."
        )


def reading_lines(notes: Iterable[str]) -> list[tuple[str, str]]:
    """Notes on how the scan was read, as lines of a run's description."""
    hint = " (--modality)"
    return [("reading", note + hint if note.startswith(UNNAMED) else note) for note in notes]


def _check_scope(request: Request, volume: bool, resumed: Trajectory | None) -> None:
    """Options for volumes are refused for a slice, and vice versa."""
    if request.volume and not volume:
        raise InputError(
            "the run to resume is about one slice", file=request.resume, remedy="Leave --volume out."
        )
    if volume and request.index is not None:
        remedy = "Leave it out, or leave --volume out."
        raise InputError("--slice cannot be used with --volume", value=request.index, remedy=remedy)
    said = {
        "--range": request.slices, "--roi": request.roi, "--looks": request.looks, "--follow": request.follow,
    }  # fmt: skip
    for option, value in said.items():
        if value is not None and not volume:
            raise InputError(f"{option} is for whole volumes", remedy="Add --volume, or leave it out.")
    if request.looks is not None and request.looks < 0:
        raise InputError(
            "the number of second looks cannot be negative", value=request.looks, remedy="Give 0 for none."
        )


def _card(policy: PolicySource, history: int | None) -> ModelCard:
    card = policy.card
    if history is None:
        return card
    if history < 0:
        remedy = "Give the number of earlier turns to keep, 0 for none."
        raise InputError("the history cannot be negative", value=history, remedy=remedy)
    return dataclasses.replace(card, history=history)


def _settings(request: Request, volume: bool, resumed: Trajectory | None) -> Settings | None:
    """The requested settings; None if none were given, so that a resumed run keeps its own."""
    said = {"max_turns": request.max_turns, "max_repeats": request.max_repeats}
    given = {name: value for name, value in said.items() if value is not None}
    if not volume:
        episode = Limits(**given) if given or resumed is None else None
        return None if episode is None else Settings(episode, follow="alone")
    follow = None if request.follow == "auto" else request.follow
    if resumed is not None and not given and request.looks is None and follow is None:
        return None
    own = Settings() if resumed is None else resumed.settings
    changes: dict[str, Any] = {"looks": request.looks, "follow": follow}
    if given:
        changes["episode"] = dataclasses.replace(own.episode or Limits(max_turns=6), **given)
    return dataclasses.replace(own, **{key: value for key, value in changes.items() if value is not None})


def _question(request: Request, card: ModelCard, resumed: Trajectory | None) -> str:
    if request.question is None and resumed is not None:
        try:
            return check_question(resumed.question, card.max_question, card.script)
        except InputError as error:
            remedy = f"{error.remedy} The question is in the trajectory: start a new run."
            raise InputError(error.problem, file=request.resume, value=error.value, remedy=remedy) from error
    if request.question is None:
        remedy = 'Give one, such as --prompt "Segment the liver".'
        raise InputError("there is no question", remedy=remedy)
    question = check_question(request.question) if resumed else check_asked(request.question, card)
    if resumed is not None and question != resumed.question:
        raise InputError(
            "the run to resume has a different question",
            file=request.resume,
            value=question,
            remedy="Leave --prompt out, or start a new run.",
        )
    return question


def _slice(
    request: Request, card: ModelCard, resumed: Trajectory | None, names: Sequence[str]
) -> tuple[Slices, str, str, tuple[Given, ...]]:
    """The single slice, the name of the scan, a name for the results folder, and the given masks."""
    if resumed is not None:
        return _resumed_slice(request, card, resumed), resumed.source, "", (resumed.given,)
    if request.scan is None:
        raise InputError("there is no scan", remedy="Name a picture, a volume or a DICOM folder.")
    window = None if request.window is None else check_window(request.window)
    scan = load_scan(request.scan, series=request.series, modality=request.modality)
    preferred = card.window if scan.may_be_ct else None
    orientation = request.orientation or card.orientation
    plane, masks = request.plane or "axial", request.masks.read(scan, names)
    index = request.index
    if index is None and scan.kind != "picture":
        index = masks.fullest(scan.geometry(plane, None, orientation))
    picture = cut(scan, plane, index, window, orientation, preferred, card.frame)
    name, geometry = request.scan.resolve().name, picture.geometry
    stem = _stem(request.scan) + (
        "" if geometry.plane == "picture" else f"-{geometry.plane}-{geometry.index}"
    )
    return one_slice(picture), name, stem, masks.on_slice(geometry)


def _resumed_slice(request: Request, card: ModelCard, resumed: Trajectory) -> Slices:
    """The recorded slice; options that would change it are refused."""
    _refuse_again(
        request,
        {
            "SCAN": request.scan,
            "--plane": request.plane,
            "--slice": request.index,
            "--window": request.window,
        },
        {"--orientation": request.orientation, "--series": request.series, "--modality": request.modality},
        {"--start-mask": request.masks.start or None, "--exclude": request.masks.exclude},
    )
    recorded = orientation_of(resumed.picture.geometry)
    if recorded is not None:
        _check_orientation(request, card, recorded)
    return resumed.slices


def _stack(
    request: Request, card: ModelCard, resumed: Trajectory | None, names: Sequence[str]
) -> tuple[Slices, str, str, tuple[Given, ...]]:
    """The slices of a volume, the name of the scan, a name for the results folder, and the given masks."""
    if request.scan is None and resumed is not None:
        raise InputError(
            "resuming a run over a volume needs the scan, which is not in the record",
            file=request.resume,
            value=resumed.source,
            remedy=f"Give it too: ibis-agent run SCAN --resume {request.resume}",
        )
    if request.scan is None:
        raise InputError("there is no scan", remedy="Name a volume or a DICOM folder.")
    name = request.scan.resolve().name
    if resumed is not None:
        return _recorded_stack(request, card, resumed), name, "", (resumed.given,)
    window = None if request.window is None else check_window(request.window)
    scan = load_scan(request.scan, series=request.series, modality=request.modality)
    if window is None and scan.window is None and scan.may_be_ct:
        window = card.window
    orientation = request.orientation or card.orientation
    stack = stack_of(
        scan, request.plane or "axial", window, orientation, request.slices, request.roi, card.frame
    )
    given = request.masks.read(scan, names).on_stack(stack)
    return stack, name, f"{_stem(request.scan)}-{stack.geometry(stack.first).plane}", given


def _recorded_stack(request: Request, card: ModelCard, resumed: Trajectory) -> Stack:
    """Read the slices of a recorded run again. Raises InputError if they have changed."""
    _refuse_again(
        request,
        {"--plane": request.plane, "--window": request.window, "--orientation": request.orientation},
        {"--range": request.slices, "--roi": request.roi},
        {"--start-mask": request.masks.start or None, "--exclude": request.masks.exclude},
    )
    assert request.scan is not None
    cut = resumed.cut
    if cut is None:
        remedy = "Use a record written by ibis-agent run."
        raise InputError("does not say how its volume was cut", file=request.resume, remedy=remedy)
    _check_orientation(request, card, str(resumed.orientation))
    scan, plane = load_scan(request.scan, series=request.series, modality=request.modality), "xyz"[cut.axis]
    limits = resumed.slices.first, resumed.slices.last
    stack = stack_of(scan, plane, cut.window, card.orientation, limits, cut.roi, cut.frame or "slice")
    resumed.check_stack(stack, request.resume)
    return stack


def _refuse_again(request: Request, *said: Mapping[str, object]) -> None:
    for option, value in (item for options in said for item in options.items()):
        if value is not None:
            raise InputError(
                f"{option} cannot be changed for a resumed run",
                file=request.resume,
                value=value,
                remedy="Leave it out: it is in the trajectory.",
            )


def _check_orientation(request: Request, card: ModelCard, recorded: str) -> None:
    if recorded != card.orientation.value:
        raise InputError(
            "the run to resume used a different image orientation from this policy's",
            file=request.resume,
            value=f"{recorded}; the policy needs {card.orientation.value}",
            remedy="Use the policy of the recorded run, or start a new run.",
        )


def _stem(scan: Path) -> str:
    """The scan's name without its extension, short enough to be part of a folder's name."""
    name = checks.stem(scan.resolve()).encode("utf-8", "replace")
    return name[:_LONGEST_STEM].decode("utf-8", "ignore") or "scan"


def _folder(request: Request, stem: str) -> Path:
    """The results folder: the requested one, that of the resumed run, or one under ibis-out."""
    if request.out is not None:
        return request.out
    if request.resume is not None:
        return request.resume.parent
    return Path("ibis-out") / stem


def _check_models(request: Request, policy: PolicySource) -> None:
    """Check both models' files without loading them. Raises ModelError."""
    policy.check()
    segmenters.find(request.segmenter, request.segmenter_config, request.send_slices_to).inspect()
