"""From an adapter to a policy's folder that the module can be given."""

from __future__ import annotations

import dataclasses
import json
import shutil

import ibis_agent.policy as policies
import numpy as np
import pytest
import torch
from ibis_agent.cli.info import inspect
from ibis_agent.errors import InputError, ModelError, OutputError
from ibis_agent.policy.card import load_card, save_card
from ibis_agent.policy.contract import Turn
from ibis_agent.policy.folder import look_into
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import DEMO_PROMPTS, make_tiny_policy

from training.common.policy_folder import history_of
from training.sft.merge import merge
from training.sft.train import _LANGUAGE


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = make_tiny_policy(tmp_path_factory.mktemp("base") / "policy")
    save_card(dataclasses.replace(load_card(folder), name="tiny", prompts=DEMO_PROMPTS), folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """An adapter that changes what the policy says."""
    folder = tmp_path_factory.mktemp("adapter")
    model = get_peft_model(
        policies.open(base, "cpu", "fp32").model, LoraConfig(r=4, lora_alpha=8, target_modules=_LANGUAGE)
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "lora_" in name:
                values.copy_(torch.randn_like(values) * 0.3)
    model.save_pretrained(folder)
    card = dataclasses.replace(load_card(base), name="tiny, tuned", history=2, origin="LoRA of rank 4.")
    save_card(card, folder)
    history = history_of("sft", look_into(base), "tiny", steps=7)
    (folder / "training.json").write_text(json.dumps(history))
    return folder


def logits(model, policy):
    from training.rollouts.samples import build_request, collate

    rgb = np.random.default_rng(1).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    batch = collate([build_request(policy.chat, policy.card, Turn(rgb, "Segment the liver."))])
    batch.pop("labels")
    with torch.inference_mode():
        return model(**batch, use_cache=False).logits


def test_the_merged_policy_is_the_base_with_its_adapter(base, adapter, tmp_path):
    made = merge(adapter, base, tmp_path / "policy")
    assert made.stored_as == look_into(base).stored_as == "BF16"
    assert json.loads((made.folder / "config.json").read_text())["dtype"] == "bfloat16"
    policy, plain = policies.open(made.folder, "cpu", "fp32"), policies.open(base, "cpu", "fp32")
    before = logits(plain.model, plain)
    adapted = logits(PeftModel.from_pretrained(plain.model, str(adapter)).eval(), plain)
    merged = logits(policy.model, policy)
    # Rounded once, to bf16: far closer to the adapted policy than that is to the base.
    assert (merged - adapted).abs().mean() < 0.05 * (adapted - before).abs().mean()


def test_the_card_says_how_the_policy_came_about_and_info_shows_it(base, adapter, tmp_path):
    made = merge(adapter, base, tmp_path / "policy", name="Liver policy")
    card = load_card(made.folder)
    assert (card.name, card.history, card.origin) == ("Liver policy", 2, "LoRA of rank 4.")
    assert card.prompts == DEMO_PROMPTS
    assert json.loads((made.folder / "training.json").read_text())["steps"] == 7
    facts = inspect(made.folder)["Policy"]
    assert facts["name"] == "Liver policy" and facts["origin"] == "LoRA of rank 4."
    assert facts["history"] == "2 earlier turns" and facts["loads"].startswith("yes")


def test_an_adapter_of_another_program_takes_the_card_of_its_base(base, adapter, tmp_path):
    other = shutil.copytree(adapter, tmp_path / "other")
    (other / "ibis_model.json").unlink()
    (other / "training.json").unlink()
    made = merge(other, base, tmp_path / "policy")
    card = load_card(made.folder)
    assert card.name == "tiny, fine-tuned" and "rank 4" in card.origin and card.history == 0


def test_what_does_not_fit_is_refused_and_leaves_nothing(base, adapter, tmp_path):
    out = tmp_path / "policy"
    stranger = make_tiny_policy(tmp_path / "stranger", seed=1)
    with pytest.raises(InputError, match="trained on other weights"):
        merge(adapter, stranger, out)
    with pytest.raises(ModelError, match="is not an adapter"):
        merge(base, base, out)
    small = make_tiny_policy(tmp_path / "small", hidden_size=32, num_attention_heads=1)
    with pytest.raises(ModelError):
        merge(adapter, small, out, any_base=True)
    poisoned = shutil.copytree(adapter, tmp_path / "poisoned")
    values = load_file(poisoned / "adapter_model.safetensors")
    next(iter(values.values())).fill_(float("nan"))
    save_file(values, poisoned / "adapter_model.safetensors")
    with pytest.raises((ModelError, InputError)):
        merge(poisoned, base, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["poisoned", "small", "stranger"]


def test_a_folder_that_is_there_is_not_written_over(base, adapter, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="already exists"):
        merge(adapter, base, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_an_adapter_alone_is_refused_as_a_policy_with_the_way_out(adapter):
    with pytest.raises(ModelError, match=r"training\.sft\.merge"):
        look_into(adapter)
