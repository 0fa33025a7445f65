"""What a person asks of a run, and whether it can be done: every check that needs no model.

A `Request` is what was said; `check` turns it into a `Task`, in which nothing is missing or doubtful any more.
Nothing is written here and no model is loaded; torch is imported to look into a checkpoint.
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
from ibis_agent.run.caveats import unfamiliar
from ibis_agent.run.episode import Limits
from ibis_agent.run.given import Given
from ibis_agent.run.settings import Follow, Settings
from ibis_agent.scan.geometry import Orientation
from ibis_agent.scan.load import load_scan
from ibis_agent.scan.modality import UNNAMED
from ibis_agent.scan.picture import Picture, check_window, cut
from ibis_agent.scan.slices import Slices, Stack, one_slice, stack_of

_LONGEST_STEM = 200  # bytes; file names end at 255, and plane, slice and number follow
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,2})?", re.ASCII)


@dataclass(frozen=True)
class Request:
    """What a person asks for; see `ibis-agent run --help` for each.

    None means: the default, from the policy's card where it has one.
    """

    scan: Path | None = None
    question: str | None = None
    questions: tuple[str, ...] = ()  # of several structures in place of `question`; see several
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


@dataclass(frozen=True)
class Task:
    """A request that passed every check.

    Attributes:
        request: what was asked.
        policy: where the policy comes from.
        card: the policy's, with the request's history in it.
        question: what is asked.
        slices: what is worked on: one, or a stack.
        source: the name of the scan.
        settings: None where a resumed run keeps its own.
        resumed: the run to go on from.
        folder: where the results go; where nobody named one, the first of the names that it may get.
        masks: the files that the mask goes to.
        given: the mask to begin from, and where none must be; of several structures that of the first.
        givens: of each of several structures.
        caution: a warning before it begins, such as that the policy was not trained on scans of this kind.
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
        """Whether a person chose the folder."""
        return self.request.out is not None or self.request.resume is not None

    def moved(self, folder: Path) -> Task:
        """The same with its results in another folder."""
        masks = (folder / each.name if each.parent == self.folder else each for each in self.masks)
        return dataclasses.replace(self, folder=folder, masks=tuple(masks))


def check(request: Request, asked: Sequence[str] = ()) -> Task:
    """asked: of several structures, all questions. Raises InputError or ModelError naming file, value and remedy."""
    policy = policies.find(request.policy)
    card = _card(policy, request.history)
    if not _DEVICE.fullmatch(request.device):
        raise InputError(
            "there is no such device", value=request.device, remedy="Use auto, cpu, cuda or cuda:1."
        )
    resumed = None if request.resume is None else Trajectory.load(request.resume)
    volume = request.volume if resumed is None else not resumed.alone
    _check_scope(request, volume, resumed)
    request.masks.check(len(asked) or 1)
    settings = _settings(request, volume, resumed)
    question = _question(request, card, resumed)
    names = [name_for(each) for each in asked or [question]]
    slices: Slices
    if volume:
        slices, source, stem, given = _stack(request, card, resumed, names)
    else:
        picture, source, stem, given = _picture(request, card, resumed, names)
        slices = one_slice(picture)
    caution = unfamiliar(card, slices)
    folder = _folder(request, stem)
    paths = tuple(mask_paths(request, folder, slices.geometry(slices.first), volume))
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


def reading_lines(notes: Iterable[str]) -> list[tuple[str, str]]:
    """What a person should know about how the scan was read, as lines of a run's description."""
    hint = " (--modality)"
    return [("reading", note + hint if note.startswith(UNNAMED) else note) for note in notes]


def _check_scope(request: Request, volume: bool, resumed: Trajectory | None) -> None:
    """What is said of volumes must not be said of a slice, and the other way round."""
    if request.volume and not volume:
        raise InputError(
            "the run to resume is of one slice", file=request.resume, remedy="Leave --volume out."
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
        raise InputError("the second looks cannot be negative", value=request.looks, remedy="0 is for none.")


def _card(policy: PolicySource, history: int | None) -> ModelCard:
    card = policy.card
    if history is None:
        return card
    if history < 0:
        remedy = "Give the number of earlier turns to keep, 0 for none."
        raise InputError("the history cannot be negative", value=history, remedy=remedy)
    return dataclasses.replace(card, history=history)


def _settings(request: Request, volume: bool, resumed: Trajectory | None) -> Settings | None:
    """Those asked for; None where nothing was said, and a resumed run keeps its own."""
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
        remedy = 'Ask with --prompt, such as --prompt "Segment the liver".'
        raise InputError("there is no question", remedy=remedy)
    question = check_question(request.question) if resumed else check_asked(request.question, card)
    if resumed is not None and question != resumed.question:
        raise InputError(
            "the run to resume was asked another question",
            file=request.resume,
            value=question,
            remedy="Leave --prompt out, or start a new run.",
        )
    return question


def _picture(
    request: Request, card: ModelCard, resumed: Trajectory | None, names: Sequence[str]
) -> tuple[Picture, str, str, tuple[Given, ...]]:
    """The picture, the name of the scan, a name for the folder of the results, and the masks given."""
    if resumed is not None:
        return _resumed_picture(request, card, resumed), resumed.source, "", (resumed.given,)
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
    name = request.scan.resolve().name
    geometry = picture.geometry
    stem = _stem(name) + ("" if geometry.plane == "picture" else f"-{geometry.plane}-{geometry.index}")
    return picture, name, stem, masks.on_slice(geometry)


def _resumed_picture(request: Request, card: ModelCard, resumed: Trajectory) -> Picture:
    """The recorded picture; whatever else the request says about it would be another run."""
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
    return resumed.picture


def _stack(
    request: Request, card: ModelCard, resumed: Trajectory | None, names: Sequence[str]
) -> tuple[Stack, str, str, tuple[Given, ...]]:
    """The slices of a volume, the name of the scan, a name for the folder of the results, and the masks given."""
    if request.scan is None and resumed is not None:
        raise InputError(
            "a run over a volume is resumed with its scan, which is not in the record",
            file=request.resume,
            value=resumed.source,
            remedy=f"Name it too: ibis-agent run SCAN --resume {request.resume}",
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
    return stack, name, f"{_stem(name)}-{stack.geometry(stack.first).plane}", given


def _recorded_stack(request: Request, card: ModelCard, resumed: Trajectory) -> Stack:
    """The slices that a recorded run was about, cut anew. Raises InputError where they are others now."""
    _refuse_again(
        request,
        {"--plane": request.plane, "--window": request.window, "--orientation": request.orientation},
        {"--range": request.slices, "--roi": request.roi},
        {"--start-mask": request.masks.start or None, "--exclude": request.masks.exclude},
    )
    assert request.scan is not None
    cut = resumed.cut
    if cut is None:
        remedy = "Use a record that ibis-agent run wrote."
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
                f"{option} cannot be chosen again for a run that is resumed",
                file=request.resume,
                value=value,
                remedy="Leave it out: it is in the trajectory.",
            )


def _check_orientation(request: Request, card: ModelCard, recorded: str) -> None:
    if recorded != card.orientation.value:
        raise InputError(
            "the run to resume was made with pictures turned another way than this policy expects",
            file=request.resume,
            value=f"{recorded}, the policy wants {card.orientation.value}",
            remedy="Choose the policy that it was made with, or start a new run.",
        )


def _stem(name: str) -> str:
    """The scan's name without its ending, short enough to be part of a folder's name."""
    for suffix in (".nii.gz", Path(name).suffix):
        if suffix and name.lower().endswith(suffix.lower()):
            name = name[: -len(suffix)]
            break
    return name.encode("utf-8", "replace")[:_LONGEST_STEM].decode("utf-8", "ignore") or "scan"


def _folder(request: Request, stem: str) -> Path:
    """Where the results go: the folder asked for, that of the resumed run, or one under ibis-out."""
    if request.out is not None:
        return request.out
    if request.resume is not None:
        return request.resume.parent
    return Path("ibis-out") / stem


def _check_models(request: Request, policy: PolicySource) -> None:
    """Look at both models' files without loading them. Raises ModelError."""
    policy.check()
    segmenters.find(request.segmenter, request.segmenter_config, request.send_slices_to).inspect()
