"""What verl is given: rows, reward, what a turn earned; and with verl installed, its own loaders and loop.

Not run here, for want of a GPU: generation by vLLM, verl's actor and its whole training.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")
pytest.importorskip("sam2")

from ibis_agent.actions import Click, Reply, Terminate, format_reply
from ibis_agent.errors import InputError
from ibis_agent.mask.masks import box_around, decode_rle, encode_rle
from ibis_agent.policy.card import load_card
from ibis_agent.policy.language import LANGUAGES
from ibis_agent.policy.qwen25.chat import Chat
from ibis_agent.policy.qwen25.source import demo_folder
from ibis_agent.run.episode import Limits
from phantom_trajectories import make_trajectories
from PIL import Image

from training.grpo import credit
from training.grpo.settings import RewardSettings
from training.grpo.tasks import phantom_tasks
from training.grpo.verl import coding, reward, rows
from training.grpo.verl.player import Player
from training.grpo.verl.settings import tool_settings
from training.rollouts.roller import Question

if importlib.util.find_spec("verl") is not None:
    import torchvision_operators  # noqa: F401
FOLDER = Path(rows.__file__).parent
verl = pytest.mark.skipif(
    importlib.util.find_spec("verl") is None, reason="verl has an environment of its own"
)
END = format_reply(Reply("It fits.", Terminate("The liver is segmented.")))


@pytest.fixture(scope="module")
def question() -> Question:
    return phantom_tasks(1, seed=9).every(per_picture=1, seed=9, absent=0)[0]


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load(demo_folder(), load_card(demo_folder()))


@pytest.fixture
def player(question: Question) -> Player:
    return Player(question, reward.segmenter(), Limits(max_turns=4))


@pytest.fixture
def row(question: Question, tmp_path: Path) -> dict[str, Any]:
    height, width = question.truth.shape
    sample = {
        "id": "p/liver",
        "question": question.text,
        "structure": question.structure,
        "height": height,
        "width": width,
        "target_rle": encode_rle(question.truth),
    }
    return rows.row_of(sample, question.rgb, load_card(demo_folder()), "train", 0, tmp_path, 4)


def _click(question: Question, positive: bool = True) -> str:
    ys, xs = np.nonzero(question.truth)
    middle = len(xs) // 2
    height, width = question.truth.shape
    point = Click((xs[middle] + 0.5) / width, (ys[middle] + 0.5) / height, positive)
    return format_reply(Reply("There it is.", point))


def _rollout(question: Question, *replies: str) -> Any:
    player = Player(question, reward.segmenter(), Limits(max_turns=4))
    for text in replies:
        player.take_text(text)
    return player.rollout


def test_a_turns_return_and_state_come_through_its_token_rewards_unharmed(question: Question) -> None:
    rollout = _rollout(question, _click(question), END)
    states = [coding.state_code(rollout, turn) for turn in range(2)]
    assert 0 < min(states) <= max(states) <= 2**24 and states[0] != states[1]
    for earned, state, length in (
        (0.7311, states[0], 40),
        (-0.5, states[1], 2),
        (0.0, 2**24, 7),
        (1.0, 1, 3),
    ):
        told = coding.encoded(earned, state, length)
        assert float(told.sum()) == pytest.approx(earned, abs=1e-7)  # what verl's metrics see
        padded = torch.zeros(1, 50)
        padded[0, :length] = told
        mask = torch.zeros(1, 50)
        mask[0, :length] = 1
        found = coding.decoded(padded, mask)
        assert float(found[0][0]) == pytest.approx(earned) and int(found[1][0]) == state


def test_verls_advantages_are_the_laptops(question: Question) -> None:
    settings = RewardSettings(
        turn={"gain": 1.0, "ending": 0.5, "click": -0.03},
        outcome={},
        credit="state",
        divisor="batch",
        least=2,
    )
    scripts = [[_click(question), END], [_click(question), _click(question), END], [END]]
    group = [_rollout(question, *each) for each in scripts]
    (expected,) = credit.advantages([group], settings)
    turns = [(rollout, n) for rollout in group for n in range(len(rollout.turns))]
    rewards, mask = torch.zeros(len(turns) + 1, 12), torch.zeros(len(turns) + 1, 12)
    for row, (rollout, n) in enumerate(turns):  # and one row of padding
        earned = credit.returns(rollout, settings)[n]
        rewards[row, : 5 + row] = coding.encoded(float(earned), coding.state_code(rollout, n), 5 + row)
        mask[row, : 5 + row] = 1
    found = coding.advantages_of(rewards, mask, ["q"] * len(turns) + ["padding"], least=2)
    assert found[:-1, 0].tolist() == pytest.approx(np.concatenate(expected).tolist(), abs=1e-6)
    assert torch.equal(found != 0, (found[:, :1] != 0) & (mask > 0)) and not found[-1].any()


def test_the_reward_function_reads_the_language_that_the_row_is_for(row: dict[str, Any]) -> None:
    truth = row["reward_model"]["ground_truth"]
    height, width = row["extra_info"]["height"], row["extra_info"]["width"]
    speech = LANGUAGES["tool_calls"]
    replies = [
        Reply("It is here.", box_around(decode_rle(truth, (height, width)))),
        Reply("", Terminate("Done.")),
    ]
    text = "user\n".join(f"{speech.format(reply)}\n" for reply in replies)
    found = reward.compute_score("ibis-seg", text, truth, {**row["extra_info"], "language": "tool_calls"})
    assert (found["clicks"], found["hit"]) == (1.0, 1.0) and found["iou"] > 0.3
    assert reward.compute_score("ibis-seg", text, truth, row["extra_info"])["clicks"] == 0


def test_the_reward_function_plays_the_text_again(
    row: dict[str, Any], player: Player, question: Question
) -> None:
    replies = [_click(question), END]
    for reply in replies:
        player.take_text(reply)
    text = "user\n".join(f"{reply}\n" for reply in replies)  # as verl decodes a whole answer
    truth = row["reward_model"]["ground_truth"]
    found = reward.compute_score(row["data_source"], text, truth, row["extra_info"])
    assert found == pytest.approx(reward.scored(player, RewardSettings()))
    assert found["clicks"] == 1 and found["hit"] == 1 and found["turn_placement"] == 0.5
    worse = reward.compute_score(row["data_source"], END, truth, row["extra_info"])
    assert worse["score"] < found["score"]


def test_the_reward_function_scores_what_is_no_reply(row: dict[str, Any]) -> None:
    found = reward.compute_score("ibis-seg", "Hello.", row["reward_model"]["ground_truth"], row["extra_info"])
    assert found["turn_format"] == 0 and found["clicks"] == 0
    with pytest.raises(InputError, match=r"training\.grpo\.verl\.rows"):
        reward.compute_score("other", "Hello.", "", {"split": "train"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"actor": 2}, 'unknown key (got actor). Did you mean "actors"?'),
        ({"actors": -1}, "actors must be at least 0"),
        ({"share": "half"}, "share must be a number"),
        ({"rewards": {"turns": {}}}, 'Did you mean "rewards.turn"?'),
        ({"rewards": {"turn": {"gian": 1}}}, "rewards.turn has no such reward (got gian)"),
        ({"rewards": {"turn": {"gain": "1"}}}, "rewards.turn.gain must be a number"),
        ({"rewards": {"turn": {"gain": 0}, "outcome": {}}}, "no reward has a weight"),
        ({"rewards": {"turn": {"gain": 1}, "least": 2}}, "rewards.least has no effect in verl"),
    ],
)
def test_a_mistake_in_the_tools_settings_is_named(change: dict[str, Any], said: str) -> None:
    (tool,) = yaml.safe_load((FOLDER / "tool.yaml").read_text(encoding="utf-8"))["tools"]
    assert tool_settings(tool["config"]).rewards.turn["ending"] == 0.5
    with pytest.raises(InputError) as caught:
        tool_settings({**tool["config"], **change}, "tool.yaml")
    assert said in str(caught.value) and "tool.yaml" in str(caught.value)


def test_the_rewards_may_be_given_as_verls_configuration_has_them() -> None:
    given = pytest.importorskip("omegaconf").OmegaConf.create({"turn": {"gain": 1}, "outcome": {"answer": 2}})
    found = tool_settings({"rewards": given}).rewards
    assert (found.turn, found.outcome) == ({"gain": 1}, {"answer": 2})


def test_verl_can_load_the_reward_function_by_its_path() -> None:
    spec = importlib.util.spec_from_file_location("custom_module", FOLDER / "reward.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)  # as verl does: the module is not in sys.modules
    assert callable(loaded.compute_score)


def test_replies_are_found_one_by_one() -> None:
    click = "<think>a</think>\n<action>Positive Point (0.1, 0.2)</action>"
    assert reward.replies_in(f"{click}\nuser\nThe mask.\nassistant\n{END}") == [click, END]
    assert reward.replies_in("nothing") == ["nothing"]


def test_a_row_has_verls_columns_and_its_picture(row: dict[str, Any], question: Question) -> None:
    columns = "data_source agent_name prompt images ability reward_model extra_info"
    assert list(row) == columns.split()
    assert sum(message["content"].count("<image>") for message in row["prompt"]) == len(row["images"]) == 1
    assert np.array_equal(reward.read_picture(row["images"][0]["bytes"]), question.rgb)
    assert np.array_equal(reward.read_picture(row["extra_info"]["picture"]), question.rgb)


def test_the_files_name_what_is_there() -> None:
    (agent,) = yaml.safe_load((FOLDER / "agent.yaml").read_text(encoding="utf-8"))
    (tool,) = yaml.safe_load((FOLDER / "tool.yaml").read_text(encoding="utf-8"))["tools"]
    for target in (agent["_target_"], tool["class_name"]):
        module, _, name = target.rpartition(".")
        assert f"class {name}" in (FOLDER / f"{module.rpartition('.')[2]}.py").read_text(encoding="utf-8")
    assert agent["name"] == rows.AGENT
    RewardSettings(**tool["config"]["rewards"])
    subprocess.run(["bash", "-n", str(FOLDER / "launch.sh")], check=True)


@pytest.mark.parametrize("given", [True, False])
def test_the_launch_tells_all_nodes_which_segmenter_was_given(tmp_path: Path, given: bool) -> None:
    for name, script in (("python", 'printf "%s\\n" "$@"'), ("ray", f'touch "{tmp_path / "begun"}"; exit 1')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    checkpoint = tmp_path / "a b.pt"
    checkpoint.touch()
    path = f"{tmp_path}:{os.environ['PATH']}"
    found = {**os.environ, "PATH": path, "MODEL": str(demo_folder()), "DATA": str(tmp_path), "GPUS": "1"}
    found["SEGMENTER"] = os.path.relpath(checkpoint, FOLDER.parents[2]) if given else ""
    for nodes in ({}, {"NODES": "2", "HEAD": "127.0.0.1"}):
        refused = subprocess.run(
            [FOLDER / "launch.sh"], env={**found, **nodes}, capture_output=True, text=True
        )
        assert refused.returncode == 1 and f"{tmp_path / 'train.parquet'} is missing" in refused.stderr
        assert not (tmp_path / "begun").exists()
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").touch()
    ran = subprocess.run([FOLDER / "launch.sh", "x=1"], env=found, check=True, capture_output=True, text=True)
    told = [line for line in ran.stdout.splitlines() if reward.SEGMENTER in line]
    name = f"+ray_kwargs.ray_init.runtime_env.env_vars.{reward.SEGMENTER}"
    assert told == ([f"{name}='{checkpoint.resolve()}'"] if given else [])
    assert any(
        "VERL_USE_EXTERNAL_MODULES='training.grpo.verl.advantage" in line for line in ran.stdout.splitlines()
    )
    assert ran.stdout.splitlines()[-1] == "x=1"


def test_the_files_share_no_scan_and_each_has_one(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    folder, out = make_trajectories(tmp_path / "made", pictures=3), tmp_path / "out"
    counts = rows.write([folder], demo_folder(), out, held=0.05)
    read = {split: parquet.read_table(out / f"{split}.parquet").to_pylist() for split in counts}
    assert {split: len(listed) for split, listed in read.items()} == counts and min(counts.values()) > 0
    train, test = ({row["extra_info"]["picture"] for row in read[split]} for split in ("train", "test"))
    assert len(train) == 2 and len(test) == 1 and not train & test
    (tmp_path / "one").mkdir()
    with pytest.raises(InputError, match="two scans"):
        rows.write([make_trajectories(tmp_path / "one" / "made", pictures=1)], demo_folder(), out)


@pytest.fixture(scope="module")
def config() -> Any:
    hydra = pytest.importorskip("hydra")
    from hydra.core.global_hydra import GlobalHydra

    # sam2 has set hydra up for itself when it was imported, and there is one for all.
    theirs = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(FOLDER), version_base=None):
            # As launch.sh gives them.
            changes = [f"actor_rollout_ref.model.path={demo_folder()}"]
            changes += ["+ray_kwargs.ray_init.runtime_env.env_vars.IBIS_SEGMENTER='/models/a b.pt'"]
            return hydra.compose("grpo", overrides=changes)
    finally:
        GlobalHydra.instance().hydra = theirs


@verl
def test_the_configuration_composes_with_verls(config: Any) -> None:
    from verl.utils.config import omega_conf_to_dataclass

    assert config.algorithm.adv_estimator == "ibis_state" and config.actor_rollout_ref.rollout.n == 8
    assert config.actor_rollout_ref.rollout.agent.default_agent_loop == rows.AGENT
    assert config.reward.custom_reward_function.name == "compute_score"
    assert config.ray_kwargs.ray_init.runtime_env.env_vars[reward.SEGMENTER] == "/models/a b.pt"
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    assert rollout.response_length == config.data.max_response_length


@verl
def test_verl_reads_the_parquet_files(tmp_path: Path, row: dict[str, Any], config: Any) -> None:
    import pyarrow
    import pyarrow.parquet
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    settings = config.data.copy()
    OmegaConf.set_struct(settings, False)
    settings.cache_dir = str(tmp_path / "cache")
    dataset = RLHFDataset(str(path), None, settings, processor=object())
    read = dataset[0]
    assert read["agent_name"] == rows.AGENT
    assert isinstance(read["raw_prompt"][-1]["content"][0]["image"], Image.Image)
    assert read["reward_model"]["ground_truth"] == row["reward_model"]["ground_truth"]


@verl
def test_verl_finds_the_reward_function(config: Any) -> None:
    from verl.trainer.ppo.reward import get_custom_reward_fn

    settings = config.copy()
    settings.reward.custom_reward_function.path = str(FOLDER / "reward.py")
    assert get_custom_reward_fn(settings) is not None


@verl
def test_the_agent_loop_runs_on_recorded_replies(
    row: dict[str, Any], config: Any, chat: Chat, question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    from verl.experimental.agent_loop.agent_loop import AgentLoopBase, DictConfigWrap, ToolListWrap
    from verl.tools.tool_registry import initialize_tools_from_config

    from training.grpo.verl.loop import IbisAgentLoop

    replies = [_click(question), END]
    asked: list[dict[str, Any]] = []

    class Server:
        async def generate(self, **request: Any) -> Any:
            ids = chat.reply_tokens(replies[len(asked)])
            asked.append(request)
            told = {"token_ids": ids, "log_probs": [-0.1] * len(ids), "extra_fields": {"min_global_steps": 7}}
            return type("Output", (), told)()

    def prepared(self: Any, trainer_config: Any, server_manager: Any, **_: Any) -> None:
        # verl's own also makes its token builder, which wants a processor and with it torchvision.
        self.config, self.server_manager = trainer_config.config, server_manager
        self.rollout_config = self.config.actor_rollout_ref.rollout

    monkeypatch.setattr(AgentLoopBase, "__init__", prepared)
    tools = initialize_tools_from_config(str(FOLDER / "tool.yaml"))
    loop = IbisAgentLoop(DictConfigWrap(config), Server(), tools=ToolListWrap(tools))
    raw = [{"role": "user", "content": [{"type": "image", "image": Image.fromarray(question.rgb)}]}]
    outputs = asyncio.run(loop.run({"temperature": 1.0, "logprobs": True}, raw_prompt=raw, **row))
    assert len(asked) == len(outputs) == 2  # one output a turn
    for output, request, text in zip(outputs, asked, replies, strict=True):
        assert output.prompt_ids == request["prompt_ids"] and len(request["image_data"]) == 1
        assert output.response_ids == chat.reply_tokens(text) and set(output.response_mask) == {1}
        assert output.extra_fields["min_global_steps"] == 7  # what the engine says of its weights is kept
        assert output.as_dict()["rm_scores"].sum() == pytest.approx(output.earned, abs=1e-6)
    assert outputs[0].earned > outputs[1].earned > 0
    with pytest.raises(InputError, match="tool_config_path"):
        IbisAgentLoop(DictConfigWrap(config), Server(), tools=ToolListWrap([]))
    few = config.copy()
    few.actor_rollout_ref.rollout.n = 2
    with pytest.raises(InputError, match=r"at least 4 rollouts.*rollout\.n=2"):
        IbisAgentLoop(DictConfigWrap(few), Server(), tools=ToolListWrap(tools))


@verl
@pytest.mark.parametrize(("before", "after"), [(None, "own.pt"), ("", "own.pt"), ("given.pt", "given.pt")])
def test_the_tools_segmenter_counts_unless_another_is_given(
    before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from verl.tools.schemas import OpenAIFunctionToolSchema

    from training.grpo.verl.tool import SegmentTool

    (tool,) = yaml.safe_load((FOLDER / "tool.yaml").read_text(encoding="utf-8"))["tools"]
    monkeypatch.setenv(reward.SEGMENTER, before or "")
    if before is None:
        monkeypatch.delenv(reward.SEGMENTER)
    schema = OpenAIFunctionToolSchema.model_validate(tool["tool_schema"])
    SegmentTool({**tool["config"], "segmenter": "own.pt"}, schema)
    assert os.environ[reward.SEGMENTER] == after


@verl
def test_the_tool_clicks_and_scores(row: dict[str, Any], question: Question) -> None:
    from verl.tools.tool_registry import initialize_tools_from_config

    (tool,) = initialize_tools_from_config(str(FOLDER / "tool.yaml"))

    async def use() -> tuple[Any, float]:
        name, _ = await tool.create(info=row["extra_info"], ground_truth=row["reward_model"]["ground_truth"])
        ys, xs = np.nonzero(question.truth)
        height, width = question.truth.shape
        click = {"x": float(xs[len(xs) // 2] / width), "y": float(ys[len(ys) // 2] / height)}
        done = await tool.execute(name, click)
        refused = await tool.execute(name, {"x": 7})
        assert "Not a click" in refused[0].text
        score = await tool.calc_reward(name)
        await tool.release(name)
        return done, score

    (response, gained, metrics), score = asyncio.run(use())
    assert response.text and gained == metrics["iou"] > 0 and score > 0
