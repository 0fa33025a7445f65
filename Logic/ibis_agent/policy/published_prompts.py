"""Import of the published prompts from a user's checkout of the published code; the text is not shipped."""

from __future__ import annotations

import ast
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from ibis_agent.errors import InputError

_LARGEST_SOURCE = 2**20
# The format of a published reply, as drafts for decoding. Wrong guesses cost nothing.
PUBLISHED_DRAFTS = (
    "<think>\nThe\n</think>\n<action>\nPositive Point (0.5000, 0.5000)\n</action>",
    "<think>\nThe\n</think>\n<action>\nNegative Point (0.5000, 0.5000)\n</action>",
    "<think>\nThe\n</think>\n<action>\nTerminate\n</action>\n<answer>\nThe\n</answer>",
)


def import_prompts(checkout: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Copy the published prompts from a checkout of the published code into a policy folder's card.

    The sources are parsed, never run. The rest of the card stays, but a card without drafts gets PUBLISHED_DRAFTS. The
    literal "<image>" that the published code adds to the text is left out.

    Returns the card's path. Raises InputError, ModelError, OutputError.
    """
    from ibis_agent.policy.card import WITHOUT_CARD, load_card, save_card

    card = load_card(folder)
    system, refine = _published_texts(Path(checkout))
    prompts = dataclasses.replace(card.prompts, system=system, first="{question}", refine=refine)
    note = "" if card.note == WITHOUT_CARD else card.note
    drafts = card.drafts or PUBLISHED_DRAFTS
    return save_card(dataclasses.replace(card, prompts=prompts, note=note, drafts=drafts), folder)


def _published_texts(checkout: Path) -> tuple[str, str]:
    """(system, refine) from the sources in `checkout`/infer, or in `checkout` itself."""
    if not checkout.is_dir():
        raise InputError(
            "is not a folder", file=checkout, remedy="Give the folder of the published code's checkout."
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
                remedy="Give a checkout of the published code: infer/multi_turn.py, infer/mllm_engine.py.",
            )
    assert system is not None and refine is not None
    return _without_marker(system), _without_marker(refine)


def _assigned_texts(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of every string assigned to a name in a source file; f-strings as templates."""
    try:
        if path.stat().st_size > _LARGEST_SOURCE:
            return
        tree = ast.parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", file=path, remedy="Check the checkout."
        ) from error
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise InputError(
            f"is not Python source: {error}", file=path, remedy="Restore the file from the repository."
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
    """The text of a string, a sum of strings, or an f-string that inserts only the question; otherwise None."""
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
