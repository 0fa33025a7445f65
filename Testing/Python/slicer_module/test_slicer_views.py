"""Boxes drawn in the views, marks in every view and layout, and everything drawn again after a scene is reopened."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from slicer_panel import SLICE, Panel


def green(pixels: np.ndarray) -> int:
    return int(((pixels[:, 1] > 180) & (pixels[:, 0] < 120) & (pixels[:, 2] < 160)).sum())


def coloured(panel: Panel, view: str, ras: Any) -> float:
    """How much of what surrounds a point has a colour, as the mask on grey values has."""
    return float((np.ptp(panel.colours(view, ras), axis=1) > 15).mean())


def draw_box(panel: Panel, view: str = "Red") -> tuple[tuple[float, ...], tuple[float, ...]]:
    corners = panel.run.places.worldOf(0.15, 0.3), panel.run.places.worldOf(0.35, 0.55)
    panel.host.press(panel.ui.boxButton)
    for corner in corners:
        panel.host.click(view, corner)
    panel.rest()
    return corners


@pytest.fixture
def another_view(slicer_host: Any) -> Iterator[Any]:
    """Opens a further axial slice view, as a layout with more views or a second monitor does in the middle of a run."""
    from host.slice_view import SliceView

    opened: list[Any] = []

    def open_view(volume: Any, ras: Any) -> str:
        view = SliceView(slicer_host.mrml, "Slice4", "Axial", (0.9, 0.5, 0.1))
        view.node.SetMappedInLayout(True)
        view.composite.SetBackgroundVolumeID(volume.GetID())
        slicer_host.views["Slice4"] = view
        opened.append(view)
        view.fit()
        view.node.JumpSliceByOffsetting(*ras)
        slicer_host.process_events()
        return "Slice4"

    yield open_view
    for view in opened:
        del slicer_host.views["Slice4"]
        view.managers.SetMRMLDisplayableNode(None)
        slicer_host.mrml.logic.GetSliceLogics().RemoveItem(view.logic)
        view.logic.SetMRMLScene(None)


# Boxes


def test_a_box_is_drawn_with_two_clicks_and_the_mask_follows_it(asked: Panel) -> None:
    panel = asked
    panel.step()
    corners = draw_box(panel)
    assert panel.rows()[1][1] == "Your box."
    action = panel.logic.steps[1]["action"]
    assert action["kind"] == "box"
    assert [action[key] for key in ("x0", "y0", "x1", "y1")] == pytest.approx(
        [0.15, 0.3, 0.35, 0.55], abs=0.01
    )
    inside = np.flatnonzero(panel.shown_mask().any(axis=(0, 1)))  # columns, i
    assert len(inside) == pytest.approx(0.2 * panel.run.record.geometry.width, abs=2)
    drawn = np.array([panel.run.boxMark.node.GetPolyData().GetPoint(n) for n in range(4)])
    assert np.allclose(drawn.min(axis=0)[:2], np.min(corners, axis=0)[:2], atol=4)
    assert np.allclose(drawn.max(axis=0)[:2], np.max(corners, axis=0)[:2], atol=4)
    panel.host.press(panel.ui.boxButton)  # the ordinary mouse again
    panel.host.key(None, "Ctrl+Z")
    assert len(panel.rows()) == 1 and panel.run.boxMark.node is None
    panel.host.key(None, "Ctrl+Y")
    panel.step()
    assert panel.logic.steps[2]["by"] == "policy"


def test_a_box_is_seen_while_it_is_drawn_and_escape_takes_a_begun_one_away(asked: Panel) -> None:
    panel = asked
    panel.step()
    corner = panel.run.places.worldOf(0.15, 0.3)
    panel.host.press(panel.ui.boxButton)
    panel.host.click("Red", corner)
    target, point = panel.host._target("Red", panel.run.places.worldOf(0.35, 0.55))
    panel.host._hover(target, point)
    drawn = np.array([panel.run.boxMark.node.GetPolyData().GetPoint(n) for n in range(4)])
    assert np.allclose(drawn.min(axis=0)[0], min(corner[0], panel.run.places.worldOf(0.35, 0.55)[0]), atol=4)
    panel.host.key(None, "Escape")
    assert panel.run.boxMark.node is None and not panel.ui.boxButton.checked
    assert len(panel.rows()) == 1
    draw_box(panel)
    assert len(panel.rows()) == 2


def test_a_box_over_two_slices_or_without_an_inside_is_refused_in_words(asked: Panel) -> None:
    panel = asked
    panel.step()
    corner = panel.run.places.worldOf(0.15, 0.3)
    for opposite in (corner, tuple(np.add(panel.run.places.worldOf(0.35, 0.55), (0, 0, 6)))):
        with pytest.raises(RuntimeError, match="ignored"):
            panel.logic.addBox(corner, opposite)
    assert len(panel.rows()) == 1 and panel.run.boxMark.node is None


# Several displays


def test_marks_and_mask_are_in_every_view_that_shows_the_slice_also_in_one_that_comes_later(
    asked: Panel, another_view: Any
) -> None:
    panel, volume = asked, asked.ui.volumeSelector.currentNode()
    panel.host.views["Yellow"].node.SetOrientation("Axial")
    panel.step()
    where = panel.mark_of(1)
    panel.host.show_slice("Yellow", where)
    later = another_view(volume, where)
    for view in ("Red", "Yellow", later):
        assert green(panel.colours(view, where)) > 15, view
        assert coloured(panel, view, where) > 0.5, view
    panel.host.press(panel.ui.includeButton)
    last = panel.run.places.worldOf(0.3, 0.5)
    panel.host.click("Yellow", last)
    panel.rest()
    assert [step["by"] for step in panel.logic.steps] == ["policy", "person"]
    assert green(panel.colours(later, panel.mark_of(2))) > 15


def test_a_view_that_comes_while_clicks_are_being_placed_takes_them_too(
    asked: Panel, another_view: Any
) -> None:
    import slicer

    panel = asked
    panel.step()
    panel.host.press(panel.ui.includeButton)
    later = another_view(panel.run.volumeNode, panel.mark_of(1))
    node = panel.module.widget.stepsPanel._placement._node
    views = [
        node.GetDisplayNode().GetNthViewNodeID(n)
        for n in range(node.GetDisplayNode().GetNumberOfViewNodeIDs())
    ]
    assert panel.host.views[later].node.GetID() in views
    assert {each.GetID() for each in slicer.util.getNodesByClass("vtkMRMLSliceNode")} == set(views)


def test_other_nodes_that_come_while_clicks_are_being_placed_leave_the_placing_alone(asked: Panel) -> None:
    import slicer

    panel = asked
    panel.step()
    panel.host.press(panel.ui.includeButton)
    changes: list[str] = []
    display = panel.module.widget.stepsPanel._placement._node.GetDisplayNode()
    tag = display.AddObserver("ModifiedEvent", lambda caller, event: changes.append(event))
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Another")
    assert changes == []
    display.RemoveObserver(tag)


def test_choosing_a_step_scrolls_every_axial_view_to_its_slice_and_leaves_the_others(asked: Panel) -> None:
    panel = asked
    panel.host.views["Yellow"].node.SetOrientation("Axial")
    panel.step()
    panel.step()
    where, green_view = panel.mark_of(1), panel.host.views["Green"].node.GetSliceOffset()
    for view in ("Red", "Yellow"):
        panel.host.show_slice(view, tuple(np.add(where, (0, 0, 12))))
    panel.select(1)
    for view in ("Red", "Yellow"):
        assert green(panel.colours(view, where)) > 15, view
    assert panel.host.views["Green"].node.GetSliceOffset() == green_view


# Reopened


def test_a_reopened_scene_draws_ring_box_and_mask_again_and_scrolls_there(asked: Panel) -> None:
    panel, path = asked, asked.folder / "scene.mrb"
    panel.step()
    draw_box(panel)
    where, edge = panel.mark_of(1), panel.run.places.worldOf(0.15, 0.45)
    before = green(panel.colours("Red", where)), green(panel.colours("Red", edge))
    assert min(before) > 15
    panel.host.show_slice("Red", tuple(np.add(where, (0, 0, 15))))  # saved while another slice was looked at
    panel.host.save_scene(path)
    panel.host.close_scene()
    panel.host.open_scene(path)
    assert panel.ui.sliceLabel.text == f"{SLICE + 1} of 30"
    assert green(panel.colours("Red", where)) == pytest.approx(before[0], rel=0.3)
    assert green(panel.colours("Red", edge)) > 15  # the mask's own outline may lie over a part of it
    assert coloured(panel, "Red", panel.run.places.worldOf(0.25, 0.4)) > 0.5


def test_a_hidden_mask_is_seen_again_when_its_run_is_taken_up(stepped: Panel) -> None:
    panel, path = stepped, stepped.folder / "scene.mrb"
    panel.run.setVisible(False)
    panel.host.save_scene(path)
    panel.host.close_scene()
    panel.host.open_scene(path)
    assert panel.run.mask.node.GetDisplayNode().GetVisibility()
    assert green(panel.colours("Red", panel.mark_of(1), radius=30)) > 15


# The table


def test_the_table_is_as_high_as_its_rows_on_a_tall_screen_and_no_button_moves(asked: Panel) -> None:
    panel = asked
    panel.host.resize(1440, 1400)
    below = panel.ui.includeButton.y
    least = panel.ui.stepsTable.height
    thought = "Long words. " * 30
    panel.script(
        [
            f"<think>{thought}</think>\n<action>Positive Point (0.{place}, 0.42)</action>"
            for place in (20, 25, 30, 35)
        ]
    )
    for count in range(1, 5):
        panel.step()
        table = panel.ui.stepsTable
        rows = sum(table.rowHeight(row) for row in range(count))
        assert table.height - table.horizontalHeader().height - rows <= 8 or table.height == least
        assert panel.ui.includeButton.y == below
    assert panel.ui.stepsTable.height > least + 50
