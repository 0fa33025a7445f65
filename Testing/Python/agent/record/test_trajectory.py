"""Records of episodes: everything comes back, a replay gives the same masks, and damage is named."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chained_segmenter import ENDING, ChainedSegmenter, clicking, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from ibis_agent.actions import Click, Reply, Terminate, format_reply
from ibis_agent.errors import InputError, OutputError
from ibis_agent.mask.masks import decode_rle
from ibis_agent.policy.card import ModelCard
from ibis_agent.record.forms import SCHEMA
from ibis_agent.record.pictures import orientation_of, picture_from_json, picture_to_json
from ibis_agent.record.replay import other_weights
from ibis_agent.record.review import review_page
from ibis_agent.record.steps import step_from_json, step_to_json
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.episode import Limits
from ibis_agent.run.run import Run
from ibis_agent.run.settings import Settings
from ibis_agent.scan.geometry import Orientation
from ibis_agent.scan.load import load_scan
from ibis_agent.scan.picture import cut
from ibis_agent.scan.scan import Scan
from PIL import Image
from scripted_policy import ScriptedPolicy

QUESTION = "Где печень? أين الكبد؟ \N{SNOWMAN} </script>"


def worked(*replies: str, **card: Any) -> Run:
    """An episode of 12 × 12 pixels after all `replies`, with one click of the person at the second place."""
    policy = ScriptedPolicy(replies, ModelCard(name="scripted", note="not for patients", **card))
    episode = Run.on_picture(picture(), QUESTION, policy, ChainedSegmenter(), Settings(Limits(7, 4)))
    episode.step()
    episode.add(Click(0.9, 0.1, positive=False))
    while episode.status == "ready" and len(policy.turns) < len(replies):
        episode.step()
    return episode


@pytest.fixture
def episode() -> Run:
    return worked("hm", clicking(0.2, thought="Я вижу \ud83d"), clicking(0.4), ENDING)


@pytest.fixture
def record(episode: Run) -> dict[str, Any]:
    return json.loads(json.dumps(Trajectory.of(episode, "/data/patients/scan.png").to_json()))


def test_everything_comes_back_from_the_file(episode: Run, tmp_path: Path) -> None:
    written = Trajectory.of(episode, "/data/patients/scan.png")
    written.save(tmp_path / "trajectory.json")
    read = Trajectory.load(tmp_path / "trajectory.json")
    # Half a surrogate pair cannot be written as UTF-8: it becomes a question mark, nothing else changes.
    assert json.dumps(read.to_json()) == json.dumps(written.to_json()).replace("\\ud83d", "?")
    assert np.array_equal(read.picture.rgb, picture().rgb)
    assert read.picture.geometry == picture().geometry
    assert (read.question, read.answer, read.status) == (QUESTION, "That is the liver.", "ended")
    assert (read.source, read.note, read.limits) == ("scan.png", "not for patients", Limits(7, 4))
    assert "patients/" not in (tmp_path / "trajectory.json").read_text(), "folders are nobody's business"
    for one, other in zip(read.steps, episode.steps, strict=True):
        assert (one.number, one.by, one.action, one.score) == (
            other.number,
            other.by,
            other.action,
            other.score,
        )
        assert np.array_equal(one.mask, other.mask) and one.seconds == other.seconds
    assert read.steps[0].unreadable == "hm"


def test_the_file_is_the_documented_schema(record: dict[str, Any]) -> None:
    assert record["schema"] == SCHEMA == "ibis-trajectory/1"
    assert set(record) == {
        *("schema", "created", "note", "question", "answer", "status", "reason"),
        *("models", "picture", "limits", "steps"),
    }
    assert record["models"]["segmenter"] == {"name": "chained", "sha256": "c0"}
    assert record["models"]["policy"]["name"] == "scripted"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["created"])
    step = record["steps"][1]
    assert step["action"] == {"kind": "click", "x": 0.9, "y": 0.1, "positive": False}
    assert decode_rle(step["mask_rle"], (12, 12)).sum() == step["area_px"]
    assert step["area_mm2"] is None, "a photograph has no millimetres"
    assert record["steps"][-1]["action"] == {"kind": "terminate", "answer": "That is the liver."}
    image = Image.open(io.BytesIO(base64.b64decode(record["picture"]["png"])))
    assert np.array_equal(np.array(image.convert("RGB")), picture().rgb)


@pytest.mark.parametrize(("channels", "mode"), [((1, 1, 1), "L"), ((1, 1, 2), "RGB")])
def test_a_grey_picture_is_recorded_in_one_channel_and_comes_back_in_three(
    channels: tuple[int, ...], mode: str
) -> None:
    grey = np.arange(144, dtype=np.uint8).reshape(12, 12, 1) // 2
    shown = replace(picture(), rgb=grey * np.array(channels, np.uint8))
    recorded = picture_to_json(shown)
    assert Image.open(io.BytesIO(base64.b64decode(recorded["png"]))).mode == mode
    assert np.array_equal(picture_from_json(recorded).rgb, shown.rgb)


def test_the_review_page_takes_the_record(record: dict[str, Any]) -> None:
    assert "That is the liver." in review_page(record)


def test_a_slice_keeps_its_geometry_window_and_areas(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).normal(0, 100, (8, 9, 4)).astype(np.float32)
    affine = np.diag([-1.5, -2.0, 3.0, 1.0])
    scan = Scan(voxels, affine, "volume", tmp_path / "scan.nii.gz", "scan", "CT")
    cut_out = cut(scan, "axial", 2, (-100, 150))
    episode = Run.on_picture(cut_out, "liver", None, _Fixed())
    episode.add(Click(0.5, 0.5))
    Trajectory.of(episode, scan.path).save(tmp_path / "t.json")
    read = Trajectory.load(tmp_path / "t.json")
    assert read.picture.geometry == cut_out.geometry and read.picture.window == (-100, 150)
    assert read.policy is None and read.orientation == "radiological"
    step = read.to_json()["steps"][0]
    assert (step["area_px"], step["area_mm2"]) == (2, 6.0)


class _Fixed(ChainedSegmenter):
    """Two pixels of a 9 × 8 picture."""

    def predict(self, embedding: Any, clicks: Any, previous: Any = None) -> Any:
        found = super().predict(embedding, clicks, previous)
        found.mask = np.zeros((9, 8), bool)
        found.mask[4, 3:5] = True
        return found


def test_the_orientation_is_the_one_that_the_policy_asked_for(tmp_path: Path) -> None:
    # Radiological and upstream pictures of a LAS file are equal: only the card tells.
    voxels, affine = np.zeros((4, 5, 6), np.float32), np.diag([-1.0, 1.0, 1.0, 1.0])
    voxels[1, 2] = 1
    scan = Scan(voxels, affine, "volume", tmp_path / "s.nii", "s", "")
    for orientation in Orientation:
        geometry = cut(scan, "axial", 3, (0, 1), orientation).geometry
        assert orientation_of(geometry, ModelCard(orientation=orientation)) == orientation.value
    ras = Scan(voxels, np.eye(4), "volume", tmp_path / "s.nii", "s", "")
    for orientation in Orientation:
        for plane in "xyz":
            geometry = cut(ras, plane, 3, (-1, 1), orientation).geometry
            assert orientation_of(geometry) == orientation.value


def test_a_replay_gives_the_recorded_masks(episode: Run) -> None:
    trajectory = Trajectory.of(episode)
    replay = trajectory.replay(ChainedSegmenter())
    assert replay.differences == () and replay.warnings == ()
    for mask, step in zip(replay.masks, episode.steps, strict=True):
        assert np.array_equal(mask, step.mask)
    for redone, step in zip(replay.steps, episode.steps, strict=True):
        assert redone.logits is not None and step.logits is not None
        assert np.array_equal(redone.logits, step.logits)


def test_a_replay_with_other_weights_warns_and_says_what_differs(record: dict[str, Any]) -> None:
    other = ChainedSegmenter()
    other.identity = {"name": "better", "sha256": "ffff"}
    flipped = copy.deepcopy(record)
    step = flipped["steps"][1]
    step["mask_rle"], step["area_px"] = flipped["steps"][0]["mask_rle"], flipped["steps"][0]["area_px"]
    replay = Trajectory.from_json(flipped).replay(other)
    assert len(replay.warnings) == 1
    assert "better (ffff)" in replay.warnings[0] and "chained (c0)" in replay.warnings[0]
    assert [each.number for each in replay.differences] == [2]
    assert replay.differences[0].pixels > 0 and replay.differences[0].iou < 1
    assert "differs from the recorded one" in str(replay.differences[0])


@pytest.mark.parametrize(
    ("recorded", "present", "told"),
    [
        ({}, {}, []),
        ({}, {"settings": "aa", "settings_files": "config.json 1"}, []),
        ({"settings": "aa"}, {"settings": "aa", "settings_files": "config.json 1"}, []),
        (
            {"settings": "aa"},
            {"settings": "bb"},
            ["its configuration, tokenizer, image processing or generation"],
        ),
        ({"first_box": "drawn"}, {}, ["first box not set instead of drawn"]),
        ({}, {"architecture": "sam2.1_t"}, ["architecture sam2.1_t instead of not set"]),
        (
            {"settings": "aa", "settings_files": "config.json 1, tokenizer.json 2, ibis_model.json 3"},
            {"settings": "bb", "settings_files": "config.json 1, tokenizer.json 4, generation_config.json 5"},
            ["another tokenizer.json", "ibis_model.json is missing", "generation_config.json is new"],
        ),
    ],
)
def test_the_same_weights_with_other_settings_are_told_by_what_differs(
    recorded: dict[str, str], present: dict[str, str], told: list[str]
) -> None:
    notes = other_weights(
        "policy", {"name": "a", "sha256": "f", **recorded}, {"name": "b", "sha256": "f", **present}
    )
    expected = f"the policy has the recorded weights but other settings: {'; '.join(told)}"
    assert notes == ([expected] if told else [])


def test_a_run_that_ends_before_any_click_replays_without_embedding() -> None:
    policy = ScriptedPolicy([format_reply(Reply("No liver.", Terminate("It is not there.")))])
    episode = Run.on_picture(picture(), "liver?", policy, ChainedSegmenter())
    episode.run()
    segmenter = ChainedSegmenter()
    replay = Trajectory.of(episode).replay(segmenter)
    assert segmenter.embedded == 0 and not replay.masks[0].any()


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_a_saved_run_goes_on_as_if_it_had_never_stopped(stop: int, tmp_path: Path) -> None:
    replies = [clicking(0.2), clicking(0.4), clicking(0.6, positive=False), ENDING]
    straight = Run.on_picture(picture(), "liver", ScriptedPolicy(replies), ChainedSegmenter())
    straight.run()
    first = Run.on_picture(picture(), "liver", ScriptedPolicy(replies), ChainedSegmenter())
    for _ in range(stop):
        first.step()
    Trajectory.of(first).save(tmp_path / "t.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = Trajectory.load(tmp_path / "t.json").to_run(
            ScriptedPolicy(replies[stop:]), ChainedSegmenter()
        )
    second.run()
    assert [step.action for step in second.steps] == [step.action for step in straight.steps]
    for one, other in zip(second.steps, straight.steps, strict=True):
        assert np.array_equal(one.mask, other.mask)
    assert (second.status, second.answer) == ("ended", straight.answer)


def test_status_and_limits_come_back_and_new_limits_count(episode: Run) -> None:
    trajectory = Trajectory.of(episode)
    again = trajectory.to_run(None, ChainedSegmenter())
    assert (again.status, again.reason, again.limits) == (episode.status, episode.reason, Limits(7, 4))
    paused = Trajectory.of(worked(clicking(0.2), "hm", "hm"))
    assert paused.to_run(None, ChainedSegmenter()).status == "paused"
    assert paused.to_run(None, ChainedSegmenter(), Settings()).status == "ready"


def test_continuing_with_other_weights_is_told(episode: Run) -> None:
    other = ChainedSegmenter()
    other.identity = {"name": "better", "sha256": "ffff"}
    with pytest.warns(UserWarning, match="not the recorded segmenter"):
        Trajectory.of(episode).to_run(None, other)


def test_steps_travel_one_by_one(episode: Run) -> None:
    head = Trajectory.of(episode, "scan.png").head()
    geometry = picture().geometry
    steps = [{**step_to_json(step, geometry), "uid": f"u{step.number}"} for step in episode.steps]
    outcome = {"status": episode.status, "reason": episode.reason, "answer": episode.answer}
    whole = Trajectory.from_json({**head, **outcome, "steps": steps})
    assert len(whole.steps) == 4, "unknown keys are passed over"
    one = step_from_json(steps[1], geometry)
    assert one.action == Click(0.9, 0.1, positive=False) and one.logits is None


DELETE = object()


def _put(record: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    record = copy.deepcopy(record)
    *way, last = re.findall(r"\w+", path)
    part: Any = record
    for key in way:
        part = part[int(key) if key.isdigit() else key]
    last = int(last) if last.isdigit() else last
    if value is DELETE:
        del part[last]
    else:
        part[last] = value
    return record


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", "ibis-trajectory/2"),
        ("schema", DELETE),
        ("question", 3),
        ("answer", "something else"),
        ("status", "fine"),
        ("steps", {}),
        ("steps[0].number", 2),
        ("steps[1].by", "nobody"),
        ("steps[0].action.kind", "drag"),
        ("steps[0].action.x", 1.2),
        ("steps[0].action.x", "0.5"),
        ("steps[0].action.x", 10**400),
        ("steps[0].action.positive", 1),
        ("steps[0].action", None),
        ("steps[0].mask_rle", "!"),
        ("steps[0].mask_rle", ""),
        ("steps[0].area_px", True),
        ("steps[0].score", "high"),
        ("steps[0].seconds", {"policy": None}),
        ("steps[0].thinking", DELETE),
        ("steps[3].action.answer", None),
        ("picture", []),
        ("picture.height", 13),
        ("picture.height", 0),
        ("picture.width", 10**9),
        ("picture.png", "AAAA"),
        ("picture.png", "\N{SNOWMAN}"),
        ("picture.sha256", "0" * 64),
        ("picture.geometry.axis", 7),
        ("picture.geometry.affine", [[0] * 4] * 4),
        ("picture.window", [3, 3]),
        ("picture.window", [0, 1, 2]),
        ("picture.orientation", "upside down"),
        ("models.segmenter.sha256", 5),
        ("models", "none"),
        ("limits.max_turns", 0),
        ("limits.max_turns", 1.5),
    ],
)
def test_a_damaged_field_is_named_with_its_file(
    path: str, value: Any, record: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "trajectory.json"
    file.write_text(json.dumps(_put(record, path, value)))
    with pytest.raises(InputError) as caught:
        Trajectory.load(file)
    assert str(file) in str(caught.value)
    parents = {
        "steps[0].mask_rle": r"steps\[0\]\.(area_px|mask_rle)",
        "steps[0].action.x": r"steps\[0\]\.action",
        "picture.height": r"picture\.(height|geometry)",
        "picture.width": r"picture\.(height|geometry)",
        "picture.geometry.axis": r"picture\.geometry",
        "picture.geometry.affine": r"picture\.geometry",
    }
    assert re.match(parents.get(path, re.escape(path)), caught.value.problem), caught.value.problem


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]", "must be an object"),
        (b'{"schema": NaN}', "NaN"),
        (b"\xff\xfe{", "UTF-8"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_what_is_no_record_at_all_says_so(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        Trajectory.load(tmp_path / "t.json")
    assert caught.value.file == str(tmp_path / "t.json")


def test_a_missing_record_and_a_folder_that_is_not_there_are_errors_with_a_mend(
    episode: Run, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Trajectory.load(tmp_path / "nothing.json")
    with pytest.raises(InputError, match="cannot be read"):
        Trajectory.load(tmp_path)
    with pytest.raises(OutputError):
        Trajectory.of(episode).save(tmp_path / "no" / "such" / "t.json")


def test_a_picture_that_would_unpack_to_gigabytes_is_refused_by_its_header(
    record: dict[str, Any],
) -> None:
    bomb = io.BytesIO()
    Image.new("1", (5_000, 5_000)).save(bomb, "PNG")
    record["picture"]["png"] = base64.b64encode(bomb.getvalue()).decode()
    with pytest.raises(InputError, match=r"picture\.png"):
        Trajectory.from_json(record)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _paths(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value))
    return (
        [before, *(path for key, each in inside for path in _paths(each, (*before, key)))]
        if before or inside
        else []
    )


@settings(max_examples=60)
@given(st.data())
def test_no_change_of_any_field_gives_anything_but_an_input_error(data: st.DataObject) -> None:
    record = Trajectory.of(worked(clicking(0.2), clicking(0.4), ENDING)).to_json()
    path = data.draw(st.sampled_from([each for each in _paths(record) if each]))
    part: Any = record
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = data.draw(JSON)
    try:
        again = Trajectory.from_json(record)
    except InputError:
        return
    again.replay(ChainedSegmenter())
    json.dumps(again.to_json(), allow_nan=False)


def test_the_record_needs_no_torch() -> None:
    code = "import sys, ibis_agent.record.trajectory, ibis_agent.record.published; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_real_run_is_saved_replayed_and_continued_bit_for_bit(
    parity: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    import ibis_agent.segmenter as segmenters

    segmenter = segmenters.open(parity / "segmenter.pt", device="cpu")
    slice_14 = cut(load_scan(data / "ct_abdomen_3mm.nii.gz"), "axial", 14, (-160, 240))
    replies = [clicking(0.3, 0.4), clicking(0.35, 0.6), clicking(0.6, 0.5, positive=False), ENDING]
    straight = Run.on_picture(slice_14, "Segment the liver", ScriptedPolicy(replies), segmenter)
    straight.run()
    first = Run.on_picture(slice_14, "Segment the liver", ScriptedPolicy(replies), segmenter)
    first.step()
    first.step()
    Trajectory.of(first, "ct_abdomen_3mm.nii.gz").save(tmp_path / "t.json")
    fresh = segmenters.open(parity / "segmenter.pt", device="cpu")
    loaded = Trajectory.load(tmp_path / "t.json")
    assert loaded.replay(fresh).differences == ()
    second = loaded.to_run(ScriptedPolicy(replies[2:]), fresh)
    second.run()
    for one, other in zip(second.steps, straight.steps, strict=True):
        assert np.array_equal(one.mask, other.mask) and one.score == other.score
