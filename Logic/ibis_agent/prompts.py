"""The texts that a policy is asked with, and the one place where they are put together.

Inference and training both call `build_messages`, so that they cannot drift apart. Turning messages into
tokens is in chat; which prompts a policy wants is in its model card. The published prompts are not shipped:
`import_prompts` reads them from a user's own checkout of the published code.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from .model_card import ModelCard
    from .policy import Turn

PLACEHOLDERS = ("question", "number", "action", "problem")

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]{1,40})\}")
_LARGEST_SOURCE = 2**20


@dataclass(frozen=True)
class Prompts:
    """The texts of a conversation. Known words in braces are filled in, everything else stays as it is.

    Attributes:
        system: the system message. Empty: the one that Qwen's own template puts there.
        first: the user's text with the bare picture. {question}.
        refine: the user's text with the mask painted over the picture. {question}, {number} of the turn.
        reject: added to the text after the person took back the last action. {action}.
        retry: added to the text after a reply that could not be read. {problem}.
    """

    system: str
    first: str
    refine: str
    reject: str
    retry: str


# For a large policy without prompts of its own: the published format in our words.
DEFAULT_PROMPTS = Prompts(
    system=(
        "You segment medical pictures for a radiologist by placing points; a segmentation tool turns your "
        "points into a mask. Each turn shows you the picture with the present mask in translucent green, or "
        "without green while nothing is segmented yet.\n"
        "Look first, and write what you see and why you choose your next step between <think> and </think>. "
        "Then give exactly one step between <action> and </action>:\n"
        "Positive Point (x, y) on a part of the structure in question that is not green yet;\n"
        "Negative Point (x, y) on a green part that does not belong to the structure;\n"
        "Terminate when the green area fits the structure, or when the structure is not in the picture.\n"
        "x runs from 0.0000 at the left edge to 1.0000 at the right, y from 0.0000 at the top to 1.0000 at "
        "the bottom; write four decimals, as in Positive Point (0.4210, 0.6375). After Terminate, answer the "
        "question in a sentence or two between <answer> and </answer>."
    ),
    first="{question}",
    refine=(
        'The green area is the mask so far. The question was: "{question}" If the mask needs a further '
        "point, place it; if it fits, use Terminate and answer."
    ),
    reject="The person looking on took back your step {action}. Choose a different one.",
    retry="Your last reply could not be used: {problem} Keep to the format: <think>, then one <action>.",
)

# For the small policies that `training` makes: every token costs them time, and they learn the format anyway.
DEMO_PROMPTS = Prompts(
    system="Segment by clicks.",
    first="{question}",
    refine="Turn {number}. The mask so far is green. {question}",
    reject="Not {action}.",
    retry="Reply again.",
)


@dataclass(frozen=True)
class Message:
    """One message: for the user's, the picture with the given index stands before the text."""

    role: Literal["system", "user", "assistant"]
    text: str
    picture: int | None = None


def build_messages(card: ModelCard, turn: Turn) -> list[Message]:
    """The conversation that asks for one turn, up to the user's last message.

    Pictures are numbered in the order of `pictures_of(card, turn)`. Raises InputError for a question that is
    empty, too long or not text.
    """
    question = check_question(turn.question, card.max_question, card.script)
    messages = [Message("system", card.prompts.system)] if card.prompts.system else []
    past = _kept(card, turn)
    for index, (_, reply) in enumerate(past):
        number = turn.number - len(past) + index
        messages.append(Message("user", _user_text(card.prompts, question, number, number > 1), index))
        messages.append(Message("assistant", reply))
    text = _user_text(card.prompts, question, turn.number, turn.has_mask or turn.number > 1)
    if turn.note:
        text += "\n" + turn.note
    messages.append(Message("user", text, len(past)))
    return messages


def pictures_of(card: ModelCard, turn: Turn) -> list[np.ndarray]:
    """The pictures that belong to `build_messages`, earlier turns first; (H, W, 3) uint8 each."""
    return [picture for picture, _ in _kept(card, turn)] + [turn.picture]


def check_question(question: str, longest: int = 4_000, script: str = "") -> str:
    """The question without white space around it.

    Any language and direction of writing will do unless `script` names the only one (see ModelCard). Raises
    InputError where it is empty, longer than `longest` characters, in another script, or holds what is not
    text (control characters, broken Unicode).
    """
    stripped = question.strip() if isinstance(question, str) else ""
    if not any(unicodedata.category(letter)[0] not in "ZC" for letter in stripped):
        raise InputError(
            "the question is empty",
            value=question,
            mend='Ask for one structure, such as "Segment the liver".',
        )
    if len(stripped) > longest:
        raise InputError(
            f"the question is longer than the {longest} characters that this policy takes",
            value=f"{len(stripped)} characters",
            mend="Shorten it.",
        )
    for letter in stripped:
        # Cs: half a surrogate pair, which no tokenizer can encode.
        if unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\r\t":
            raise InputError(
                "the question holds a character that is not text", value=ascii(letter), mend="Remove it."
            )
        # Below U+0100 stand signs such as µ, which belong to no script.
        foreign = letter.isalpha() and letter > "\u00ff"
        if script and foreign and not unicodedata.name(letter, "").startswith(script.upper()):
            raise InputError(
                "the question is in a script that this policy was not trained on",
                value=stripped,
                mend="Ask in English, or choose a policy that reads the language.",
            )
    return stripped


def rejection_note(prompts: Prompts, action: str) -> str:
    """What a turn's note says after the person took back `action` (as text, see actions.format_click)."""
    return fill(prompts.reject, action=action)


def retry_note(prompts: Prompts, problem: str) -> str:
    """What a turn's note says after a reply that could not be read because of `problem`."""
    return fill(prompts.retry, problem=problem)


def fill(template: str, **values: object) -> str:
    """Fill in {question} and its like, once: braces inside the values stay as they are."""
    return _PLACEHOLDER.sub(
        lambda found: str(values[found.group(1)]) if found.group(1) in values else found.group(), template
    )


def placeholders_in(template: str) -> list[str]:
    """The words in braces of a prompt, known and unknown."""
    return _PLACEHOLDER.findall(template)


def import_prompts(checkout: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Read the published prompts from a checkout of the published code into the card of a policy's folder.

    The sources are parsed, never run. The rest of an existing card stays. The published code also sends its
    picture marker as literal text, in addition to the picture; that is left out here.

    Returns the card's file. Raises InputError, ModelError, OutputError.
    """
    from .model_card import load_card, save_card

    card = load_card(folder)
    system, refine = _published_texts(Path(checkout))
    prompts = dataclasses.replace(card.prompts, system=system, first="{question}", refine=refine)
    return save_card(dataclasses.replace(card, prompts=prompts), folder)


def _user_text(prompts: Prompts, question: str, number: int, refining: bool) -> str:
    return fill(prompts.refine if refining else prompts.first, question=question, number=number)


def _kept(card: ModelCard, turn: Turn) -> tuple[tuple[np.ndarray, str], ...]:
    return turn.past[-card.history :] if card.history else ()


def _published_texts(checkout: Path) -> tuple[str, str]:
    """(system, refine) from the sources in `checkout`/infer, or in `checkout` itself."""
    if not checkout.is_dir():
        raise InputError(
            "is not a folder", file=checkout, mend="Give the folder of the published code's checkout."
        )
    place = checkout / "infer" if (checkout / "infer").is_dir() else checkout
    system = refine = None
    for path in sorted(place.glob("*.py")):
        for name, text in _assigned_texts(path):
            if name.lower() == "system_prompt" and text.strip():
                system = system or text
            elif name.lower().startswith("refine") and "{question}" in text:
                refine = refine or text
    for found, name, what in (
        (system, "SYSTEM_PROMPT", "the system prompt"),
        (refine, "refinement_prompt", "the refinement prompt with the user's question in it"),
    ):
        if found is None:
            raise InputError(
                f"{what} was not found: no text is assigned to {name} in its Python files",
                file=place,
                mend="Give a checkout of the published code: infer/multi_turn.py, infer/mllm_engine.py.",
            )
    assert system is not None and refine is not None
    return _without_marker(system), _without_marker(refine)


def _assigned_texts(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of every text that is assigned to a name anywhere in a source; f-strings as templates."""
    try:
        if path.stat().st_size > _LARGEST_SOURCE:
            return
        tree = ast.parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", file=path, mend="Check the checkout."
        ) from error
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise InputError(
            f"is not Python source: {error}", file=path, mend="Check out the file again."
        ) from error
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            name = target.id if isinstance(target, ast.Name) else getattr(target, "attr", "")
            text = _template(node.value)  # type: ignore[attr-defined]
            if name and text is not None:
                yield name, text


def _template(node: ast.expr | None) -> str | None:
    """A text, a sum of texts, or an f-string that inserts nothing but the user's question; else None."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _template(node.left), _template(node.right)
        return None if left is None or right is None else left + right
    if isinstance(node, ast.JoinedStr):
        parts = [_template(part) for part in node.values]
        return None if None in parts else "".join(filter(None, parts))
    if isinstance(node, ast.FormattedValue) and node.format_spec is None:
        inserted = getattr(node.value, "id", getattr(node.value, "attr", ""))
        if any(word in inserted.lower() for word in ("prompt", "question", "query")):
            return "{question}"
    return None


def _without_marker(text: str) -> str:
    return text.replace("<image>", "").strip()
