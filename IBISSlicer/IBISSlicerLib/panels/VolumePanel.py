"""The panel's widgets for a whole volume: progress, the mask's area in every slice, and propagation from a corrected
slice.
"""

from __future__ import annotations

import qt

from ..Agent import Agent
from ..Errors import telling
from .Texts import number, timeLeft

_HEIGHT = 36  # of the plot, in pixels
_MOST_BARS = 320
_BAR, _CLICKED, _HERE = "#4c9fd8", "#19c766", "#e8a33d"


class VolumePanel:
    """
    :param ui: the widgets by name.
    :param agent: the Agent.
    :param say: shows a line to the user.
    """

    def __init__(self, ui, agent: Agent, say) -> None:
        self.ui, self.agent, self._say = ui, agent, say
        self._areas: dict[int, float] = {}
        ui.spreadButton.connect("clicked()", self.onSpread)
        ui.scopeSelector.connect("currentIndexChanged(int)", lambda row: self.update())
        agent.changed.connect(self.update)
        agent.grew.connect(self._onGrew)
        agent.worker.changed.connect(self._onWorking)
        self.update()

    def cleanup(self) -> None:
        self._areas.clear()

    def update(self) -> None:
        """Show the areas after the displayed step; slices reported during propagation are part of a step now."""
        run = self._run()
        self._showProgress(False)
        self.ui.volumeBox.setVisible(self.ui.scopeSelector.currentData == "volume" or run is not None)
        self._areas = run.record.areas_mm2(run.shown) if run is not None else {}
        self._onWorking()
        self._draw()

    def onSpread(self) -> None:
        run = self._run()
        if run is not None:
            with telling(self._say):
                self.agent.spread(run.shownSlice, wait=False)

    def measured(self) -> str:
        """The volume of the displayed mask and its slices; empty if there is no mask."""
        run, held = self._run(), sorted(index for index, area in self._areas.items() if area)
        if run is None or not held:
            return ""
        volume = sum(self._areas.values()) * float(run.record.head["volume"]["gap_mm"]) / 1000
        return f"{number(volume, 1)} mL in slices {held[0] + 1} to {held[-1] + 1}"

    def _run(self):
        """The displayed run, if it is about a volume and the worker has reported its slices."""
        run = self.agent.viewed
        return run if run is not None and run.scope == "volume" and run.isOpened else None

    def _showProgress(self, shown: bool) -> None:
        """In the place of the status line, so that nothing moves."""
        self.ui.progressBar.setVisible(shown)
        self.ui.statusArea.setVisible(not shown)

    def _onWorking(self) -> None:
        run = self._run()
        if not self.agent.isWorking or run is None:
            self._showProgress(False)
        clicked = run is not None and run.shownSlice in run.record.clicked(run.shown)
        self.ui.spreadButton.setEnabled(clicked and self.agent.usable and self.agent.current is run)
        self.ui.spreadButton.setToolTip(
            f"Propagate the mask again from the clicks in slice {run.shownSlice + 1}"
            if clicked
            else "Select a step with a click, or place a click in a slice first"
        )

    def _onGrew(self, message: dict) -> None:
        bar, done, total = self.ui.progressBar, int(message["done"]), int(message["total"])
        self._showProgress(True)
        bar.setRange(0, max(1, total))
        bar.setValue(done)
        index, left = int(message["slice"]), float(message["seconds_left"])
        bar.setFormat(f"Slice {index + 1}: {done} of up to {total}, {timeLeft(left)}")
        self._areas[index] = float(message["known"]["area_mm2"])
        self._draw()

    def _draw(self) -> None:
        run = self._run()
        if run is None:
            self.ui.plotLabel.setPixmap(_plot({}, 0, 0, set(), -1))
            self.ui.plotLabel.setToolTip("Area of the mask in every slice")
            return
        first, last = run.record.range
        clicked = set(run.record.clicked(run.shown))
        self.ui.plotLabel.setPixmap(_plot(self._areas, first, last, clicked, run.shownSlice))
        largest = max(self._areas.values(), default=0.0)
        self.ui.plotLabel.setToolTip(
            f"Area of the mask in slices {first + 1} to {last + 1}, up to {number(largest)} mm². "
            "Green: slices with clicks. Orange: slice of the selected step."
        )


def _plot(areas: dict[int, float], first: int, last: int, clicked: set[int], here: int):
    """One bar per slice, or per group of slices if there are many."""
    count = last - first + 1
    apart = max(1, -(-count // _MOST_BARS))
    bars = -(-count // apart)
    wide = max(1, _MOST_BARS // bars)
    pixmap = qt.QPixmap(bars * wide, _HEIGHT)
    pixmap.fill(qt.QColor("#20262c"))
    largest = max(areas.values(), default=0.0) or 1.0
    painter = qt.QPainter(pixmap)
    for bar in range(bars):
        slices = range(first + bar * apart, min(first + (bar + 1) * apart, last + 1))
        area = max(areas.get(index, 0.0) for index in slices)
        high = round((_HEIGHT - 5) * area / largest)
        green = any(index in clicked for index in slices)
        if high:
            painter.fillRect(
                bar * wide, _HEIGHT - high, max(1, wide - 1), high, qt.QColor(_CLICKED if green else _BAR)
            )
        if here in slices:
            painter.fillRect(bar * wide, 0, max(2, wide - 1), 3, qt.QColor(_HERE))
    painter.end()
    return pixmap
