"""The turns of trajectory folders: checked before training, then read one by one during it.

A folder has `trajectories.jsonl`, one question about one picture with its turns per line. Every turn with loss is a
sample. Deliberate mistakes have no loss; the turns that recover from them do. training.rollouts.samples turns them
into tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ibis_agent.actions import Prompt
from ibis_agent.errors import IbisError, InputError
from ibis_agent.fields import read_json
from ibis_agent.mask.masks import decode_rle
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.messages import build_messages
from ibis_agent.policy.training_contract import Chat, Encoded
from ibis_agent.record.steps import click_to_json
from PIL import Image
from torch.utils.data import Dataset

from training.common.policy_folder import check_held, scans_learned
from training.rollouts.samples import add_reply, build_request, reply_of, turn_of
from training.trajectories.generate import NAME as FILE
from training.trajectories.turns import action_of, kind_of

# Small policies write clicked coordinates with two decimals.
_ROUNDED = 0.0051


@dataclass(frozen=True)
class Place:
    """Where a turn is: its folder, the offset of its line in bytes, and its number in the trajectory, from 0."""

    folder: Path
    offset: int
    turn: int


@dataclass
class Checked:
    """The result of checking the data.

    Attributes:
        places: of the turns to learn, in file order.
        held: of held-out turns; no scan is in both.
        refused: "id: reason" for everything unusable.
        questions: number of usable questions, including held-out ones.
        pictures: number of distinct pictures.
        mistakes: turns shown without loss.
        scans: digests of the scans of `places`, as far as the folders give them.
        sha256: of the files' contents.
    """

    places: list[Place] = field(default_factory=list)
    held: list[Place] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    questions: int = 0
    pictures: int = 0
    mistakes: int = 0
    scans: list[str] = field(default_factory=list)
    sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        """The report that is saved with a run."""
        return {
            "questions": self.questions,
            "pictures": self.pictures,
            "turns_learned": len(self.places),
            "turns_held_out": len(self.held),
            "turns_shown_without_loss": self.mistakes,
            "refused": self.refused,
            "sha256": self.sha256,
        }


def check_data(
    folders: Sequence[Path],
    base: Path,
    chat: Chat,
    card: ModelCard,
    held: float = 0.0,
    longest: int = 2**31,
    skip_bad: bool = True,
) -> Checked:
    """Check every line and every picture once.

    Args:
        base: the policy to train; what its earlier stages were trained on is not held out.
        held: share of the scans to hold out, with all questions about them.
        longest: most tokens of a sample.
        skip_bad: leave out and list unusable data; False raises at the first.

    Raises InputError for a folder without trajectories, for bad data that is not skipped, and if no turn is left.
    """
    found = Checked()
    seen: set[str] = set()
    digests: set[str] = set()
    pictures: dict[Path, tuple[int, int]] = {}
    groups: dict[str, list[Place]] = {}
    names: dict[str, str] = {}
    digest = hashlib.sha256()
    for folder in folders:
        for line, offset, text in _lines(folder):
            digest.update(text)
            where = f"{folder / FILE}, line {line}"
            try:
                record = _parsed(text)
                where = f"{record.get('id')} ({where})"
                _check_record(record, folder, chat, card, longest, pictures)
                if record["id"] in seen:
                    raise InputError("the id occurs twice", value=record["id"])
            except (IbisError, KeyError, TypeError, ValueError) as error:
                why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
                if not skip_bad:
                    raise InputError(
                        why.rstrip("."), file=where, remedy="Correct it, or set bad_data: skip."
                    ) from error
                found.refused.append(f"{where}: {why}")
                continue
            seen.add(record["id"])
            if record.get("scan"):
                digests.add(str(record["scan"]))
            group = groups.setdefault(key := scan_of(folder, record), [])
            names.setdefault(key, str(record["id"]))
            for number, turn in enumerate(record["turns"]):
                if turn.get("learn", True):
                    group.append(Place(folder, offset, number))
                else:
                    found.mistakes += 1
    aside = held_out(names, held, base)
    for name, places in groups.items():
        (found.held if name in aside else found.places).extend(places)
    found.scans = sorted(digests - aside)
    found.questions, found.pictures, found.sha256 = len(seen), len(pictures), digest.hexdigest()
    if not found.places:
        raise InputError(
            "no turn is left to learn from",
            file=folders[0],
            value=found.refused[0] if found.refused else f"{len(found.held)} turns held out",
            remedy="Make trajectories with training.trajectories, or hold out fewer.",
        )
    return found


def frame_mismatch(folder: Path, card: ModelCard) -> str:
    """A warning if a folder's pictures have another frame than a policy with this card sees; empty if not."""
    file = folder / "options.json"
    made = read_json(file) if file.is_file() else {}
    frame = ((made.get("settings") or {}).get("choice") or {}).get("frame")
    if frame in (None, card.frame):
        return ""
    return (
        f"{folder}: its pictures show the {frame}, but in use the policy sees the {card.frame}. "
        "Make them with --card and the policy's folder."
    )


class Turns(Dataset[Encoded]):
    """The samples at some places, read from the files when needed to save memory."""

    def __init__(self, places: Sequence[Place], chat: Chat, card: ModelCard) -> None:
        self.places = list(places)
        self._chat, self._card = chat, card

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Encoded:
        place = self.places[index]
        record = read_record(place)
        rgb = read_picture(place.folder / record["image"])
        turn = turn_of(self._card, rgb, record["question"], record["turns"], place.turn)
        request = build_request(self._chat, self._card, turn)
        return add_reply(self._chat, request, reply_of(self._card, record["turns"][place.turn]))


def read_record(place: Place) -> dict[str, Any]:
    """The trajectory of a place."""
    with open(place.folder / FILE, "rb") as stream:
        stream.seek(place.offset)
        return _parsed(stream.readline())


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 of a picture file. Raises InputError."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"the picture cannot be read: {error}", file=path, remedy="Make it again."
        ) from error


def _lines(folder: Path) -> Iterator[tuple[int, int, bytes]]:
    path = folder / FILE
    try:
        with open(path, "rb") as stream:
            offset = 0
            for number, text in enumerate(stream, 1):
                if text.strip():
                    yield number, offset, text
                offset += len(text)
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}",
            file=path,
            remedy="Give a folder made by training.trajectories.",
        ) from error


def _parsed(text: bytes) -> dict[str, Any]:
    record = json.loads(text)
    if not isinstance(record, dict):
        raise InputError("is not a JSON object", value=record)
    return record


def _check_record(
    record: Mapping[str, Any],
    folder: Path,
    chat: Chat,
    card: ModelCard,
    longest: int,
    pictures: dict[Path, tuple[int, int]],
) -> None:
    """Raises InputError, KeyError, TypeError or ValueError if the record cannot be learned from."""
    height, width = int(record["height"]), int(record["width"])
    path = folder / record["image"]
    if path not in pictures:
        pictures[path] = _picture_size(path)
    if pictures[path] != (height, width):
        raise InputError(
            "the picture has another size", file=path, value=f"{pictures[path]}, not {(height, width)}"
        )
    if not isinstance(record["id"], str) or not record["turns"]:
        raise InputError("the record needs an id and at least one turn")
    decode_rle(record.get("target_rle") or "", (height, width))
    blank = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (height, width, 3))
    for number, turn in enumerate(record["turns"]):
        reply = reply_of(card, turn)
        said = card.speech.parse(reply).action
        if turn["kind"] != kind_of(said):
            raise InputError(f"turn {number + 1} and its reply differ", value=turn["kind"])
        done = action_of(turn)
        if isinstance(said, Prompt) and isinstance(done, Prompt):
            there, here = list(click_to_json(said).values()), list(click_to_json(done).values())
            if not max(abs(a - b) for a, b in zip(there, here, strict=True)) <= _ROUNDED:
                raise InputError(
                    f"the {turn['kind']} of turn {number + 1} is not the one in its reply", value=here
                )
        elif number + 1 < len(record["turns"]):
            raise InputError("there are turns after termination", value=f"turn {number + 1}")
        # Neither the length nor the check of the question depends on the picture's content.
        asked = turn_of(card, blank, record["question"], record["turns"], number)
        messages = build_messages(card, asked)
        length = chat.length(messages, [(height, width)] * (len(asked.past) + 1))
        length += len(chat.reply_tokens(reply))
        if length > longest:
            raise InputError(
                f"turn {number + 1} is longer than the policy's context",
                value=f"{length} of {longest} tokens",
            )


def _picture_size(path: Path) -> tuple[int, int]:
    """(height, width), after checking the whole file. Raises InputError."""
    try:
        with Image.open(path) as image:
            size = image.height, image.width
            image.verify()
            return size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"the picture cannot be read: {error}", file=path) from error


def scan_of(folder: Path, record: Mapping[str, Any]) -> str:
    """A key for the scan of a question: its digest, or in older folders the number in the picture's name."""
    if record.get("scan"):
        return str(record["scan"])
    return f"{folder.name}/{Path(record['image']).stem.partition('-')[0]}"


def held_out(groups: Mapping[str, str], share: float, base: Path) -> set[str]:
    """The groups to hold out, chosen by a hash of their keys (see scan_of): at least one, never all, and none that the
    policy `base` was trained on before. groups: key → name. Raises InputError if it was trained on all.
    """
    if not share:
        return set()
    learned = set(scans_learned(base))
    free = [key for key in groups if key not in learned] or list(groups)
    count = min(max(round(share * len(groups)), 1), len(groups) - 1)
    aside = sorted(free, key=lambda key: hashlib.sha256(key.encode()).digest())[:count]
    remedy = "Add trajectories of other patients, or hold out nothing (held 0)."
    check_held(base, {key: groups[key] for key in aside}, remedy=remedy)
    return set(aside)
