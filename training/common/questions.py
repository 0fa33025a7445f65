"""Wordings of questions, and the templated replies of the demo policy.

The sentences were written for this project. A question asks for one structure; a reply is the text of one turn,
written by the formatter of the language that inference parses.
"""

from __future__ import annotations

import numpy as np
from ibis_agent.actions import Click, Reply, Terminate, format_reply

QUESTIONS = (
    "Segment the {n}",
    "Segment the {n}",
    "Please segment the {n}",
    "Outline the {n}",
    "Please outline the {n}",
    "Mark the {n}",
    "Delineate the {n}",
    "Where is the {n}?",
    "Show me the {n}",
    "Find the {n}",
    "Find and segment the {n}",
    "Can you segment the {n}?",
    "I need a mask of the {n}",
    "Contour the {n} in this slice",
    "Segment the {n} in this picture",
    "Is the {n} visible? Segment it",
    "Is there a {n}? Segment it",
    "{n}",
)
WORDS = {
    "liver": ("liver", "liver", "liver", "hepatic parenchyma"),
    "spleen": ("spleen", "spleen", "spleen", "splenic tissue"),
    "left kidney": ("left kidney", "left kidney", "kidney on the left", "left renal parenchyma"),
    "right kidney": ("right kidney", "right kidney", "kidney on the right", "right renal parenchyma"),
    "aorta": ("aorta", "aorta", "abdominal aorta"),
    "spine": ("spine", "spine", "vertebra", "vertebral column", "vertebral body"),
    "stomach": ("stomach", "stomach", "gastric cavity"),
    "lesion": ("lesion", "lesion", "tumour", "tumor", "mass", "focal lesion"),
}
# The structures in the demo policy's card, and other words for them; see ibis_agent.policy.vocabulary.
VOCABULARY = {
    "liver": ["hepatic parenchyma", "liver parenchyma", "Leber", "hígado"],
    "spleen": ["splenic tissue", "splenic parenchyma", "Milz", "bazo"],
    "left kidney": [
        "LK",
        "L kidney",
        "lt kidney",
        "left renal parenchyma",
        "kidney on left",
        "linke Niere",
        "riñón izquierdo",
    ],
    "right kidney": [
        "RK",
        "R kidney",
        "rt kidney",
        "right renal parenchyma",
        "kidney on right",
        "rechte Niere",
        "riñón derecho",
    ],
    "aorta": ["abdominal aorta", "Bauchaorta"],
    "spine": [
        "vertebral column",
        "vertebra",
        "vertebrae",
        "vertebral body",
        "Wirbelsäule",
        "columna vertebral",
    ],
    "stomach": ["gastric cavity", "Magen", "estómago"],
    "lesion": ["focal lesion", "focal liver lesion", "Läsion", "lesión"],
}
NEVER_PRESENT = (
    "urinary bladder",
    "prostate",
    "uterus",
    "brain",
    "heart",
    "thyroid",
    "femur",
    "trachea",
    "knee",
    "eye",
    "ovary",
    "skull",
)
# The thinking and the answer on termination, by outcome: the structure is absent, well segmented, or only in part.
THOUGHTS = {
    "absent": "I see no {n} here.",
    "done": "The mask covers the {n} well.",
    "part": "The mask covers part of the {n}.",
}
ANSWERS = {
    "absent": "There is no {n} in this picture.",
    "done": "The {n} is segmented.",
    "part": "The {n} is segmented in part.",
}
HORIZONTAL = ("left", "centre", "right")
VERTICAL = ("upper", "middle", "lower")


def question(name: str, rng: np.random.Generator) -> str:
    """A random wording of a question for `name`: a key of WORDS, or any other structure."""
    words = WORDS.get(name, (name,))
    text = str(rng.choice(QUESTIONS)).format(n=rng.choice(words))
    if name == "lesion" and rng.random() < 0.3:
        text = f"Is there a {'lesion' if rng.random() < 0.5 else 'liver lesion'}? Segment it"
    if rng.random() < 0.4 and not text.endswith("?"):
        text += "."
    style = rng.random()
    return text.lower() if style < 0.25 else text


def zone(x: float, y: float) -> str:
    """The ninth of the picture that contains (x, y), in words, such as "upper left"."""
    across, down = HORIZONTAL[min(2, int(x * 3))], VERTICAL[min(2, int(y * 3))]
    return "centre" if (across, down) == ("centre", "middle") else f"{down} {across}"


def _rounded(click: Click) -> Click:
    """The click with two decimals; a small policy learns them several times faster than four."""
    return Click(min(0.99, round(click.x, 2)), min(0.99, round(click.y, 2)), click.positive)


def click_thought(name: str, click: Click, first: bool) -> str:
    """The thinking before a click: the first one, or a correction of the mask."""
    where = zone(click.x, click.y)
    if first:
        return f"The {name} is in the {where}."
    if click.positive:
        return f"The mask misses part of the {name} in the {where}."
    return f"The mask covers tissue that is not {name} in the {where}."


def first_reply(name: str, click: Click) -> str:
    click = _rounded(click)
    return format_reply(Reply(click_thought(name, click, True), click))


def correction_reply(name: str, click: Click) -> str:
    click = _rounded(click)
    return format_reply(Reply(click_thought(name, click, False), click))


def absent_reply(name: str) -> str:
    return _last_reply(name, "absent")


def done_reply(name: str) -> str:
    return _last_reply(name, "done")


def _last_reply(name: str, outcome: str) -> str:
    return format_reply(Reply(THOUGHTS[outcome].format(n=name), Terminate(ANSWERS[outcome].format(n=name))))


def corpus(rng: np.random.Generator, count: int = 4000) -> list[str]:
    """Texts to train a tokenizer on: questions and replies of every kind."""
    texts = []
    names = [*WORDS, *NEVER_PRESENT]
    for _ in range(count):
        name = str(rng.choice(names))
        click = Click(float(rng.random()), float(rng.random()), bool(rng.random() < 0.6))
        texts += [
            question(name, rng),
            first_reply(name, click),
            correction_reply(name, click),
            done_reply(name),
            absent_reply(name),
        ]
    return texts
