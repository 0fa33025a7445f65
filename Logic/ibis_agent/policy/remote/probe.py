"""A test of a served policy: does it see pictures as sent, and are its clicks where they should be?

Servers may scale pictures, and some models answer in other coordinates. So before the first use the policy is asked
about synthetic pictures with a known answer: bright discs and crosses of several sizes; for a policy with a vocabulary
of organs, a simple cross-section of a body, also smaller and off centre. (Not mirrored: a policy may look for the liver
only on its side.) If clicks miss, or the server's token counts do not fit the picture, the policy is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ibis_agent.actions import Click
from ibis_agent.errors import ModelError, ReplyError
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.contract import IsCancelled
from ibis_agent.policy.observation import Situation, observe
from ibis_agent.policy.remote.picture import sent_size
from ibis_agent.policy.remote.remote import RemotePolicy

_NEAR = 0.75  # largest distance of a hit, as a fraction of the way from the centre to the edge
_MOST_MISSED = 0.2
# Accepted range of the token count over the expected one; cells may have 32 pixels instead of 28.
_TOKENS = 0.7, 1.15
_RESCALED = (
    "Configure the server not to resize pictures: llama.cpp --image-min-tokens 4; vLLM and SGLang min_pixels 3136 "
    "in the processor's settings."
)
_CARD = (
    "A policy with its own card needs it: --card in the terminal. In Slicer, servers have the published card."
)
_ORGANS = {
    "liver": (0.32, 0.45, 0.16, 0.17),
    "spleen": (0.76, 0.48, 0.07, 0.12),
    "spine": (0.5, 0.68, 0.06, 0.07),
}
# (size of the body, offset of its centre to the right and down), as fractions of the picture.
_PLACED = ((1.0, 0.0, 0.0), (0.8, -0.08, 0.06))


@dataclass(frozen=True, eq=False)
class Plate:
    """A synthetic picture and the position of its target.

    Attributes:
        rgb: (H, W, 3) uint8.
        question: asks for the target.
        x, y: the target's centre, 0 to 1.
        across, down: distance from there to its edge, horizontally and vertically, as fractions of the picture.
    """

    rgb: np.ndarray
    question: str
    x: float
    y: float
    across: float
    down: float

    def hit(self, click: tuple[float, float]) -> bool:
        return float(np.hypot((click[0] - self.x) / self.across, (click[1] - self.y) / self.down)) <= _NEAR


@dataclass(frozen=True)
class Findings:
    """The results of the probe.

    Attributes:
        wanted: (x, y) of each target.
        clicked: (x, y) of each click; None if there was none.
        hits: whether each click hit.
        tokens: additional tokens of a larger picture, (as counted by the server, as expected); None if the server does
            not count.
    """

    wanted: tuple[tuple[float, float], ...]
    clicked: tuple[tuple[float, float] | None, ...]
    hits: tuple[bool, ...]
    tokens: tuple[int, int] | None

    def check(self) -> None:
        """Raise ModelError, with the figures, if the clicks cannot be trusted."""
        if self.tokens is not None:
            seen, due = self.tokens
            if not _TOKENS[0] * due <= seen <= _TOKENS[1] * due:
                raise ModelError(
                    "the server resizes pictures, which would shift the clicks",
                    value=f"a picture with {due} more tokens was counted as having {seen} more",
                    remedy=_RESCALED,
                )
        if self.hits.count(False) > _MOST_MISSED * len(self.hits):
            raise ModelError(
                f"the clicks of the policy on the server miss {self.hits.count(False)} of {len(self.hits)} known "
                f"places",
                value=self.figures,
                remedy=f"{self.advice} Or choose another model.",
            )

    @property
    def figures(self) -> str:
        """The missed targets and the clicks, for people."""
        missed = [
            f"({x:.2f}, {y:.2f}) → " + ("no click" if click is None else f"({click[0]:.2f}, {click[1]:.2f})")
            for (x, y), click, hit in zip(self.wanted, self.clicked, self.hits, strict=True)
            if not hit
        ]
        return "; ".join(missed[:4]) or "none missed"

    @property
    def advice(self) -> str:
        """A likely reason for the misses: swapped axes, another scale, or a wrong card."""
        pairs = [(w, c) for w, c in zip(self.wanted, self.clicked, strict=True) if c is not None]
        if len(pairs) < 3:
            return _CARD
        wanted, clicked = (np.array(each) for each in zip(*pairs, strict=True))
        straight = float(np.abs(clicked - wanted).mean())
        if float(np.abs(clicked[:, ::-1] - wanted).mean()) < straight / 3:
            return "It swaps x and y."
        scale = float((clicked * wanted).sum() / (wanted**2).sum())
        if float(np.abs(clicked - scale * wanted).mean()) < straight / 2:
            return f"Its clicks are {scale:.2f} times too far from the upper left corner. {_RESCALED}"
        return _CARD

    @property
    def words(self) -> str:
        """A summary in one line."""
        counted = "their size on the server is unknown" if self.tokens is None else "pictures keep their size"
        return f"{self.hits.count(True)} of {len(self.hits)} known places hit; {counted}"


def probe(policy: RemotePolicy, cancelled: IsCancelled | None = None) -> Findings:
    """Ask about every plate. Raises Cancelled, and ModelError if the server does not answer."""
    made = plates(policy.card)
    clicked = [_click(policy, plate, cancelled) for plate in made]
    hits = tuple(click is not None and plate.hit(click) for plate, click in zip(made, clicked, strict=True))
    return Findings(
        tuple((plate.x, plate.y) for plate in made),
        tuple(clicked),
        hits,
        _counted(policy, made[0].question, cancelled),
    )


def plates(card: ModelCard) -> list[Plate]:
    """The synthetic pictures for a policy. Raises ModelError if its vocabulary has none of their organs."""
    if not card.vocabulary:
        places = [(0.2, 0.25), (0.8, 0.3), (0.3, 0.75), (0.72, 0.7), (0.5, 0.5), (0.12, 0.6)]
        sizes = [0.09, 0.06, 0.12, 0.08, 0.05, 0.1]
        shapes = [(336, 336), (252, 392), (448, 280), (336, 448), (512, 512), (224, 224)]
        return [
            _marked(shape, *place, size, "disc" if number % 2 else "cross")
            for number, (place, size, shape) in enumerate(zip(places, sizes, shapes, strict=True))
        ]
    organs = [name for name in _ORGANS if name in card.vocabulary]
    if not organs:
        raise ModelError(
            "there is no test picture for this policy's structures",
            value=", ".join(card.vocabulary)[:100],
            remedy="Use it on this machine.",
        )
    return [
        _body(shape, name, *placed)
        for shape in ((224, 224), (224, 280))
        for placed in _PLACED
        for name in organs
    ]


def _click(policy: RemotePolicy, plate: Plate, cancelled: IsCancelled | None) -> tuple[float, float] | None:
    turn = observe(policy.card, Situation(plate.rgb, plate.question))
    try:
        action = policy.card.speech.parse(policy.reply(turn, None, cancelled)).action
    except ReplyError:
        return None
    return (action.x, action.y) if isinstance(action, Click) and action.positive else None


def _counted(policy: RemotePolicy, question: str, cancelled: IsCancelled | None) -> tuple[int, int] | None:
    """See Findings.tokens."""
    counts, due = [], []
    for side in (224, 448):
        shown = np.zeros((side, side, 3), np.uint8)
        situation = Situation(shown, question)
        answer = policy.answer(observe(policy.card, situation), None, cancelled, whole=True)
        counts.append(answer.prompt_tokens)
        rows, columns = sent_size(side, side, policy.card)
        due.append(rows * columns // policy.card.cell**2)
    return (counts[1] - counts[0], due[1] - due[0]) if all(counts) and due[1] > due[0] else None


def _marked(shape: tuple[int, int], x: float, y: float, size: float, kind: str) -> Plate:
    """A white disc or cross on black."""
    height, width = shape
    rows, columns = np.mgrid[:height, :width]
    radius = size * min(shape)
    down, across = np.abs(rows + 0.5 - y * height), np.abs(columns + 0.5 - x * width)
    mark = np.hypot(down, across) < radius
    if kind == "cross":
        mark = (np.minimum(down, across) < radius / 3) & (np.maximum(down, across) < radius)
    rgb = np.repeat((mark * np.uint8(255))[:, :, None], 3, axis=2)
    return Plate(rgb, f"Segment the bright {kind}.", x, y, radius / width, radius / height)


def _body(shape: tuple[int, int], organ: str, size: float, right: float, down: float) -> Plate:
    """A simple cross-section of a body as in CT; its size and offset are fractions of the picture."""
    height, width = shape
    rows, columns = np.mgrid[:height, :width]
    y = ((rows + 0.5) / height - 0.5 - down) / size + 0.5
    x = ((columns + 0.5) / width - 0.5 - right) / size + 0.5
    grey = np.zeros(shape)

    def fill(at: Sequence[float], value: float) -> None:
        grey[((x - at[0]) / at[2]) ** 2 + ((y - at[1]) / at[3]) ** 2 < 1] = value

    fill((0.5, 0.5, 0.42, 0.32), 70)
    fill((0.5, 0.5, 0.39, 0.29), 110)
    for name, value in (("liver", 165), ("spleen", 170), ("spine", 250)):
        fill(_ORGANS[name], value)
    grey += np.random.default_rng(0).normal(0, 4, shape)
    rgb = np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    at_x, at_y, across, deep = _ORGANS[organ]
    at_x, at_y = 0.5 + size * (at_x - 0.5) + right, 0.5 + size * (at_y - 0.5) + down
    return Plate(rgb, f"Segment the {organ}", at_x, at_y, size * across, size * deep)
