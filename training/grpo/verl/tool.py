"""The segmenter as verl's tool: `create` opens an episode, `execute` does a click, `release` closes it.

The agent loop keeps one instance through an episode. The tool's schema (tool.yaml) is for verl's own loops and
for templates that list tools; this project's policies write clicks as text, not as tool calls.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from uuid import uuid4

from ibis_agent.errors import InputError
from ibis_agent.segmenter.contract import PictureSegmenter
from verl.tools.base_tool import BaseTool
from verl.tools.schemas import OpenAIFunctionToolSchema, ToolResponse

from training.grpo.verl.player import Player
from training.grpo.verl.reward import DEVICE, SEGMENTER, player_of, question_of, scored, segmenter
from training.grpo.verl.settings import tool_settings
from training.grpo.verl.shared_segmenter import shared
from training.rollouts.sampling import Sample

# The process's own segmenter handles one request at a time; more at once would not be faster.
_ONE = threading.Lock()


class SegmentTool(BaseTool):
    """config: "segmenter" (a checkpoint; empty for the demo segmenter), "device", "rewards" (RewardSettings), and
    the number of "actors" shared by all workers, each with its "share" of a GPU; 0: one segmenter per worker."""

    def __init__(self, config: dict[str, Any], tool_schema: OpenAIFunctionToolSchema) -> None:
        super().__init__(config, tool_schema)
        settings = tool_settings(config, "training/grpo/verl/tool.yaml")
        for value, variable in ((settings.segmenter, SEGMENTER), (settings.device, DEVICE)):
            if value and not os.environ.get(variable):
                os.environ[variable] = value
        self.rewards, self._actors, self._share = settings.rewards, settings.actors, settings.share
        self._players: dict[str, Player] = {}

    async def create(self, instance_id: str | None = None, **kwargs: Any) -> tuple[str, ToolResponse]:
        """Open an episode. kwargs: "info" and "ground_truth" of the row, "picture" as bytes, path or image."""
        name = instance_id or str(uuid4())
        question = question_of(kwargs["info"], kwargs["ground_truth"], kwargs.get("picture"))
        chosen = await asyncio.to_thread(self._segmenter)
        self._players[name] = player_of(kwargs["info"], question, chosen)
        return name, ToolResponse()

    def player(self, instance_id: str) -> Player:
        """The episode of an instance. Raises InputError."""
        if instance_id not in self._players:
            raise InputError("there is no such episode", value=instance_id, remedy="Create it first.")
        return self._players[instance_id]

    def take(self, instance_id: str, said: Sample) -> bool:
        """Do the action of a reply and return whether the episode is over. Blocks: call it from a thread."""
        with self._alone():
            return self.player(instance_id).take(said)

    async def execute(
        self, instance_id: str, parameters: dict[str, Any], **kwargs: Any
    ) -> tuple[ToolResponse, float, dict[str, Any]]:
        """A click as a call: {"x", "y", "positive"}. Returns the new state in words, the gain of IoU, and the IoU."""
        from ibis_agent.actions import Click, Reply

        try:
            click = Click(parameters["x"], parameters["y"], bool(parameters.get("positive", True)))
        except (KeyError, InputError) as error:
            return ToolResponse(text=f"Not a click: {error}"), 0.0, {}
        player = self.player(instance_id)
        said = player.rollout.language.format(Reply("A call.", click))
        over = await asyncio.to_thread(self._take_text, player, said)
        state = player.rollout.turns[-1].state
        text = "The episode is over." if over else "The mask has changed."
        return ToolResponse(text=text), state.iou_after - state.iou_before, {"iou": state.iou_after}

    def _take_text(self, player: Player, said: str) -> bool:
        with self._alone():
            return player.take_text(said)

    async def calc_reward(self, instance_id: str, **kwargs: Any) -> float:
        """The score of the whole episode."""
        return self.scores(instance_id)["score"]

    def scores(self, instance_id: str) -> dict[str, float]:
        """`score` and every reward."""
        return scored(self.player(instance_id), self.rewards)

    def _segmenter(self) -> PictureSegmenter:
        if not self._actors:
            with _ONE:  # several threads must not load it at once
                return segmenter()
        asked = os.environ.get(SEGMENTER) or None
        return shared(asked, os.environ.get(DEVICE, "cpu"), self._actors, self._share)

    def _alone(self) -> AbstractContextManager[Any]:
        """Shared segmenters take requests at the same time; the process's own does not."""
        return nullcontext() if self._actors else _ONE

    async def release(self, instance_id: str, **kwargs: Any) -> None:
        """Forget an episode."""
        self._players.pop(instance_id, None)
