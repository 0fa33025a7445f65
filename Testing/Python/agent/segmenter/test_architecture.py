"""Which network a checkpoint holds, and checkpoints and configurations that must not be trusted."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ibis_agent.errors import ModelError

torch = pytest.importorskip("torch")
yaml = pytest.importorskip("yaml")

from ibis_agent.segmenter.sam2 import (
    architecture,
    checkpoint,
)
from ibis_agent.segmenter.sam2 import config as sam2_config


@pytest.fixture(scope="module")
def weights(parity: Path) -> dict[str, Any]:
    return torch.load(parity / "segmenter.pt", weights_only=True)["model"]


@pytest.fixture
def place(parity: Path, tmp_path: Path) -> Callable[..., Path]:
    """Puts a checkpoint and the parity configuration beside it."""

    def put(content: Any, name: str = "model.pt", config: Any = None) -> Path:
        if config is None:
            shutil.copyfile(parity / "segmenter.yaml", tmp_path / "model.yaml")
        elif config:
            (tmp_path / "model.yaml").write_text(
                config if isinstance(config, str) else yaml.safe_dump(config)
            )
        file = tmp_path / name
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file)
        return file

    return put


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    """Weights in the shapes of the packaged tiny network, which are MedSAM2's; one number each on the disk."""
    shapes = architecture.build(architecture.named_settings("sam2.1_hiera_t")).state_dict()
    return {name: torch.zeros(()).expand(each.shape) for name, each in shapes.items()}


@pytest.mark.parametrize("name", ["sam2_hiera_t", "sam2.1_hiera_t", "sam2.1_hiera_t512"])
def test_named_configurations_are_those_of_the_sam2_package(name: str) -> None:
    import sam2
    from omegaconf import OmegaConf

    generation = name.split("_")[0]
    file = Path(sam2.__path__[0]) / "configs" / generation / f"{generation}_hiera_t.yaml"
    ours, theirs = architecture.named_settings(name), OmegaConf.to_container(OmegaConf.load(file).model)
    assert isinstance(theirs, dict)
    if name.endswith("512"):
        assert ours["image_size"] == 512
        theirs["image_size"] = 512
        for attention in ("self_attention", "cross_attention"):
            theirs["memory_attention"]["layer"][attention]["feat_sizes"] = [32, 32]
    assert ours == theirs


def test_building_gives_the_network_that_hydra_gives(parity: Path) -> None:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    theirs = instantiate(OmegaConf.load(parity / "segmenter.yaml").model)
    ours = architecture.build(sam2_config.read_settings(parity / "segmenter.yaml"))
    assert str(ours) == str(theirs)
    shapes = [
        {name: tuple(each.shape) for name, each in model.state_dict().items()} for model in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", architecture.NAMES)
def test_every_published_layout_loads(name: str, tmp_path: Path) -> None:
    """The eight of SAM2 and SAM2.1, and MedSAM2: told by their weights alone, with one number each on the disk."""
    shapes = architecture.build(architecture.named_settings(name)).state_dict()
    number = torch.rand(())
    official = {"t512": "t512", "t": "tiny", "s": "small", "b+": "base_plus", "l": "large"}
    generation, _, size = name.split("_")
    file = tmp_path / f"{generation}_hiera_{official[size]}.pt"
    torch.save({"model": {key: number.expand(each.shape) for key, each in shapes.items()}}, file)
    model, found = architecture.load(file)
    assert (found.name, model.image_size) == (name, 512 if size == "t512" else 1024)
    weight = model.image_encoder.trunk.patch_embed.proj.weight
    assert torch.equal(weight, number.expand(weight.shape))


@pytest.mark.parametrize(
    ("saved", "name", "size"),
    [
        ("archive", "MedSAM2_latest", 512),
        ("archive", "MedSAM2_US_Heart", 512),
        ("archive", "sam2.1_hiera_t512", 512),
        ("archive", "sam2.1_hiera_tiny512_FLARE_RECIST", 512),
        ("archive", "sam2.1_hiera_tiny", 1024),
        ("archive", "sam2_1_hiera_t", 1024),
        ("MedSAM2_latest", "latest", 512),  # renamed: what it was saved as stands inside
        ("archive", "latest", None),
        ("checkpoint", "hiera_tiny", None),
        ("MedSAM2_latest", "sam2.1_hiera_tiny", None),
    ],
)
def test_medsam2_is_told_from_sam2_by_its_names_or_asked_for(
    saved: str, name: str, size: int | None, tiny: dict[str, Any], tmp_path: Path
) -> None:
    torch.save({"model": tiny}, tmp_path / f"{saved}.pt")
    file = tmp_path / f"{name}.pt"
    os.replace(tmp_path / f"{saved}.pt", file)
    if size is None:
        with pytest.raises(
            ModelError, match=r"1024-pixel images, or MedSAM2, which uses 512.*--segmenter-config"
        ):
            architecture.inspect(file)
    else:
        assert architecture.inspect(file).image_size == size
    assert architecture.inspect(file, "sam2.1_hiera_t512").image_size == 512, "a named configuration wins"
    assert architecture.inspect(file, "configs/sam2.1/sam2.1_hiera_t.yaml").image_size == 1024


def test_the_first_generations_tiny_has_no_twin(tiny: dict[str, Any], tmp_path: Path) -> None:
    torch.save({key: each for key, each in tiny.items() if key != "no_obj_embed_spatial"}, tmp_path / "x.pt")
    assert architecture.inspect(tmp_path / "x.pt").name == "sam2_hiera_t"


@pytest.mark.parametrize("package", ["numpy._core.multiarray", "numpy.core.multiarray"])
def test_a_checkpoint_that_holds_numbers_of_numpy_is_read(
    package: str, weights: dict[str, Any], place: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training's best score, as NumPy 1 and 2 write it; code beside it stays refused."""
    import numpy as np

    monkeypatch.setattr(np._core.multiarray.scalar, "__module__", package, raising=False)
    best = {"dice": np.float64(0.87), "steps": np.int64(3), "curve": np.arange(4.0), "flag": np.bool_(True)}
    file = place({"model": weights, "best": best})
    read = checkpoint.read_weights(file)
    assert all(torch.equal(read[name], each) for name, each in weights.items())


def test_an_array_of_objects_is_refused(weights: dict[str, Any], place: Callable[..., Path]) -> None:
    import numpy as np

    with pytest.raises(ModelError):
        checkpoint.read_weights(place({"model": weights, "best": np.array([print, {}], dtype=object)}))


def test_the_yaml_beside_the_checkpoint_is_used(parity: Path) -> None:
    model, found = architecture.load(parity / "segmenter.pt")
    assert (found.name, found.image_size, found.parameters) == ("segmenter", 128, 2_585_362)
    assert model.image_size == 128


@pytest.mark.parametrize("form", ["bare", "state_dict", "module", "old", "safetensors", "half"])
def test_the_usual_forms_of_checkpoints_load_alike(
    form: str, weights: dict[str, Any], place: Callable[..., Path]
) -> None:
    from safetensors.torch import save_file

    if form == "safetensors":
        file = place(b"", "model.pt")  # told by content, not by name
        save_file(weights, file)
    elif form == "old":
        file = place(b"")
        torch.save({"model": weights}, file, _use_new_zipfile_serialization=False)
    else:
        half = {name: each.half() for name, each in weights.items()}
        content = {
            "bare": weights,
            "state_dict": {"state_dict": weights, "epoch": 3},
            "module": {"model": {f"module.{name}": each for name, each in weights.items()}},
            "half": {"model": half},
        }[form]
        file = place(content)
    loaded = architecture.load(file)[0].state_dict()
    for name, each in weights.items():
        assert torch.equal(loaded[name], each.half().float() if form == "half" else each)
        assert loaded[name].dtype == torch.float32


class _Evil:
    """Unpickling this would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_a_checkpoint_with_code_is_refused_and_the_code_never_runs(
    weights: dict[str, Any], place: Callable[..., Path], tmp_path: Path
) -> None:
    trace = tmp_path / "it ran"
    for content in ({"model": weights, "extra": _Evil(trace)}, pickle.dumps(_Evil(trace))):
        with pytest.raises(ModelError, match="would run code"):
            architecture.load(place(content))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 156000000\n", "git-lfs"),
        (b"\n<!DOCTYPE html><html><title>Sign in</title></html>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "is not a checkpoint"),
        ([1, 2], "no state dict"),
        ({"model": {"a": 1}}, "no state dict"),
        ({}, "no state dict"),
        ({"model": torch.zeros(3)}, "it has no image encoder"),
        (b"\x80\x02}q\x00(X\x05", "damaged or cut off"),
        ((1000).to_bytes(8, "little") + b'{"a": ', "cut off safetensors"),
    ],
)
def test_what_is_no_checkpoint_is_named_for_what_it_is(
    content: Any, said: str, place: Callable[..., Path]
) -> None:
    file = place(content)
    with pytest.raises(ModelError, match=said) as caught:
        architecture.inspect(file)
    assert caught.value.file == str(file)


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.999])
def test_a_cut_off_checkpoint_says_so(keep: float, parity: Path, place: Callable[..., Path]) -> None:
    whole = (parity / "segmenter.pt").read_bytes()
    with pytest.raises(ModelError, match="cut off"):
        architecture.load(place(whole[: int(len(whole) * keep)]))


def test_a_cut_off_safetensors_file_says_so(weights: dict[str, Any], place: Callable[..., Path]) -> None:
    from safetensors.torch import save

    with pytest.raises(ModelError, match="cut off safetensors"):
        architecture.load(place(save(weights)[:-1000], "model.safetensors"))


def test_a_missing_file_a_folder_and_a_foreign_archive_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        architecture.load(tmp_path / "nothing.pt")
    with pytest.raises(ModelError, match="is a folder"):
        architecture.load(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("weights/model.pt", b"0" * 100)
    with pytest.raises(ModelError, match="zip archive"):
        architecture.load(tmp_path / "a.pt")


def test_other_architectures_name_what_differs(weights: dict[str, Any], place: Callable[..., Path]) -> None:
    missing = {name: each for name, each in weights.items() if "mask_downsample." not in name}
    with pytest.raises(ModelError, match=r"2 of its 359.*mask_downsample\.\w+ is missing"):
        architecture.load(place({"model": missing}))
    with pytest.raises(ModelError, match="surprise is unknown"):
        architecture.load(place({**weights, "surprise": torch.zeros(1)}))
    reshaped = {**weights, "sam_mask_decoder.conv_s0.bias": torch.zeros(9)}
    with pytest.raises(ModelError, match=r"conv_s0\.bias is 9 instead of 8"):
        architecture.load(place(reshaped))
    with pytest.raises(ModelError, match="transformers library"):
        architecture.inspect(place({"vision_encoder.backbone.x": torch.zeros(1)}))
    with pytest.raises(ModelError, match="language model"):
        architecture.inspect(place({"model.layers.0.weight": torch.zeros(1)}))


def test_another_configuration_is_refused_before_the_network_is_built(
    parity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architecture, "build", lambda *_: pytest.fail("it was built"))
    with pytest.raises(ModelError, match=r"embed_dim 144 instead of 32; stages 48 instead of 7"):
        architecture.load(parity / "segmenter.pt", "sam2.1_hiera_l")


def test_an_unusual_size_without_its_yaml_asks_for_it(
    weights: dict[str, Any], place: Callable[..., Path]
) -> None:
    with pytest.raises(ModelError, match=r"Put its configuration beside it as model\.yaml"):
        architecture.inspect(place(weights, config=False))


def test_weights_that_are_no_numbers_are_refused(weights: dict[str, Any], place: Callable[..., Path]) -> None:
    spoiled = {**weights, "no_mem_embed": torch.full_like(weights["no_mem_embed"], float("nan"))}
    with pytest.raises(ModelError, match=r"not numbers.*no_mem_embed"):
        architecture.load(place(spoiled))


def test_unknown_names_list_the_known_ones(parity: Path) -> None:
    with pytest.raises(ModelError, match=r"sam2\.1_hiera_xxl.*sam2\.1_hiera_b\+"):
        architecture.inspect(parity / "segmenter.pt", "sam2.1_hiera_xxl")


def _changed(parity: Path, *path: str, to: Any) -> dict[str, Any]:
    config = yaml.safe_load((parity / "segmenter.yaml").read_text())
    part = config
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = to
    return config


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        (("model", "_target_"), "os.system", "SAM2 network"),
        (("model", "memory_encoder", "_target_"), "subprocess.Popen", "not part of a SAM2"),
        (("model", "memory_encoder", "_target_"), "sam2.build_sam.build_sam2", "not part of a SAM2"),
        (("model", "memory_encoder", "_target_"), ["a"], "not part of a SAM2"),
        (("model", "image_encoder", "trunk", "weights_path"), "/etc/passwd", "not allowed"),
        (("model", "image_encoder", "_args_"), [1], "not allowed"),
        (("model", "image_encoder", "trunk", "embed_dim"), 10**9, "number"),
        (("model", "image_encoder", "trunk", "embed_dim"), float("inf"), "number"),
        (("model", "image_size"), 100, "multiple of 32"),
        (("model", "image_size"), 2**20, "number|multiple"),
        (("model", "memory_attention", "layer", "self_attention", "feat_sizes"), [9999, 9999], "feat_sizes"),
        (("model",), None, "no `model:`"),
        (("model", "num_maskmem"), 5, "num_maskmem 5 instead of 7"),
        (("model", "image_encoder", "trunk", "window_spec"), [1], "cannot be built"),
        (("model", "image_encoder", "trunk", "colour"), "red", "cannot be built"),
    ],
)
def test_a_configuration_may_only_describe_a_network(
    path: tuple[str, ...],
    to: Any,
    said: str,
    parity: Path,
    weights: dict[str, Any],
    place: Callable[..., Path],
) -> None:
    file = place(weights, config=_changed(parity, *path, to=to))
    with pytest.raises(ModelError, match=said):
        architecture.load(file)


@pytest.mark.parametrize(
    "text",
    [
        "model: !!python/object/apply:os.system ['true']",
        "model: &a [*a]",
        "a: &a [x, x]\nb: &b [*a, *a]\nmodel: {c: *b}",
        "model: {",
        "\x00\x01",
        "- just\n- a list",
        "",
        "model: " + "[" * 5000,
        "x: " + "y" * 70_000,
    ],
)
def test_hostile_yaml_is_refused(text: str, weights: dict[str, Any], place: Callable[..., Path]) -> None:
    with pytest.raises(ModelError) as caught:
        architecture.inspect(place(weights, config=text or "\n"))
    assert str(caught.value.file).endswith("model.yaml")


def test_settings_of_the_video_predictor_do_not_disturb(
    parity: Path, weights: dict[str, Any], place: Callable[..., Path]
) -> None:
    config = _changed(parity, "model", "_target_", to="sam2.sam2_video_predictor.SAM2VideoPredictor")
    config["model"] |= {"fill_hole_area": 8, "add_all_frames_to_correct_as_cond": True}
    config["model"]["compile_image_encoder"] = True
    model, found = architecture.load(place(weights, config=config))
    assert type(model).__name__ == "SAM2Base"
    assert found.settings["compile_image_encoder"] is False


def test_inspecting_a_checkpoint_does_not_build_the_network(
    parity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architecture, "build", lambda *_: pytest.fail("it was built"))
    assert architecture.inspect(parity / "segmenter.pt").parameters == 2_585_362


def test_reading_weights_keeps_names_and_values(parity: Path, weights: dict[str, Any]) -> None:
    read = checkpoint.read_weights(parity / "segmenter.pt")
    assert list(read) == list(weights)
    assert all(torch.equal(read[name], each) for name, each in weights.items())
