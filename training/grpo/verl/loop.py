"""The agent's episode as verl's agent loop: the policy writes, the segmenter answers with a picture, and so on.

Registered by agent.yaml under the name that rows writes into the column `agent_name`. The tokens come from the
agent's own prompt builder and tokenizer, so that what is trained is what will be asked; verl's token builder is
not used. Only tokens that the policy wrote carry loss (`response_mask`).
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any
from uuid import uuid4

from ibis_agent.errors import InputError
from ibis_agent.policy.card import ModelCard, load_card
from ibis_agent.policy.qwen25.chat import Chat
from PIL import Image
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.utils.profiler import simple_timer

from training.grpo.verl.conversation import Conversation
from training.grpo.verl.rows import AGENT
from training.grpo.verl.tool import SegmentTool

TOOL = "segment_by_click"


class IbisAgentLoop(AgentLoopBase):
    """One episode a row. Needs the tool of tool.yaml and a policy's folder with a model card."""

    def __init__(self, *args: Any, tools: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        found = [each for each in getattr(tools, "tools", tools) or [] if isinstance(each, SegmentTool)]
        if not found:
            raise InputError(
                f"{AGENT} needs the segmenter's tool",
                remedy="Set actor_rollout_ref.rollout.multi_turn.tool_config_path=training/grpo/verl/tool.yaml.",
            )
        self.tool = found[0]
        self.room = int(self.rollout_config.response_length)
        self.chat, self.card = chat_of(str(self.config.actor_rollout_ref.model.path))

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """Play one episode; the row is one that training.grpo.verl.rows wrote."""
        info, truth = dict(row["extra_info"]), str(row["reward_model"]["ground_truth"])
        metrics: dict[str, Any] = {"generate_sequences": 0.0, "tool_calls": 0.0}
        name, _ = await self.tool.create(info=info, ground_truth=truth, picture=_picture(row["raw_prompt"]))
        try:
            player = self.tool.player(name)
            talk = await self._apart(Conversation, self.chat, self.card, player)
            request, over = uuid4().hex, False
            while not over:
                timing: dict[str, float] = {}
                with simple_timer("generate_sequences", timing):
                    output = await self.server_manager.generate(
                        request_id=request,
                        prompt_ids=talk.tokens,
                        sampling_params={**sampling_params, "max_tokens": self._left(talk)},
                        image_data=[Image.fromarray(each) for each in talk.pictures],
                    )
                said = talk.add_reply(list(output.token_ids), output.log_probs)
                with simple_timer("tool_calls", timing):
                    over = await self._apart(self.tool.take, name, said)
                for key, seconds in timing.items():
                    metrics[key] += seconds
                if not over:
                    length, pictures = len(talk.ids), len(talk.pictures)
                    await self._apart(talk.add_turn)
                    if self._left(talk) < 1:
                        # No room for another reply: the turn that nobody answers is taken back.
                        del talk.ids[length:], talk.mask[length:], talk.logprobs[length:]
                        del talk.pictures[pictures:]
                        break
            scores = self.tool.scores(name)
        finally:
            await self.tool.release(name)
        return AgentLoopOutput(
            prompt_ids=talk.prompt,
            response_ids=talk.ids[: self.room],
            response_mask=talk.mask[: self.room],
            response_logprobs=talk.logprobs[: self.room] if sampling_params.get("logprobs") else None,
            multi_modal_data={"images": [Image.fromarray(each) for each in talk.pictures]},
            reward_score=scores["score"],
            num_turns=2 * len(player.rollout.turns),
            metrics=metrics,
            extra_fields={
                "turn_scores": [turn.state.iou_after for turn in player.rollout.turns],
                "tool_rewards": [],
                "reward_extra_info": scores,
            },
        )

    def _left(self, talk: Conversation) -> int:
        return min(self.room - len(talk.ids), self.card.max_new_tokens)

    async def _apart(self, work: Any, *args: Any) -> Any:
        """In a thread: the other episodes of this worker wait for their tokens meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(None, functools.partial(work, *args))


@functools.cache
def chat_of(folder: str) -> tuple[Chat, ModelCard]:
    """Tokenizer, picture settings and card of a policy; once in a process."""
    card = load_card(folder)
    return Chat.load(folder, card), card


def _picture(messages: Any) -> Any:
    """The first picture in a row's messages, or None."""
    for message in messages:
        parts = message["content"] if not isinstance(message["content"], str) else []
        for part in parts:
            if part.get("type") == "image":
                return part.get("image") or part.get("bytes")
    return None
