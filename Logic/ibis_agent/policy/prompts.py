"""The prompts of a policy, and the check of a question.

The published prompts are not shipped: published_prompts reads them from a user's checkout of the published code.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass

from ibis_agent.errors import InputError
from ibis_agent.tool_calls import TOOLS

PLACEHOLDERS = ("question", "number", "action", "problem")

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]{1,40})\}")


@dataclass(frozen=True)
class Prompts:
    """The texts of a conversation. Placeholders such as {question} are filled in; other braces stay.

    Attributes:
        system: the system message; if empty, that of Qwen's own template.
        first: the user's text with a picture without a mask. {question}.
        refine: the user's text with a picture with a mask. {question}, {number} of the turn.
        reject: appended after the person took back the last action. {action}.
        retry: appended after a reply that could not be parsed. {problem}.
    """

    system: str
    first: str
    refine: str
    reject: str
    retry: str


# For a large policy without its own prompts: the published format in our words.
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

# For a policy that writes tool calls and has no prompts of its own.
TOOL_PROMPTS = Prompts(
    system=(
        "You segment medical pictures for a radiologist; a segmentation tool turns your boxes and points into a mask. "
        "Each turn shows you the picture with the present mask in translucent green, or without green while nothing "
        "is segmented yet. Look first, say what you see, then call exactly one of these functions:\n<tools>\n"
        + "\n".join(json.dumps(tool) for tool in TOOLS)
        + "\n</tools>\nCoordinates are whole numbers from 0 at the left and upper edge to 999 at the right and lower "
        'edge. Write the call as\n<tool_call>\n{"name": <function>, "arguments": <object>}\n</tool_call>'
    ),
    first="{question}",
    refine=(
        'The green area is the mask so far. The question was: "{question}" Go on if the mask needs it; if it fits, '
        "call stop_action."
    ),
    reject="The person looking on took back your step {action}. Choose a different one.",
    retry="Your last reply could not be used: {problem} Call exactly one of the functions.",
)


def check_question(question: str, longest: int = 4_000, script: str = "") -> str:
    """The question without surrounding white space.

    longest: in characters. script: see ModelCard. Raises InputError if the question is empty, too long, in another
    script, or contains control characters or broken Unicode.
    """
    stripped = question.strip() if isinstance(question, str) else ""
    if not any(unicodedata.category(letter)[0] not in "ZC" for letter in stripped):
        raise InputError(
            "the question is empty",
            value=question,
            remedy='Ask for one structure, such as "Segment the liver".',
        )
    if len(stripped) > longest:
        raise InputError(
            f"the question is longer than the {longest} characters that this policy takes",
            value=f"{len(stripped)} characters",
            remedy="Shorten it.",
        )
    for letter in stripped:
        # Cs: a lone surrogate, which no tokenizer can encode.
        if unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\r\t":
            raise InputError(
                "the question contains a character that is not text", value=ascii(letter), remedy="Remove it."
            )
        # Below U+0100 there are signs such as µ, which belong to no script.
        foreign = letter.isalpha() and letter > "\u00ff"
        if script and foreign and not unicodedata.name(letter, "").startswith(script.upper()):
            raise InputError(
                "the question is in a script that this policy was not trained on",
                value=stripped,
                remedy="Ask in English, or choose a policy that reads the language.",
            )
    return stripped


def rejection_note(prompts: Prompts, action: str) -> str:
    """The note for a turn after the person took back `action` (text, see actions.format_prompt)."""
    return fill(prompts.reject, action=action)


def retry_note(prompts: Prompts, problem: str) -> str:
    """The note for a turn after a reply that could not be parsed because of `problem`."""
    return fill(prompts.retry, problem=problem)


def fill(template: str, **values: object) -> str:
    """Replace placeholders by `values`; braces inside the values stay."""
    return _PLACEHOLDER.sub(
        lambda found: str(values[found.group(1)]) if found.group(1) in values else found.group(), template
    )


def placeholders_in(template: str) -> list[str]:
    """The placeholders in a prompt, known and unknown."""
    return _PLACEHOLDER.findall(template)
