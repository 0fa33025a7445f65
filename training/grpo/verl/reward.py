"""verl's custom reward function: replays an episode's text and scores it as training.grpo does.

    reward.custom_reward_function.path=training/grpo/verl/reward.py reward.custom_reward_function.name=compute_score

The agent loop scores its episodes itself, as it has the masks. verl calls this for answers without a score, such as
those of another loop or of a recorded file.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ibis_agent.segmenter as segmenters
import numpy as np
from ibis_agent.errors import InputError
from ibis_agent.mask.masks import decode_rle
from ibis_agent.policy.language import LANGUAGES
from ibis_agent.run.episode import Limits
from ibis_agent.segmenter.contract import PictureSegmenter, Segmenter
from PIL import Image

from training.grpo.objective import score
from training.grpo.settings import RewardSettings
from training.grpo.verl.player import Player
from training.grpo.verl.settings import tool_settings
from training.rollouts.roller import Question

SEGMENTER, DEVICE = "IBIS_SEGMENTER", "IBIS_SEGMENTER_DEVICE"
"""Environment variables: the segmenter's checkpoint (default: the demo segmenter) and its device (cpu)."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    rewards: Mapping[str, Any] | None = None,
    **_: Any,
) -> dict[str, float]:
    """`score` and every reward, for verl.

    Args:
        solution_str: the text of the whole answer, of one or more turns.
        ground_truth: the true mask as run-length text; empty if the structure is absent.
        extra_info: of the row, see rows.
        rewards: fields of training.grpo.settings.RewardSettings, except those of credit, which verl does not use.

    Raises InputError if the row is incomplete or a reward is wrong.
    """
    info = extra_info or {}
    player = player_of(info, question_of(info, ground_truth))
    for reply in replies_in(solution_str, language_of(info)):
        if player.take_text(reply):
            break
    return scored(player, tool_settings({"rewards": rewards or {}}).rewards)


def scored(player: Player, settings: RewardSettings) -> dict[str, float]:
    """What verl is told of an episode: `score`, every reward, the final IoU, number of clicks, first-click hit."""
    rollout = player.rollout
    more = {"iou": rollout.iou, "clicks": float(len(rollout.prompts)), "hit": float(rollout.hit)}
    return {**score(rollout, settings), **more}


def question_of(info: Mapping[str, Any], ground_truth: str, picture: Any = None) -> Question:
    """A row's question, with the given picture or the one in the row's file. Raises InputError."""
    if not all(key in info for key in ("id", "height", "width", "picture", "question")):
        raise InputError(
            "the row lacks what an episode needs",
            value=sorted(info),
            remedy="Make it with training.grpo.verl.rows.",
        )
    truth = decode_rle(ground_truth, (int(info["height"]), int(info["width"])))
    rgb = read_picture(info["picture"] if picture is None else picture)
    return Question(str(info["id"]), rgb, str(info.get("structure") or ""), str(info["question"]), truth)


def language_of(info: Mapping[str, Any]) -> str:
    """The action language of the policy that a row was made for, see ibis_agent.policy.language."""
    return str(info.get("language") or "ibis")


def player_of(info: Mapping[str, Any], question: Question, shared: PictureSegmenter | None = None) -> Player:
    """A player for a row's episode, with the shared segmenter or else the process's own."""
    limits = Limits(max_turns=int(info.get("max_turns") or 8))
    return Player(question, shared or segmenter(), limits, LANGUAGES[language_of(info)])


def replies_in(text: str, language: str = "ibis") -> list[str]:
    """The replies in the text of a whole answer; the whole text if none has the language's form."""
    return [each.strip() for each in LANGUAGES[language].reply.findall(text)] or [text]


def read_picture(source: Any) -> np.ndarray:
    """(H, W, 3) uint8 from a path, the bytes of a picture file, or a PIL image. Raises InputError."""
    if isinstance(source, Image.Image):
        return np.asarray(source.convert("RGB"))
    if isinstance(source, (bytes, bytearray)):
        source = io.BytesIO(source)
    elif not Path(source).is_file():
        raise InputError("there is no such picture", file=source, remedy="Keep the pictures with the rows.")
    with Image.open(source) as image:
        return np.asarray(image.convert("RGB"))


@functools.cache
def segmenter() -> Segmenter:
    """This process's segmenter, chosen by the environment variables."""
    return segmenters.open(os.environ.get(SEGMENTER) or None, device=os.environ.get(DEVICE, "cpu"))
