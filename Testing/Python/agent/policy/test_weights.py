"""A policy's folder, checked before anything is loaded: every way it can be incomplete, and its memory."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from types import SimpleNamespace

import pytest
from ibis_agent.errors import ModelError
from ibis_agent.policy import required_memory as memory
from ibis_agent.policy.folder import INDEX_NAME, SINGLE_NAME, PolicyFolder, Tensor, identity_of, look_into
from ibis_agent.policy.required_memory import check_memory, free_bytes, run_bytes, weight_bytes
from tiny_models import make_tiny_policy

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 4967215360\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "policy")


@pytest.fixture
def sharded(folder):
    """The same weights in three files and an index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / SINGLE_NAME)
    (folder / SINGLE_NAME).unlink()
    weight_map = {
        name: f"model-{n % 3 + 1:05}-of-00003.safetensors" for n, name in enumerate(sorted(tensors))
    }
    for file in set(weight_map.values()):
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), "utf-8")
    return folder


def refused(folder):
    with pytest.raises(ModelError) as caught:
        look_into(folder)
    assert caught.value.remedy
    return str(caught.value)


def test_a_whole_folder_is_described_without_torch(whole):
    found = look_into(whole)
    assert found.parameters == 183520 and found.stored_as == "BF16"
    assert found.text_config["num_hidden_layers"] == 2
    assert Tensor((400, 64), "BF16") in found.tensors.values()
    assert found.stored_bytes == (whole / SINGLE_NAME).stat().st_size


def test_shards_are_put_together(sharded, whole):
    assert look_into(sharded).tensors == look_into(whole).tensors


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    text = refused(sharded)
    assert "1 of 3 weight files are missing" in text and "model-00002-of-00003.safetensors" in text


def test_a_missing_index_is_named(sharded):
    (sharded / INDEX_NAME).unlink()
    assert f"{INDEX_NAME} is missing" in refused(sharded)


def test_an_index_that_promises_more_than_the_files_hold_is_refused(sharded):
    index = json.loads((sharded / INDEX_NAME).read_text("utf-8"))
    index["weight_map"]["model.more"] = "model-00001-of-00003.safetensors"
    (sharded / INDEX_NAME).write_text(json.dumps(index), "utf-8")
    assert "model.more" in refused(sharded)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", 3, ["a"]])
def test_an_index_never_leads_out_of_its_folder(sharded, name):
    (sharded / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": name}}), "utf-8")
    assert "is not an index" in refused(sharded)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_cut_off_file_is_refused_with_its_name(folder, keep):
    data = (folder / SINGLE_NAME).read_bytes()
    (folder / SINGLE_NAME).write_bytes(data[:keep])
    text = refused(folder)
    assert SINGLE_NAME in text and "cut off" in text and "Download" in text


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 64, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b'""', b"\x08" + bytes(7) + b'{"a": 1}'],
)
def test_what_is_no_safetensors_file_is_refused(folder, data):
    (folder / SINGLE_NAME).write_bytes(data)
    assert "safetensors" in refused(folder)


def test_extra_bytes_are_refused(folder):
    with open(folder / SINGLE_NAME, "ab") as stream:
        stream.write(b"x")
    assert "longer than its header says" in refused(folder)


@pytest.mark.parametrize("name", [SINGLE_NAME, "config.json", "tokenizer.json"])
def test_git_lfs_pointers_are_told_apart(folder, name):
    (folder / name).write_text(LFS, "utf-8")
    assert "git lfs pull" in refused(folder)


class Bomb:
    def __reduce__(self):
        return (sys.exit, ("the pickle ran",))


def test_pickles_are_refused_and_never_opened(folder):
    (folder / SINGLE_NAME).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    text = refused(folder)
    assert "pytorch_model.bin" in text and "not opened" in text and "save_pretrained" in text


def test_a_pickle_under_the_name_of_safetensors_is_refused(folder):
    (folder / SINGLE_NAME).write_bytes(pickle.dumps(Bomb()))
    assert "safetensors" in refused(folder)


def test_an_adapter_alone_is_told_apart(folder):
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}", "utf-8")
    assert "adapter" in refused(folder)


def test_another_architecture_is_named(folder):
    (folder / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    text = refused(folder)
    assert "not a Qwen2.5-VL model" in text and "llama" in text


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", SINGLE_NAME])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert name in refused(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": ' + "[" * 10_000])
def test_a_damaged_configuration_is_refused(folder, text):
    (folder / "config.json").write_text(text, "utf-8")
    assert "config.json" in refused(folder)


def test_a_file_or_nothing_in_place_of_a_folder_is_refused(folder):
    assert "does not exist" in refused(folder / "nowhere")
    assert "is not a folder" in refused(folder / "config.json")


def test_the_identity_tells_fine_tuned_copies_apart(folder, tmp_path):
    """Headers and sizes are equal for every fine-tuned copy; the numbers are not."""
    before = look_into(folder).sha256
    assert look_into(shutil.copytree(folder, tmp_path / "elsewhere")).sha256 == before
    data = bytearray((folder / SINGLE_NAME).read_bytes())
    data[-1] ^= 1
    (folder / SINGLE_NAME).write_bytes(data)
    assert look_into(folder).sha256 != before


def test_the_identity_of_a_large_file_looks_at_blocks_from_end_to_end(tmp_path):
    path = tmp_path / "large.safetensors"
    with open(path, "wb") as stream:
        stream.truncate(200 * 2**20)
    seen = {identity_of([path])}
    for place in (0, 65535, 200 * 2**20 - 1):
        with open(path, "r+b") as stream:
            stream.seek(place)
            stream.write(b"x")
        seen.add(identity_of([path]))
    assert len(seen) == 4


def like_the_published_model(folder):
    """The shapes of Qwen2.5-VL-7B, without the numbers."""
    text = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    }
    vision = {"hidden_size": 1280, "intermediate_size": 3420, "patch_size": 14, "spatial_merge_size": 2}
    shapes = {"model.embed_tokens.weight": (152064, 3584), "lm_head.weight": (152064, 3584)}
    for n in range(28):
        for name, shape in {
            "self_attn.q_proj": (3584, 3584),
            "self_attn.k_proj": (512, 3584),
            "self_attn.v_proj": (512, 3584),
            "self_attn.o_proj": (3584, 3584),
            "mlp.gate_proj": (18944, 3584),
            "mlp.up_proj": (18944, 3584),
            "mlp.down_proj": (3584, 18944),
        }.items():
            shapes[f"model.layers.{n}.{name}.weight"] = shape
    for n in range(32):
        for name, shape in {
            "attn.qkv": (3840, 1280),
            "attn.proj": (1280, 1280),
            "mlp.gate_proj": (3420, 1280),
            "mlp.up_proj": (3420, 1280),
            "mlp.down_proj": (1280, 3420),
        }.items():
            shapes[f"visual.blocks.{n}.{name}.weight"] = shape
    shapes["visual.merger.mlp.0.weight"] = (5120, 5120)
    shapes["visual.merger.mlp.2.weight"] = (3584, 5120)
    tensors = {name: Tensor(shape, "BF16") for name, shape in shapes.items()}
    return PolicyFolder(folder, {"vision_config": vision, **text}, (), tensors, "")


def test_the_published_model_is_estimated_as_it_is_known(tmp_path):
    """16.6 GB in bf16 and about 7 GB in 4 bits (the vision tower stays whole); a run in bf16 fits a card of 24 GB."""
    found = like_the_published_model(tmp_path)
    assert weight_bytes(found, "bf16") == pytest.approx(16.58e9, rel=0.01)
    assert weight_bytes(found, "int4") == pytest.approx(6.9e9, rel=0.03)
    assert weight_bytes(found, "bf16") < run_bytes(found, "bf16", "cuda") < 24e9
    assert run_bytes(found, "int4", "cuda") < 10e9


def test_too_little_memory_is_refused_with_what_fits(tmp_path, monkeypatch):
    found = like_the_published_model(tmp_path)
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 12e9)
    with pytest.raises(ModelError, match=r'needs about .* GB .*12\.0 GB are free.*"int4"'):
        check_memory(found, "bf16", "cpu")
    check_memory(found, "int4", "cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 1e9)
    with pytest.raises(ModelError, match="smaller model"):
        check_memory(found, "int4", "cpu")


def test_a_machine_that_does_not_tell_its_memory_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda _device: None)
    check_memory(like_the_published_model(tmp_path), "fp32", "cpu")


def test_the_free_memory_is_the_machines_or_what_its_container_leaves(monkeypatch):
    machine = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=3_000))
    monkeypatch.setitem(sys.modules, "psutil", machine)
    for container, free in ((None, 3_000), (2_000, 2_000), (9_000, 3_000)):
        monkeypatch.setattr(memory, "_free_in_cgroup", lambda container=container: container)
        assert free_bytes("cpu") == free


def test_before_the_installation_in_slicer_the_free_memory_is_unknown(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert free_bytes("cpu") is None
    monkeypatch.undo()
    assert 2**20 < free_bytes("cpu") < 2**50
