"""The module IBISSlicer in the simulated Slicer: opened, given a scan and a worker, and used by a person's hands."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from worker_transport import write_script

MODULE = Path(__file__).resolve().parents[2] / "IBISSlicer" / "IBISSlicer.py"

# What a policy could say about the CT of the shared data, axial slice 15 (voxel index).
THINK_LIVER = "The large, even organ on the left of the picture is the liver."
REPLIES = (
    f"<think>{THINK_LIVER}</think>\n<action>Positive Point (0.2200, 0.4200)</action>",
    "<think>The left lobe is missing.</think>\n<action>Positive Point (0.4200, 0.3000)</action>",
    "<think>The right kidney got in.</think>\n<action>Negative Point (0.3400, 0.6200)</action>",
    "<think>The outline is right.</think>\n<action>Terminate</action>\n<answer>The liver, no lesion.</answer>",
)
ENDLESS = ("<think>" + "so " * 3000 + "</think>\n<action>Positive Point (0.2200, 0.4200)</action>",)
SLICE = 15


class Failures(logging.Handler):
    """Collects what listeners of our own signals have raised: it is logged, so that the others still hear."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.texts.append(logging.Formatter().formatException(record.exc_info))


class Panel:
    """The open module and what a person does with it."""

    def __init__(self, host: Any, folder: Path, *, usable: bool = True) -> None:
        self.host, self.folder = host, folder
        self.failures = Failures()
        logging.getLogger().addHandler(self.failures)
        self.module = host.open(MODULE)
        if usable:
            self.use_python(sys.executable)

    @property
    def ui(self) -> Any:
        return self.module.ui

    @property
    def logic(self) -> Any:
        return self.module.logic

    @property
    def run(self) -> Any:
        return self.logic.current

    @property
    def status(self) -> str:
        return str(self.ui.statusLabel.text)

    def use_python(self, path: str | Path) -> None:
        """As if the person had chosen this Python before."""
        from IBISSlicerLib.worker import Settings

        Settings.setPython(str(path))
        self.module.widget.installPanel.update()
        self.module.widget.modelsPanel.fill()

    def script(self, replies: Sequence[str] = REPLIES, **settings: Any) -> None:
        """Let a scripted worker do the work from now on."""
        path = write_script(self.folder, list(replies), **{"radius": 0.28, **settings})
        self.logic.worker.arguments = ["--script", str(path)]

    def load(self, path: Path) -> Any:
        """Load a CT and show its slice number SLICE in the axial view, in a soft tissue window."""
        volume = self.host.load_volume(path)
        volume.GetDisplayNode().AutoWindowLevelOff()
        volume.GetDisplayNode().SetWindowLevel(400, 40)
        self.show_slice(volume, SLICE)
        return volume

    def show_slice(self, volume: Any, index: int) -> None:
        from IBISSlicerLib.scene.Geometry import worldFromIjk

        shape = volume.GetImageData().GetDimensions()
        self.host.show_slice("Red", tuple(worldFromIjk(volume, (shape[0] // 2, shape[1] // 2, index))))

    def ask(self, question: str = "Segment the liver.") -> None:
        self.host.type(self.ui.questionEdit, question)

    def step(self) -> None:
        before = len(self.logic.steps)
        self.host.press(self.ui.stepButton)
        self.rest()
        assert len(self.logic.steps) == before + 1, self.status

    def run_all(self) -> None:
        self.host.press(self.ui.runButton)
        self.rest()

    def rest(self) -> None:
        """Wait until nothing is under way."""
        self.host.wait_until(lambda: not self.logic.isWorking, 120, "the agent to rest")
        self.host.process_events()

    def thinking(self) -> None:
        """Wait until the agent is in the middle of a thought."""
        self.host.wait_until(lambda: len(self.thought) > 12, 120, "a thought")

    def select(self, number: int) -> None:
        """Click on a row."""
        self.ui.stepsTable.setCurrentCell(number - 1, 1)
        self.host.process_events()

    def rows(self) -> list[list[str]]:
        """Number, thinking, size, slice of every step."""
        count = len(self.logic.steps)
        return [[self.ui.stepsTable.item(row, column).text() for column in range(4)] for row in range(count)]

    @property
    def selected(self) -> list[str]:
        """The row of the step that is shown."""
        return self.rows()[self.ui.stepsTable.currentRow()]

    @property
    def thought(self) -> str:
        """The thought that is being written, below the steps; empty where there is none."""
        table, count = self.ui.stepsTable, len(self.logic.steps)
        return str(table.item(count, 1).text()) if table.rowCount > count else ""

    def menu(self, menu: Any) -> dict[str, Any]:
        """Open a menu: its actions by text."""
        from PySide6.QtGui import QAction

        menu.aboutToShow.emit()
        return {QAction.text(action): action for action in menu.actions() if QAction.text(action)}

    def shown_mask(self) -> np.ndarray:
        """(K, J, I): what the agent's own segment holds now, in the whole volume."""
        import slicer

        mask = self.run.mask
        return np.asarray(
            slicer.util.arrayFromSegmentBinaryLabelmap(mask.node, mask.segmentId, self.run.volumeNode) != 0
        )

    def mark_of(self, number: int) -> tuple[float, float, float]:
        """Where the mark of a step lies in the world."""
        from ibis_agent.record.run_rows import clicks_of

        click = next(each.click for each in clicks_of(self.run.record) if each.step == number)
        return tuple(self.run.places.worldOf(click.x, click.y))

    def colours(self, view: str, ras: Any, radius: int = 14) -> np.ndarray:
        """(N, 3) pixels of a slice view around a point."""
        picture = self.host.picture(view).astype(int)
        x, y = self.host.views[view].to_pixel(ras)
        return picture[max(y - radius, 0) : y + radius, max(x - radius, 0) : x + radius].reshape(-1, 3)
