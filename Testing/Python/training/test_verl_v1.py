"""verl's V1 path, as far as a CPU goes: the real worker, the real queue, a shared segmenter as a Ray actor, our
estimator, verl's loss, one step.

Runs in verl's own environment only (`make test-verl`). Not verl's: the engine that generates (a script speaks in its
place) and the FSDP worker that would take the step (torch's AdamW takes it).
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("verl") is None:
    pytest.skip("verl has an environment of its own: make test-verl", allow_module_level=True)

import torch
import torchvision_operators  # noqa: F401
from patient_ray import PATIENCE, begin

os.environ["VERL_USE_EXTERNAL_MODULES"] = "training.grpo.verl.advantage"
os.environ |= PATIENCE
ray = pytest.importorskip("ray")
tq = pytest.importorskip("transfer_queue")

from ibis_agent.actions import Click, Reply, Terminate, format_reply
from ibis_agent.mask.masks import encode_rle
from ibis_agent.policy.card import load_card
from ibis_agent.policy.qwen25.chat import Chat
from ibis_agent.policy.qwen25.source import demo_folder
from omegaconf import OmegaConf
from PIL import Image

from training.grpo.tasks import phantom_tasks
from training.grpo.verl import rows
from training.grpo.verl.shared_segmenter import shared

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path(rows.__file__).parent
ROLLOUTS = 4


def _config(tool: Path) -> Any:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(FOLDER), version_base=None):
        changes = [f"actor_rollout_ref.model.path={demo_folder()}", f"actor_rollout_ref.rollout.n={ROLLOUTS}"]
        changes += [
            f"actor_rollout_ref.rollout.agent.agent_loop_config_path={FOLDER / 'agent.yaml'}",
            f"actor_rollout_ref.rollout.multi_turn.tool_config_path={tool}",
        ]
        config = hydra.compose("grpo", overrides=changes)
    OmegaConf.set_struct(config, False)
    return config


class Scripted:
    """A generator's client: plays one list of replies an episode, and says which weights wrote them, as verl's does."""

    def __init__(self, chat: Chat, scripts: list[list[str]]) -> None:
        self.chat, self.scripts = chat, scripts
        self.at: dict[str, tuple[int, int]] = {}
        self.asked: list[dict[str, Any]] = []

    async def generate(self, request_id: str, **request: Any) -> Any:
        which, turn = self.at.setdefault(request_id, (len(self.at) % len(self.scripts), 0))
        self.at[request_id] = (which, turn + 1)
        self.asked.append(request)
        ids = self.chat.reply_tokens(self.scripts[which][turn])
        fields = {"min_global_steps": 3, "max_global_steps": 3}
        values = {"token_ids": ids, "log_probs": [-0.1] * len(ids), "extra_fields": fields}
        return type("Output", (), {**values, "stop_reason": "completed"})()


def test_the_v1_worker_plays_episodes_into_one_update(tmp_path: Path) -> None:
    from verl.protocol import DataProto
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
    from verl.utils import tensordict_utils as tu
    from verl.utils.config import omega_conf_to_dataclass

    question = phantom_tasks(1, seed=9).every(per_picture=1, seed=9, absent=0)[0]
    card, chat = load_card(demo_folder()), Chat.load(demo_folder(), load_card(demo_folder()))
    ys, xs = np.nonzero(question.truth)
    height, width = question.truth.shape
    middle = len(xs) // 2
    inside = Click((xs[middle] + 0.5) / width, (ys[middle] + 0.5) / height)
    good, beside, end = (
        format_reply(Reply("There it is.", inside)),
        format_reply(Reply("There it is.", Click(0.02, 0.02))),
        format_reply(Reply("It fits.", Terminate("It is segmented."))),
    )
    sample = {
        "id": "p/it",
        "question": question.text,
        "structure": question.structure,
        "height": height,
        "width": width,
        "target_rle": encode_rle(question.truth),
    }
    row = rows.row_of(sample, question.rgb, card, "train", 0, tmp_path, 4)
    row["raw_prompt"] = [
        {"role": "user", "content": [{"type": "image", "image": Image.fromarray(question.rgb)}]}
    ]
    tool = tmp_path / "tool.yaml"
    tool.write_text((FOLDER / "tool.yaml").read_text("utf-8").replace("actors: 0 ", "actors: 1 "), "utf-8")
    config = _config(tool)
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "Logic"), str(ROOT)])}
    begin(ray, num_cpus=16, runtime_env={"env_vars": paths})
    try:
        tq.init()
        client = Scripted(chat, [[good, end], [beside, end], [end], [good, good, end]])
        worker = AgentLoopWorkerTQ.__ray_metadata__.modified_class(config, client)
        batch = tu.get_tensordict(
            {
                key: [row[key]]
                for key in ("raw_prompt", "agent_name", "reward_model", "extra_info", "data_source")
            }
            | {"uid": ["question"], "index": [0]}
        )
        tu.assign_non_tensor_data(batch, "global_steps", 3)
        tq.kv_batch_put(
            keys=["question"], partition_id="train", tags=[{"is_prompt": True, "status": "pending"}]
        )

        async def play() -> None:
            await worker.generate_sequences(batch)
            await asyncio.gather(*worker.background_tasks)

        asyncio.run(play())
        listed = tq.kv_list("train")["train"]
        assert listed.pop("question")["status"] == "finished"
        # One output a turn, each with the version of the weights that wrote it.
        assert len(listed) == 2 + 2 + 1 + 3
        assert {tag["min_global_steps"] for tag in listed.values()} == {3}
        keys = sorted(listed)
        fields = [
            "uid",
            "response_mask",
            "rm_scores",
            "rollout_log_probs",
            "prompts",
            "responses",
            "multi_modal_inputs",
        ]
        found = tq.kv_batch_get(keys=keys, partition_id="train", select_fields=[*fields, "position_ids"])
        # The clicks of all episodes went to one shared segmenter.
        (counts,) = shared(None, "cpu", 1, 0.0).counts()
        assert counts["answered"] == 4 and counts["pictures"] == 1
    finally:
        ray.shutdown()

    first = {tuple(each["prompt_ids"]) for each in client.asked if each["prompt_ids"]}
    assert {tuple(each.tolist()) for each in found["prompts"]} == first
    grids = [each["image_grid_thw"] for each in found["multi_modal_inputs"]]
    for ids, grid in zip(
        found["prompts"], grids, strict=True
    ):  # as many tokens as verl's processor makes patches
        assert int((ids == chat.tokenizer.token_to_id("<|image_pad|>")).sum()) == int(grid.prod()) // 4

    data = DataProto(batch=found.select("response_mask", "rm_scores").to_padded_tensor())
    data.batch["token_level_rewards"] = data.batch["rm_scores"]
    data.non_tensor_batch["uid"] = np.array(["question"] * len(keys), dtype=object)
    told = compute_advantage_for_multi_trajectories(
        data, keys, config.algorithm.adv_estimator, config=config.algorithm
    )
    mask = data.batch["response_mask"].bool()
    values = [float(each[m][0]) for each, m in zip(told.batch["advantages"], mask, strict=True)]
    firsts = {key: value for key, value in zip(keys, values, strict=True) if key.endswith("_0")}
    # Rollouts of the same script are told by what they said: a good click, one beside, "not there".
    said = {key: chat.decode(ids.tolist()) for key, ids in zip(keys, found["responses"], strict=True)}
    by_kind = {
        name: [value for key, value in firsts.items() if text in said[key]]
        for name, text in (("good", f"({inside.x:.4f}"), ("beside", "(0.0200"), ("absent", "<answer>"))
    }
    assert min(by_kind["good"]) > max(by_kind["beside"]) > max(by_kind["absent"])

    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(str(demo_folder()), dtype=torch.float32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def scored(n: int) -> torch.Tensor:
        prompt, reply = found["prompts"][n], found["responses"][n]
        ids = torch.cat([prompt, reply])[None]
        pictures = {key: found["multi_modal_inputs"][n][key] for key in ("pixel_values", "image_grid_thw")}
        positions = found["position_ids"][n][1:, None]  # verl's own first row counts the text
        logits = model(input_ids=ids, position_ids=positions, **pictures).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits.float(), -1).gather(1, reply[:, None])[:, 0]

    with torch.no_grad():
        before = [scored(n) for n in range(len(keys))]
    new = torch.nn.utils.rnn.pad_sequence([scored(n) for n in range(len(keys))], batch_first=True)
    old = torch.nn.utils.rnn.pad_sequence(before, batch_first=True)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    loss, _ = get_policy_loss_fn("vanilla")(
        old, new, told.batch["advantages"][:, : new.shape[1]], mask[:, : new.shape[1]].float(), config=actor
    )
    loss.backward()
    optimiser.step()
    with torch.no_grad():
        rise = [float((scored(n) - before[n]).sum()) for n in range(len(keys))]
    assert np.dot(values, rise) > 0  # what was better than its state's usual became likelier
