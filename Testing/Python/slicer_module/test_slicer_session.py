"""A session in Slicer as a radiologist lives it: ask, watch, step, correct, keep, come back tomorrow.

In the simulated host: real scene, slice views and mouse events, a real worker process, and a script for the models.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from slicer_panel import ENDLESS, MODULE, REPLIES, SLICE, THINK_LIVER, Panel


def green(pixels: np.ndarray) -> int:
    return int(((pixels[:, 1] > 180) & (pixels[:, 0] < 120) & (pixels[:, 2] < 160)).sum())


def red(pixels: np.ndarray) -> int:
    return int(((pixels[:, 0] > 180) & (pixels[:, 1] < 110) & (pixels[:, 2] < 110)).sum())


# 2. Picks a volume, types a question


def test_the_background_of_the_view_is_preselected_and_its_slice_named(panel: Panel, data: Path) -> None:
    volume = panel.load(data / "ct_abdomen_3mm.nii.gz")
    assert panel.ui.volumeSelector.currentNode() is volume
    assert panel.ui.viewSelector.currentText == "Axial (Red)"
    assert panel.ui.sliceLabel.text == f"{SLICE + 1} of 30"
    panel.host.scroll("Red", 2)
    assert panel.ui.sliceLabel.text == f"{SLICE + 3} of 30"
    panel.ui.viewSelector.setCurrentIndex(1)
    assert panel.ui.sliceLabel.text.endswith(" of 122")


def test_nothing_can_be_pressed_that_cannot_be_done(panel: Panel, data: Path) -> None:
    assert not panel.ui.stepButton.enabled
    assert "Load a volume" in panel.ui.stepButton.toolTip
    panel.load(data / "ct_abdomen_3mm.nii.gz")
    assert "question" in panel.ui.runButton.toolTip
    panel.ask()
    assert panel.ui.stepButton.enabled
    for name in (
        "stopButton",
        "acceptButton",
        "discardButton",
        "undoButton",
        "includeButton",
        "rejectButton",
    ):
        assert not getattr(panel.ui, name).enabled, name
    assert panel.ui.scopeSelector.currentText == "Current slice" and not panel.ui.rangeBox.visible


def test_recent_and_example_questions_are_offered(asked: Panel) -> None:
    panel = asked
    panel.step()
    panel.host.press(panel.ui.discardButton)
    questions = panel.menu(panel.module.widget.questionPanel._questions)
    assert next(iter(questions)) == "Segment the liver."
    questions["Segment the spleen."].trigger()
    assert panel.ui.questionEdit.plainText == "Segment the spleen."


def test_an_oblique_view_offers_to_be_aligned(asked: Panel) -> None:
    panel, node = asked, asked.host.views["Red"].node
    node.SetSliceToRASByNTP(0.3, 0, 0.95, -1, 0, 0.3, 180, 160, 140, 0)
    panel.host.process_events()
    assert not panel.ui.stepButton.enabled and "oblique" in panel.ui.stepButton.toolTip
    assert "oblique" in panel.status
    panel.host.press(panel.ui.alignButton)
    assert panel.ui.stepButton.enabled and panel.status == ""
    assert panel.ui.sliceLabel.text.endswith("of 30")
    assert not panel.ui.alignButton.visible


# 3. Step, Run, Stop


def test_reasoning_streams_in_and_the_step_becomes_a_row(asked: Panel) -> None:
    panel = asked
    panel.script(seconds=0.01)
    panel.host.press(panel.ui.stepButton)
    panel.host.wait_until(lambda: "The large" in panel.thought, 120)
    assert THINK_LIVER not in panel.thought  # still in the middle
    assert "<think>" not in panel.thought
    panel.rest()
    ((number, thinking, measure, _),) = panel.rows()
    area, change = measure.split("\n")
    assert number == "1"
    assert thinking == THINK_LIVER
    assert change == "+" + area
    step = panel.logic.steps[0]
    assert area.replace("\u202f", "") == f"{step['area_mm2']:.0f}"
    assert step["area_mm2"] == pytest.approx(step["area_px"] * 9, rel=0.01)  # 3 mm voxels
    assert panel.thought == ""


def test_in_a_run_each_thought_is_shown_alone_and_without_its_click(asked: Panel) -> None:
    panel = asked
    panel.script(seconds=0.01)
    shown: list[tuple[int, str]] = []
    panel.logic.textArrived.connect(lambda piece: shown.append((len(panel.logic.steps), panel.thought)))
    panel.run_all()
    second = [text for steps, text in shown if steps == 1]
    assert second[-1] == "The left lobe is missing."
    assert all(second[-1].startswith(text) for text in second)


def test_the_mask_and_a_numbered_ring_or_cross_appear_in_the_view(asked: Panel) -> None:
    panel = asked
    panel.run_all()
    kept = panel.logic.steps[-1]
    assert panel.shown_mask().sum() == kept["area_px"]
    assert np.flatnonzero(panel.shown_mask().any(axis=(1, 2))).tolist() == [SLICE]
    assert green(panel.colours("Red", panel.mark_of(1))) > 15
    assert red(panel.colours("Red", panel.mark_of(3))) > 10
    points = panel.run.marks.nodes["negativePoints"]
    assert points.GetNthControlPointLabel(0).strip() == "3"
    tips = [panel.ui.stepsTable.item(row, 0).toolTip() for row in (0, 2, 3)]
    assert [tip[3:].split(",")[0] for tip in tips] == ["Include", "Exclude", "Finished"]
    panel.select(1)
    around = panel.colours("Red", panel.mark_of(1))
    assert (np.ptp(around, axis=1) > 15).mean() > 0.5  # the mask's colour lies on the grey of the CT
    panel.host.scroll("Red", 2)
    shifted = np.add(panel.mark_of(1), (0, 0, 6))
    assert green(panel.colours("Red", shifted)) == 0  # only in its own slice


def test_a_click_lands_on_the_voxel_that_the_policy_meant(asked: Panel) -> None:
    panel = asked
    panel.step()
    geometry = panel.run.record.geometry
    assert geometry.to_voxel(0.22, 0.42)[2] == SLICE
    r, _, _ = panel.mark_of(1)
    middle = panel.run.places.centre()[0]
    assert r > middle  # left in the picture is the patient's right: radiological, as the view shows it
    x = panel.host.views["Red"].to_pixel(panel.mark_of(1))[0]
    assert x < panel.host.views["Red"].window.GetSize()[0] / 2


def test_ctrl_enter_runs_until_the_agent_finishes(asked: Panel) -> None:
    panel = asked
    panel.host.key(panel.ui.questionEdit, "Ctrl+Return")
    panel.rest()
    assert [row[0] for row in panel.rows()] == ["1", "2", "3", "4"]
    assert panel.run.record.status == "ended"
    assert panel.ui.answerLabel.text == "Answer: The liver, no lesion."
    assert not panel.ui.stepButton.enabled
    assert "accept the mask" in panel.ui.stepButton.toolTip


def test_slicer_stays_responsive_and_stop_acts_in_the_middle_of_a_thought(asked: Panel) -> None:
    panel = asked
    panel.script(ENDLESS, seconds=0.02)
    panel.host.press(panel.ui.runButton)
    panel.thinking()
    before = panel.ui.sliceLabel.text
    panel.host.scroll("Green", 1)  # the views can be used meanwhile
    assert panel.ui.sliceLabel.text == before
    panel.host.press(panel.ui.stopButton)
    assert panel.status == "Stopped."
    assert not panel.logic.isWorking
    assert panel.ui.stepButton.enabled
    panel.host.wait_until(lambda: panel.logic.worker.client.state == "idle", 30, "the worker to follow")
    assert panel.rows() == []


def test_stop_in_a_run_keeps_the_steps_made(asked: Panel) -> None:
    panel = asked
    panel.script((REPLIES[0], ENDLESS[0]), seconds=0.01)
    panel.host.press(panel.ui.runButton)
    panel.host.wait_until(lambda: len(panel.rows()) == 1, 120)
    panel.thinking()
    panel.host.key(panel.ui.stepsTable, "Escape")
    assert len(panel.rows()) == 1
    panel.script()
    panel.logic.worker.client.kill()
    panel.step()
    assert len(panel.rows()) == 2


# 4. Earlier steps, corrections


def test_selecting_an_earlier_row_shows_its_mask_and_marks(stepped: Panel) -> None:
    panel = stepped
    last = panel.shown_mask()
    panel.select(1)
    assert panel.shown_mask().sum() == panel.logic.steps[0]["area_px"] < last.sum()
    assert panel.selected[1] == THINK_LIVER
    assert panel.run.marks.nodes["positivePoints"].GetNumberOfControlPoints() == 1
    panel.select(2)
    assert np.array_equal(panel.shown_mask(), last)


def test_back_to_here_undo_and_redo(stepped: Panel) -> None:
    panel = stepped
    both = panel.shown_mask()
    panel.select(1)
    one = panel.shown_mask()
    panel.host.press(panel.ui.backButton)
    assert len(panel.rows()) == 1
    panel.host.key(panel.ui.stepsTable, "Ctrl+Z")
    assert len(panel.rows()) == 2
    assert np.array_equal(panel.shown_mask(), both)
    panel.host.key(panel.ui.stepsTable, "Ctrl+Y")
    assert np.array_equal(panel.shown_mask(), one)
    panel.step()
    assert np.array_equal(panel.shown_mask(), both)  # the same step from the same place


def test_ctrl_z_while_typing_belongs_to_the_question(asked: Panel) -> None:
    panel = asked
    panel.host.key(panel.ui.questionEdit, "Ctrl+Z")
    assert panel.ui.questionEdit.plainText != "Segment the liver."


def test_an_own_click_with_the_mouse_changes_the_mask_at_once_and_the_agent_goes_on(asked: Panel) -> None:
    panel = asked
    panel.step()
    before = panel.shown_mask()
    where = panel.run.places.worldOf(0.45, 0.3)
    panel.host.press(panel.ui.includeButton)
    panel.host.click("Red", where)
    panel.rest()
    assert panel.rows()[1][1] == "Your click."
    assert panel.shown_mask().sum() > before.sum()
    assert np.allclose(panel.mark_of(2), where, atol=3)
    panel.host.press(panel.ui.excludeButton)
    assert not panel.ui.includeButton.checked
    panel.host.click("Red", panel.mark_of(1))
    panel.rest()
    assert [step["action"].get("positive") for step in panel.logic.steps] == [True, True, False]
    panel.host.press(panel.ui.excludeButton)  # back to the ordinary mouse
    panel.run_all()
    assert panel.run.record.status == "ended"


def test_clicks_in_quick_succession_all_count(asked: Panel) -> None:
    panel = asked
    panel.script((REPLIES[0], *ENDLESS), seconds=0.02)
    panel.step()
    places = [panel.run.places.worldOf(x, y) for x, y in ((0.45, 0.3), (0.2, 0.6), (0.3, 0.3))]
    panel.host.press(panel.ui.runButton)
    panel.thinking()
    for place in places:  # the first of them ends the thought, and none of them another
        panel.logic.addClick(place, wait=False)
    panel.rest()
    assert [step["by"] for step in panel.logic.steps] == ["policy", *["person"] * 3]
    for number, place in enumerate(places, 2):
        assert np.allclose(panel.mark_of(number), place, atol=3)


def test_undo_while_a_click_is_not_answered_takes_that_click_back_alone(asked: Panel) -> None:
    panel = asked
    panel.step()
    panel.logic.addClick(panel.run.places.worldOf(0.45, 0.3), wait=False)
    assert panel.logic.worker.isClicking
    panel.logic.undo()
    panel.rest()
    assert not panel.logic.worker.isClicking
    assert [step["by"] for step in panel.logic.steps] == ["policy"]
    panel.logic.undo()
    assert not panel.logic.steps


def test_a_click_beside_the_slice_does_not_count_and_says_why(asked: Panel) -> None:
    panel = asked
    panel.step()
    place = np.add(panel.mark_of(1), (0, 0, 6))
    panel.host.press(panel.ui.includeButton)
    panel.host.show_slice("Red", tuple(place))
    panel.host.click("Red", tuple(place))
    assert "ignored" in panel.status
    assert len(panel.rows()) == 1


def test_dragging_a_mark_replaces_the_step_and_drops_the_later_ones(stepped: Panel) -> None:
    panel = stepped
    before = panel.shown_mask()
    target = panel.run.places.worldOf(0.15, 0.5)
    panel.host.drag("Red", panel.mark_of(1), target)
    panel.host.wait_until(lambda: len(panel.rows()) == 1, 60, "the moved click")
    panel.rest()
    assert panel.rows()[0][1] == "Your click."
    assert np.allclose(panel.mark_of(1), target, atol=4)
    assert not np.array_equal(panel.shown_mask(), before)
    panel.host.press(panel.ui.undoButton)
    assert np.array_equal(panel.shown_mask(), before)


def test_rejecting_takes_the_step_back_and_lets_the_policy_go_on(stepped: Panel) -> None:
    panel = stepped
    rejected = panel.logic.steps[1]["uid"]
    panel.host.press(panel.ui.rejectButton)
    panel.rest()
    assert len(panel.rows()) == 2
    assert panel.logic.steps[1]["uid"] != rejected


# 5. Accept, discard, export: test_slicer_keep.py


# 6. Tomorrow


@pytest.mark.parametrize("suffix", [".mrb", "-folder"])
def test_a_saved_scene_comes_back_with_its_review_and_no_model_is_loaded(stepped: Panel, suffix: str) -> None:
    panel, path = stepped, stepped.folder / f"scene{suffix}"
    panel.select(1)
    rows, mask = panel.rows(), panel.shown_mask()
    panel.host.save_scene(path)
    panel.host.close_scene()
    assert panel.run is None
    assert panel.rows() == []
    panel.logic.worker.client.kill()
    panel.host.open_scene(next(path.glob("*.mrml")) if path.is_dir() else path)
    assert panel.ui.questionEdit.plainText == "Segment the liver."
    assert panel.rows() == rows
    assert np.array_equal(panel.shown_mask(), mask)
    panel.select(2)
    assert panel.shown_mask().sum() == panel.logic.steps[1]["area_px"]
    panel.show_slice(panel.run.volumeNode, SLICE)
    assert green(panel.colours("Red", panel.mark_of(1), radius=30)) > 15
    panel.host.press(panel.ui.undoButton)  # the way back has been kept as well
    assert len(panel.rows()) == 1
    panel.host.press(panel.ui.redoButton)
    assert panel.logic.worker.client.state == "stopped"
    panel.step()
    assert len(panel.rows()) == 3


def test_a_scene_can_be_opened_before_the_module(stepped: Panel) -> None:
    panel, path = stepped, stepped.folder / "scene.mrb"
    panel.host.save_scene(path)
    panel.module.unload()
    panel.host.open_scene(path)
    module = panel.host.open(MODULE)
    assert module.ui.stepsTable.rowCount == 2
    assert module.logic.current.record.question == "Segment the liver."


def test_a_run_of_the_terminal_can_be_opened_and_gone_on_with(stepped: Panel) -> None:
    panel, path = stepped, stepped.folder / "trajectory.json"
    path.write_text(json.dumps(panel.run.record.trajectory()), encoding="utf-8")
    rows, area = panel.rows(), panel.logic.steps[-1]["area_px"]
    panel.host.answer("Ok")
    panel.host.press(panel.ui.discardButton)
    panel.logic.openRecorded(str(path))
    panel.host.process_events()
    assert [row[:4] for row in panel.rows()] == [row[:4] for row in rows]
    assert panel.shown_mask().sum() == area
    panel.step()
    assert panel.shown_mask().sum() == panel.logic.steps[-1]["area_px"]


def test_a_recorded_slice_keeps_its_greys_whatever_their_range(stepped: Panel) -> None:
    import slicer
    from ibis_agent.errors import InputError

    panel, path = stepped, stepped.folder / "trajectory.json"
    record = panel.run.record.trajectory()
    record["picture"]["window"] = [0.0, 1.5]  # of a PET, or of an MR that was normalised
    path.write_text(json.dumps(record), encoding="utf-8")
    panel.logic.discard()
    panel.logic.openRecorded(str(path))
    assert len(np.unique(slicer.util.arrayFromVolume(panel.run.volumeNode))) > 50
    panel.logic.discard()
    path.write_text(json.dumps({"schema": "ibis-volume/1"}), encoding="utf-8")
    with pytest.raises(InputError, match="models"):
        panel.logic.openRecorded(str(path))


# 7. Models


def test_the_models_panel_says_in_plain_words_what_is_loaded(asked: Panel) -> None:
    panel = asked
    assert "not for patients" in panel.ui.footerLabel.text
    assert "not loaded" in panel.ui.modelsStatusLabel.text
    panel.ui.modelsSection.collapsed = False
    panel.host.press(panel.ui.loadButton)
    panel.rest()
    assert "Models loaded on the CPU" in panel.ui.modelsStatusLabel.text
    panel.host.press(panel.ui.unloadButton)
    panel.rest()
    assert "not loaded" in panel.ui.modelsStatusLabel.text
    assert panel.ui.footerLabel.text.startswith("Research use only")


def choose_policy(panel: Panel, text: str) -> None:
    panel.ui.policySelector.setCurrentIndex(panel.ui.policySelector.findText(text))
    panel.host.process_events()


def test_a_server_elsewhere_is_used_only_after_a_yes_and_the_panel_says_where_pictures_go(
    asked: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from IBISSlicerLib.worker import Settings

    panel, address = asked, "https://models.example.org/v1"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("APPDATA", str(tmp_path))
    panel.ui.modelsSection.collapsed = False
    panel.host.answer(address, "Cancel")
    choose_policy(panel, "A server …")
    assert Settings.models().policy == "demo" and panel.ui.policySelector.currentText == "Demonstration model"
    assert "models.example.org is another computer" in panel.host.messages[-1].text
    assert "no names and no header" in panel.host.messages[-1].text
    panel.host.answer(address, "Ok")
    choose_policy(panel, "A server …")
    assert Settings.models().policy == address
    assert f"sent to {address}" in panel.ui.footerLabel.text
    panel.host.answer("ftp://nowhere")
    choose_policy(panel, "A server …")
    assert Settings.models().policy == address and panel.status != ""
    panel.host.answer("http://localhost:8080/v1")  # this computer: no question
    choose_policy(panel, "A server …")
    assert Settings.models().policy == "http://localhost:8080/v1"


def test_the_model_of_a_server_is_chosen_from_its_list_or_typed_and_is_kept_with_the_address(
    asked: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chat_server import serving
    from IBISSlicerLib.worker import Settings

    panel = asked
    panel.ui.modelsSection.collapsed = False
    assert not panel.ui.modelSelector.visible
    with serving(lambda body, send: (1, 1), models=("small", "large")) as server:
        panel.host.answer(server.url)
        choose_policy(panel, "A server …")
        assert panel.ui.modelSelector.visible
        panel.host.wait_until(lambda: panel.ui.modelSelector.count == 2, 120, "the server's models")
        assert "2 models" in panel.ui.modelsStatusLabel.text and panel.ui.modelSelector.currentText == ""
        panel.ui.modelSelector.setCurrentIndex(1)
        assert Settings.models().model == "large" and "2 models" not in panel.ui.modelsStatusLabel.text
        panel.host.answer(server.url.replace("127.0.0.1", "localhost"))  # another address
        choose_policy(panel, "A server …")
        assert Settings.models().model == ""
        panel.ui.modelSelector.setEditText("mine")
        panel.host.key(panel.ui.modelSelector, "Return")
        assert Settings.models().model == "mine"
    choose_policy(panel, "Demonstration model")
    assert not panel.ui.modelSelector.visible and Settings.models().model == ""


def test_choosing_a_policy_says_whether_it_fits_or_what_is_wrong_with_it(
    asked: Panel, tmp_path: Path
) -> None:
    panel = asked
    panel.ui.modelsSection.collapsed = False
    panel.host.answer(str(tmp_path))
    choose_policy(panel, "My weights …")
    panel.rest()
    assert panel.ui.policySelector.currentText == tmp_path.name
    assert "config.json" in panel.status
    assert "config.json" in panel.ui.modelsStatusLabel.text and "…" not in panel.ui.modelsStatusLabel.text
    from IBISSlicerLib.worker import Settings

    assert Settings.models().policy == str(tmp_path)


def test_a_graphics_card_that_is_too_small_is_told_with_a_way_out_and_its_memory_is_shown(
    asked: Panel,
) -> None:
    panel, giga = asked, 10**9
    panel.script(
        memory={"device": "NVIDIA RTX", "total": 12 * giga, "free": 3 * giga, "used": 9 * giga},
        fit={
            "name": "IBISAgent", "device": "cuda", "precision": "bf16", "needed": 18 * giga, "free": 12 * giga,
            "loaded": False, "fits": {"fp32": False, "bf16": False, "fp16": False, "int4": True},
        },
    )  # fmt: skip
    panel.ui.modelsSection.collapsed = False
    panel.host.press(panel.ui.checkButton)
    panel.rest()
    assert (
        "needs about 18.0 GB of GPU memory, but only 12.0 GB are available" in panel.ui.modelsStatusLabel.text
    )
    assert "Select 4 bit under Advanced." in panel.ui.modelsStatusLabel.text
    panel.host.press(panel.ui.loadButton)
    panel.rest()
    assert "Models loaded on NVIDIA RTX: 9.0 GB used, 3.0 GB free." in panel.ui.modelsStatusLabel.text


def test_looking_at_another_row_does_not_write_the_run_again(stepped: Panel) -> None:
    node = stepped.run.textNode
    written = node.GetText()
    stepped.select(1)
    assert stepped.run.shown == 1 and node.GetText() == written
    stepped.select(2)
    stepped.step()
    assert node.GetText() != written
