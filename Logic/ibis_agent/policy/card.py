"""The model card: what a policy expects of its pictures and prompts, in `ibis_model.json` beside its weights.

A folder without a card gets the settings of the published system.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ibis_agent.errors import InputError, ModelError
from ibis_agent.files import write_json
from ibis_agent.policy.headers import read_json
from ibis_agent.policy.language import LANGUAGES, Language
from ibis_agent.policy.prompts import DEFAULT_PROMPTS, PLACEHOLDERS, TOOL_PROMPTS, Prompts, placeholders_in
from ibis_agent.scan.frame import KINDS, Kind
from ibis_agent.scan.geometry import Orientation

CARD_NAME = "ibis_model.json"
WITHOUT_CARD = (
    "It has no card, so this program's prompts are used; `ibis-agent import-prompts CHECKOUT FOLDER` adds the "
    "published ones."
)
_LARGEST_CARD = 4 * 2**20
_REPAIR = "Repair it, or remove it to get the published defaults."
_SCHEMA = "ibis-model/1"


@dataclass(frozen=True)
class ModelCard:
    """What a policy expects and how it is run; the defaults are those of the published system.

    Attributes:
        name: for people; by default the folder's name.
        orientation: the orientation of its pictures.
        overlay_colour, overlay_alpha: how the mask is painted over its pictures: RGB from 0 to 255, 0 to 1.
        language: how it writes actions: "ibis" (the published text) or "tool_calls" (see ibis_agent.tool_calls).
        prompts: the texts it is asked with.
        history: how many earlier turns, with their pictures, stay in the conversation.
        max_new_tokens: the longest reply.
        min_pixels, max_pixels: pictures are scaled into this range of pixels, keeping their aspect ratio; None for
            the limits of the folder's image processor.
        cell: side in pixels of the square that one picture token covers. Pictures are sent to servers in whole cells,
            so that the server does not scale them. Local policies use the folder's image processor instead.
        window: (black, white) in grey values, unless the user chose a window; None for the 1st and 99th percentile.
        frame: the part of a slice that policy and segmenter see: the whole "slice", or the patient's "body".
        max_question: longest question, in characters.
        script: the only script in which it reads questions, by its Unicode name ("LATIN"); empty for any. For small
            policies, which answer nonsense in other scripts.
        vocabulary: the structures it knows, with synonyms; empty for a policy that reads any question. See
            policy.vocabulary.
        modalities, planes, regions: what it was trained on, such as ("CT",), ("axial",) and ("trunk",); empty for
            anything.
        drafts: replies it often writes. They speed up decoding and never change a reply.
        generation_config: whether the repetition penalty of the folder's generation_config.json is applied, as in the
            published inference; otherwise decoding is plain greedy.
        note: shown wherever the model is named, such as "demonstration on phantoms".
        origin: how the weights were made.
    """

    name: str = ""
    orientation: Orientation = Orientation.UPSTREAM
    overlay_colour: tuple[int, int, int] = (34, 139, 34)
    overlay_alpha: float = 0.4
    language: str = "ibis"
    prompts: Prompts = field(default_factory=lambda: DEFAULT_PROMPTS)
    history: int = 0
    max_new_tokens: int = 512
    min_pixels: int | None = None
    max_pixels: int | None = None
    cell: int = 28
    window: tuple[float, float] | None = None
    frame: Kind = "slice"
    max_question: int = 4_000
    script: str = ""
    vocabulary: dict[str, tuple[str, ...]] = field(default_factory=dict)
    modalities: tuple[str, ...] = ()
    planes: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    drafts: tuple[str, ...] = ()
    generation_config: bool = True
    note: str = ""
    origin: str = ""

    @property
    def speech(self) -> Language:
        """Its action language."""
        return LANGUAGES[self.language]

    def outside(self, modality: str, plane: str, region: str = "") -> str:
        """A warning for a kind of scan that the policy was not trained on; otherwise "".

        modality: as in DICOM. region: one of scan.body_region's. Empty values are unknown and not checked.
        """
        odd = []
        if self.modalities and modality and modality not in self.modalities:
            odd.append(f"{modality} (trained on {', '.join(self.modalities)})")
        if self.planes and plane not in self.planes:
            odd.append(f"{plane} slices (trained on {', '.join(self.planes)} slices)")
        if self.regions and region and region not in self.regions:
            odd.append(f"the {region} (trained on the {', the '.join(self.regions)})")
        return f"{self.name} was not trained on {' or on '.join(odd)}: expect wrong answers." if odd else ""


def load_card(folder: str | os.PathLike[str]) -> ModelCard:
    """Read the card of a policy's folder; the published defaults if it has none.

    folder: the folder, or the card's file. Raises ModelError naming the file, the key and the remedy.
    """
    folder = Path(folder)
    if folder.is_file():
        return card_from_json(read_json(folder, _LARGEST_CARD, _REPAIR), folder)
    if not folder.is_dir():
        raise ModelError(
            "is not a policy folder", file=folder, remedy="Give the folder that contains config.json."
        )
    path = folder / CARD_NAME
    if not path.exists():
        return ModelCard(name=folder.resolve().name, note=WITHOUT_CARD)
    card = card_from_json(read_json(path, _LARGEST_CARD, _REPAIR), path)
    return card if card.name else dataclasses.replace(card, name=folder.resolve().name)


def save_card(card: ModelCard, folder: str | os.PathLike[str]) -> Path:
    """Write the card into a policy's folder. Returns its path. Raises OutputError."""
    path = Path(folder) / CARD_NAME
    write_json(path, card_to_json(card))
    return path


def card_to_json(card: ModelCard) -> dict[str, Any]:
    """The card as JSON values."""
    values = dataclasses.asdict(card)
    values["orientation"] = card.orientation.value
    return {"schema": _SCHEMA, **values}


def card_from_json(values: Mapping[str, Any], file: Path | None = None) -> ModelCard:
    """A card from JSON values. Missing keys get the published defaults.

    Raises ModelError for an unknown key, a wrong type or an invalid value.
    """
    given = dict(values)
    schema = given.pop("schema", _SCHEMA)
    if schema != _SCHEMA:
        raise ModelError(
            "this model card has a different version",
            file=file,
            value=schema,
            remedy=f'Expected "{_SCHEMA}".',
        )
    _refuse_unknown(given, ModelCard, "", file)
    texts = given.pop("prompts", None)
    base = TOOL_PROMPTS if given.get("language") == "tool_calls" else DEFAULT_PROMPTS
    given["prompts"] = base if texts is None else _prompts(texts, file, base)
    for key, read in _READERS.items():
        if key in given:
            given[key] = _checked(key, given[key], read, file)
    card = ModelCard(**given)
    if card.min_pixels and card.max_pixels and card.min_pixels > card.max_pixels:
        raise ModelError(
            "min_pixels is larger than max_pixels", file=file, value=card.min_pixels, remedy="Swap them."
        )
    return card


def _refuse_unknown(given: Mapping[str, Any], kind: type, prefix: str, file: Path | None) -> None:
    known = [each.name for each in dataclasses.fields(kind)]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            remedy = f'Did you mean "{prefix}{near[0]}"?' if near else f"Known keys: {', '.join(known)}."
            raise ModelError("unknown key in the model card", file=file, value=prefix + key, remedy=remedy)


def _prompts(texts: Any, file: Path | None, base: Prompts) -> Prompts:
    if not isinstance(texts, dict):
        raise ModelError(
            "prompts must be an object", file=file, value=texts, remedy='For example: {"first": "…"}.'
        )
    _refuse_unknown(texts, Prompts, "prompts.", file)
    for key, text in texts.items():
        if not isinstance(text, str):
            raise ModelError(
                f"prompts.{key} must be a string", file=file, value=text, remedy="Put it in quotes."
            )
        for word in placeholders_in(text):
            near = difflib.get_close_matches(word, PLACEHOLDERS, n=1)
            if word not in PLACEHOLDERS and near:
                raise ModelError(
                    f"unknown placeholder in prompts.{key}",
                    file=file,
                    value=word,
                    remedy=f"Did you mean {{{near[0]}}}?",
                )
    prompts = dataclasses.replace(base, **texts)
    for key in ("first", "refine"):
        if "question" not in placeholders_in(getattr(prompts, key)):
            raise ModelError(
                f"prompts.{key} does not contain the question",
                file=file,
                remedy='Put "{question}" where it belongs.',
            )
    return prompts


def _checked(key: str, value: Any, read: Callable[[Any], Any], file: Path | None) -> Any:
    try:
        return read(value)
    except (ValueError, TypeError, OverflowError, InputError) as error:
        raise ModelError(
            f"{key} must be {_EXPECTED[key]}", file=file, value=value, remedy="Correct it."
        ) from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    return read


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _language(value: Any) -> str:
    if value not in LANGUAGES:
        raise ValueError
    return str(value)


def _alpha(value: Any) -> float:
    if not 0 <= _number(value) <= 1:
        raise ValueError
    return float(value)


def _colour(value: Any) -> tuple[int, int, int]:
    red, green, blue = (_integer(0, 255)(part) for part in value)
    return red, green, blue


def _window(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = (_number(part) for part in value)
    if low >= high:
        raise ValueError
    return low, high


def _pixels(value: Any) -> int | None:
    return None if value is None else _integer(28 * 28, 2**26)(value)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(_text(each) for each in value)


def _vocabulary(value: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise TypeError
    return {_text(name): _texts(words) for name, words in value.items()}


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _frame(value: Any) -> Kind:
    if value not in KINDS:
        raise ValueError
    return value


_READERS: dict[str, Callable[[Any], Any]] = {
    "name": _text,
    "orientation": Orientation,
    "overlay_colour": _colour,
    "overlay_alpha": _alpha,
    "language": _language,
    "history": _integer(0, 1000),
    "max_new_tokens": _integer(1, 32768),
    "min_pixels": _pixels,
    "max_pixels": _pixels,
    "cell": _integer(4, 512),
    "window": _window,
    "frame": _frame,
    "max_question": _integer(1, 100_000),
    "script": _text,
    "vocabulary": _vocabulary,
    "modalities": _texts,
    "planes": _texts,
    "regions": _texts,
    "drafts": _texts,
    "generation_config": _flag,
    "note": _text,
    "origin": _text,
}
_EXPECTED = {
    "name": "a string",
    "orientation": " or ".join(f'"{each.value}"' for each in Orientation),
    "overlay_colour": "three integers from 0 to 255 (red, green, blue)",
    "overlay_alpha": "a number from 0 to 1",
    "language": " or ".join(f'"{each}"' for each in LANGUAGES),
    "history": "an integer from 0 to 1000 (earlier turns kept)",
    "max_new_tokens": "an integer from 1 to 32768",
    "min_pixels": "an integer of at least 784, or null",
    "max_pixels": "an integer of at least 784, or null",
    "cell": "an integer from 4 to 512 (pixels)",
    "window": "two numbers, the smaller first, or null",
    "frame": '"slice" or "body"',
    "max_question": "an integer from 1 to 100000 (characters)",
    "script": "a string",
    "vocabulary": 'an object of lists of strings, such as {"liver": ["hepatic parenchyma"]}',
    "modalities": "a list of strings",
    "planes": "a list of strings",
    "regions": "a list of strings",
    "drafts": "a list of strings",
    "generation_config": "true or false",
    "note": "a string",
    "origin": "a string",
}
