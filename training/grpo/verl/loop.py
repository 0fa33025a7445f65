"""The agent's episode as verl's agent loop: the policy replies, the segmenter updates the mask, and so on.

agent.yaml registers it under the name that rows writes into the column `agent_name`. Each turn is an output of its
own (verl's V1 trainer takes a list). Its prompt is token by token the agent's request in that state, so a policy is
trained as it is used, with or without history. A turn's return travels with it to the estimator, see coding.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any
from uuid import uuid4

import ibis_agent.policy as policies
import numpy as np
from ibis_agent.errors import InputError
from ibis_agent.policy.card import ModelCard, load_card
from ibis_agent.policy.messages import pictures_of
from ibis_agent.policy.training_contract import Chat
from PIL import Image
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.utils.profiler import simple_timer

from training.grpo.credit import returns
from training.grpo.verl.coding import LEAST, encoded, state_code
from training.grpo.verl.rows import AGENT
from training.grpo.verl.tool import SegmentTool
from training.rollouts.samples import build_request
from training.rollouts.sampling import Sample


class TurnOutput(AgentLoopOutput):
    """One turn. earned: its return; state: its state_code (see coding)."""

    earned: float = 0.0
    state: int = 0

    def as_dict(self) -> dict[str, Any]:
        """verl gives all outputs of an episode the score of the last; this puts the turn's own in its place."""
        output = super().as_dict()
        for name in ("earned", "state"):
            output.pop(name, None)
        output["rm_scores"] = encoded(self.earned, self.state, len(self.response_ids))
        return output


class IbisAgentLoop(AgentLoopBase):
    """One episode per row. Needs the tool of tool.yaml and a policy folder with a model card."""

    def __init__(self, *args: Any, tools: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        found = [each for each in getattr(tools, "tools", tools) or [] if isinstance(each, SegmentTool)]
        if not found:
            raise InputError(
                f"{AGENT} needs the segmenter's tool",
                remedy="Set actor_rollout_ref.rollout.multi_turn.tool_config_path=training/grpo/verl/tool.yaml.",
            )
        rollouts = int(self.rollout_config.n)
        if rollouts < LEAST:
            raise InputError(
                f"a question needs at least {LEAST} rollouts: fewer cannot be compared",
                value=f"actor_rollout_ref.rollout.n={rollouts}",
                remedy=f"Set actor_rollout_ref.rollout.n={LEAST} or more.",
            )
        self.tool = found[0]
        self.room = int(self.rollout_config.response_length)
        self.chat, self.card = chat_of(str(self.config.actor_rollout_ref.model.path))

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> list[AgentLoopOutput]:
        """Run one episode of a row written by training.grpo.verl.rows. Returns one output per turn."""
        info, truth = dict(row["extra_info"]), str(row["reward_model"]["ground_truth"])
        name, _ = await self.tool.create(info=info, ground_truth=truth, picture=_picture(row["raw_prompt"]))
        done: list[dict[str, Any]] = []
        most = min(self.room, self.card.max_new_tokens)
        try:
            rollout, request, over = self.tool.player(name).rollout, uuid4().hex, False
            while not over:
                turn = await self._in_thread(rollout.observed, self.card)
                asked = await self._in_thread(build_request, self.chat, self.card, turn)
                images = [Image.fromarray(np.asarray(each)) for each in pictures_of(self.card, turn)]
                timing: dict[str, float] = {}
                with simple_timer("generate_sequences", timing):
                    output = await self.server_manager.generate(
                        request_id=request,
                        prompt_ids=asked.ids.tolist(),
                        sampling_params={**sampling_params, "max_tokens": most},
                        image_data=images,
                    )
                ids = list(output.token_ids)[: self.room]
                chances = np.asarray(output.log_probs or [0.0] * len(ids), np.float32)[: len(ids)]
                said = Sample(self.chat.decode(_without_stop(ids, self.chat)), tuple(ids), chances)
                with simple_timer("tool_calls", timing):
                    over = await self._in_thread(self.tool.take, name, said)
                done.append({"prompt": asked.ids.tolist(), "images": images, "said": said, "timing": timing})
                # Such as the version of the weights; the V1 trainer reads these.
                done[-1]["fields"] = dict(getattr(output, "extra_fields", None) or {})
            scores = self.tool.scores(name)
        finally:
            await self.tool.release(name)
        earned = returns(rollout, self.tool.rewards)
        return [
            TurnOutput(
                prompt_ids=each["prompt"],
                response_ids=list(each["said"].ids),
                response_mask=[1] * len(each["said"].ids),
                response_logprobs=each["said"].logprobs.tolist() if sampling_params.get("logprobs") else None,
                multi_modal_data={"images": each["images"]},
                reward_score=scores["score"],
                num_turns=2 * len(done),
                metrics=each["timing"],
                extra_fields={
                    **each["fields"],
                    "turn_scores": [turn.state.iou_after for turn in rollout.turns],
                    "tool_rewards": [],
                    "reward_extra_info": scores,
                },
                earned=float(earned[n]),
                state=state_code(rollout, n),
            )
            for n, each in enumerate(done)
        ]

    async def _in_thread(self, work: Any, *args: Any) -> Any:
        """Run in a thread, so that the worker's other episodes go on meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(None, functools.partial(work, *args))


@functools.cache
def chat_of(folder: str) -> tuple[Chat, ModelCard]:
    """(tokenizer and image settings, card) of a policy; loaded once per process."""
    card = load_card(folder)
    return policies.trainable(folder).chat(card), card


def _without_stop(ids: list[int], chat: Chat) -> list[int]:
    return ids[:-1] if ids and ids[-1] in chat.stops else ids


def _picture(messages: Any) -> Any:
    """The first picture in a row's messages, or None."""
    for message in messages:
        parts = message["content"] if not isinstance(message["content"], str) else []
        for part in parts:
            if part.get("type") == "image":
                return part.get("image") or part.get("bytes")
    return None
