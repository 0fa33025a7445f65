"""Which files are the policy: decided once, and those that are hashed are those that are read."""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ibis_agent.errors import ModelError
from ibis_agent.policy.folder import INDEX_NAME, SINGLE_NAME, identity_of, look_into
from ibis_agent.policy.qwen25.reference import load_model
from ibis_agent.policy.qwen25.weights import read_tensors
from ibis_agent.record.replay import other_weights
from safetensors.torch import load_file, save_file
from tiny_models import make_tiny_policy

ROOT = Path(__file__).resolve().parents[4]
CASES = ROOT.parent / "shared" / "cases"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "policy")


def refused(folder):
    with pytest.raises(ModelError) as caught:
        look_into(folder)
    assert caught.value.remedy
    return str(caught.value)


def case(number, out):
    """The folders that a script of the collected cases makes from the demo policy."""
    script = CASES / f"{number}.py"
    if not script.exists():
        pytest.skip("the collected cases are not here")
    environment = {**os.environ, "IBIS": str(ROOT)}
    subprocess.run([sys.executable, str(script), str(out)], cwd=CASES, env=environment, check=True)
    return sorted(path for path in out.iterdir() if path.is_dir())


def shards(folder, parts, prefix="model", index=True):
    """The folder's weights again, in so many files and an index."""
    tensors = load_file(folder / SINGLE_NAME)
    names = {
        name: f"{prefix}-{n % parts + 1:05}-of-{parts:05}.safetensors"
        for n, name in enumerate(sorted(tensors))
    }
    for file in set(names.values()):
        save_file(
            {n: t.clone() for n, t in tensors.items() if names[n] == file}, folder / file, {"format": "pt"}
        )
    if index:
        (folder / INDEX_NAME).write_text(json.dumps({"weight_map": names}), "utf-8")
    return sorted(set(names.values()))


class Watched:
    """Names of a folder's files that are opened by this process, told by the kernel (inotify, IN_OPEN)."""

    def __init__(self, folder):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._libc.inotify_add_watch(self._handle, os.fsencode(folder), 0x20) >= 0

    def opened(self):
        names = set()
        while select.select([self._handle], [], [], 0)[0]:
            data, start = os.read(self._handle, 2**16), 0
            while start < len(data):
                *_, length = struct.unpack_from("iIII", data, start)
                names.add(data[start + 16 : start + 16 + length].rstrip(b"\0").decode())
                start += 16 + length
        return names - {""}

    def close(self):
        os.close(self._handle)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="watches files with inotify")
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    single=st.booleans(),
    parts=st.integers(0, 3),
    index=st.booleans(),
    others=st.sets(
        st.sampled_from(["consolidated.safetensors", "old/model.safetensors", "pytorch_model.bin"])
    ),
    stale=st.integers(0, 2),
)
def test_what_is_hashed_is_what_was_read(whole, tmp_path_factory, single, parts, index, others, stale):
    """For any set of weight files: refused by name, or hashed and read files are the same, and no others."""
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("set") / "policy")
    named = shards(folder, parts, index=index) if parts else []
    if stale and index:  # shards of an earlier export that no index names
        shards(folder, stale + 3, index=False)
    for other in others:
        (folder / other).parent.mkdir(exist_ok=True)
        shutil.copy(folder / SINGLE_NAME, folder / other)
    if not single:
        (folder / SINGLE_NAME).unlink()
    try:
        found = look_into(folder)
    except ModelError as error:
        assert error.remedy
        assert (single and parts) or (not single and not (parts and index)) or (single and stale)
        return
    assert {path.name for path in found.files} == set(named if parts and index else [SINGLE_NAME])
    assert found.sha256 == identity_of(found.files)
    watched = Watched(folder)
    read = {name: tensor.clone() for name, tensor in read_tensors(found)}
    opened = watched.opened()
    watched.close()
    assert opened == {path.name for path in found.files}
    assert set(read) == set(found.tensors)
    stored = {name: tensor for path in found.files for name, tensor in load_file(path).items()}
    assert all(torch.equal(read[name], stored[name]) for name in read)


@pytest.mark.parametrize("index_names_the_single", [False, True])
def test_one_file_beside_an_index_and_its_shards_is_refused_by_name(folder, index_names_the_single):
    names = shards(folder, 2)
    if index_names_the_single:
        tensors = dict.fromkeys(load_file(folder / SINGLE_NAME), SINGLE_NAME)
        (folder / INDEX_NAME).write_text(json.dumps({"weight_map": tensors}), "utf-8")
        assert look_into(folder).files == (folder / SINGLE_NAME,)
        return
    text = refused(folder)
    assert "two sets of weights" in text and SINGLE_NAME in text and names[0] in text


def test_the_collected_case_of_a_policy_exported_twice_is_refused(tmp_path):
    (twice,) = case(10, tmp_path)
    assert "two sets of weights" in refused(twice)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "adapter_model.bin"])
def test_an_adapter_beside_whole_weights_is_refused_by_name(folder, name):
    (folder / name).write_bytes(b"{}")
    text = refused(folder)
    assert name in text and "merged" in text


def test_a_tensor_in_two_files_is_refused(folder):
    names = shards(folder, 2)
    (folder / SINGLE_NAME).unlink()
    first = load_file(folder / names[0])
    twice = {**load_file(folder / names[1]), **dict(list(first.items())[:1])}
    save_file({n: t.clone() for n, t in twice.items()}, folder / names[1], {"format": "pt"})
    assert "two files" in refused(folder)


def test_a_file_that_changes_between_the_look_and_the_load_is_refused(folder):
    found = look_into(folder)
    data = (folder / SINGLE_NAME).read_bytes()
    (folder / SINGLE_NAME).write_bytes(data[:-2] + b"\1\1")
    os.utime(folder / SINGLE_NAME, ns=(1, 1))
    with pytest.raises(ModelError, match="was modified"):
        list(read_tensors(found))


def test_training_reads_the_same_files_as_inference(folder):
    found = look_into(folder)
    state = load_model(found, "cpu", "bf16").state_dict()
    stored = load_file(folder / SINGLE_NAME)
    assert torch.equal(state["model.language_model.embed_tokens.weight"], stored["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "generation_config.json", "preprocessor_config.json"]
)
def test_what_else_decides_a_reply_is_part_of_the_identity(folder, name):
    before = look_into(folder)
    values = json.loads((folder / name).read_text("utf-8"))
    (folder / name).write_text(json.dumps({**values, "more": 1}), "utf-8")
    after = look_into(folder)
    assert after.sha256 == before.sha256 and after.settings_sha256 != before.settings_sha256
    (note,) = other_weights("policy", before.identity("a"), after.identity("a"))
    assert note == f"the policy has the recorded weights but other settings: another {name}"


def test_the_version_of_the_program_that_wrote_a_file_is_no_part_of_it(folder):
    before = look_into(folder).settings_sha256
    values = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**values, "transformers_version": "4.51.0"}), "utf-8")
    assert look_into(folder).settings_sha256 == before


QUANTISED = [
    ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "AWQ, 4 bits"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, "GPTQ, 8 bits"),
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "bitsandbytes, 8 bits"),
    ({"quantization_config": {"quant_method": "fp8"}}, "FP8"),
    ({"quantization_config": {"quant_method": "new"}}, "new"),
    ({"quantization": {"group_size": 64, "bits": 4}}, "MLX, 4 bits"),
]


@pytest.mark.parametrize(("settings", "kind"), QUANTISED)
def test_a_quantised_folder_is_told_by_its_configuration(folder, settings, kind):
    values = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**values, **settings}), "utf-8")
    text = refused(folder)
    assert f"is quantised ({kind})" in text and "int4" in text


@pytest.mark.parametrize(
    ("name", "tensor", "kind"),
    [
        ("x.qweight", torch.zeros(2, 2, dtype=torch.int32), "AWQ or GPTQ"),
        ("x.weight.absmax", torch.zeros(2), "bitsandbytes"),
        ("x.weight", torch.zeros(2, 2).to(torch.float8_e4m3fn), "FP8"),
        ("x.weight", torch.zeros(2, 2, dtype=torch.uint8), "U8"),
    ],
)
def test_a_quantised_folder_is_told_by_its_tensors(folder, name, tensor, kind):
    tensors = load_file(folder / SINGLE_NAME)
    save_file({**tensors, name: tensor}, folder / SINGLE_NAME, {"format": "pt"})
    assert kind in refused(folder)


def test_the_collected_quantised_folders_are_told_as_what_they_are(tmp_path):
    kinds = {
        "awq": "AWQ",
        "gptq": "GPTQ",
        "bnb4": "bitsandbytes, 4 bits",
        "fp8": "FP8",
        "gguf": "GGUF",
        "gguf_alone": "GGUF",
    }
    folders = case(12, tmp_path)
    assert {path.name for path in folders} == set(kinds)
    for path in folders:
        assert kinds[path.name] in refused(path)


def test_a_weight_that_is_no_number_is_told_at_load_with_its_name(tmp_path):
    (broken,) = case(13, tmp_path)
    with pytest.raises(ModelError, match=r"not numbers.*layers\.2\.mlp\.down_proj"):
        list(read_tensors(look_into(broken)))
