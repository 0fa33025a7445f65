"""Pictures for the README: the module at work, and the review page of a run (`make screenshots`).

    .venv-host/bin/python Testing/screenshots.py --scan FILE [--slice N] [--range FIRST LAST]
                                                 [--question TEXT] [--out FOLDER] [--example FILE]

The simulated host draws them: real slice views and the module's real panel, but not 3D Slicer; a strip on top says so.
The agent is the demonstration policy and segmenter in a real worker process. The pictures in the README show a phantom
(training.phantoms), never a person's scan. The review page needs Debian's chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT / "Testing" / "Python"), str(ROOT / "Logic")]
WINDOW = (1440, 940)
PAGE = (1320, 800)
PANEL_WIDTH = 470
SOFT_TISSUE = (-160.0, 240.0)  # HU
_ENOUGH_LETTERS = 30  # of a thought, to show that it is being written
_PATIENCE = 1800  # seconds for anything the models do: the machine may have other work


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scan", type=Path, required=True, help="NIfTI, NRRD …")
    parser.add_argument(
        "--slice", type=int, help="voxel index of the axial slice; the middle one if left out"
    )
    parser.add_argument(
        "--range",
        type=int,
        nargs=2,
        help="first and last slice of the whole-volume picture, as the panel counts",
    )
    parser.add_argument("--question", default="Segment the liver.")
    parser.add_argument("--out", type=Path, default=ROOT / "IBISSlicer" / "Resources" / "Screenshots")
    parser.add_argument("--example", type=Path, help="also write the run here, as the module's example")
    options = parser.parse_args()
    import browser
    import host

    obstacle = host.missing_parts() or browser.missing()
    if obstacle or host.agent_python() is None:
        print(obstacle or "no Python with the agent's packages (make venv)", file=sys.stderr)
        return 1
    logging.basicConfig(level=logging.WARNING)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ibis-screenshots-") as folder:
        panel = open_panel(Path(folder))
        page = take_slice(panel, options, Path(folder))
        take_page(page, options.out / "5-review.png", Path(folder))
        take_volume(panel, options)
        panel.host.quit()
    shrink(options.out)
    return 0


def open_panel(folder: Path) -> Any:
    """The module in a window of the size of the pictures, with the Python that has the models."""
    import host
    from slicer_panel import Panel

    slicer_host = host.start()
    slicer_host.resize(*WINDOW)
    panel = Panel(slicer_host, folder)
    slicer_host.window._set_panel_width(PANEL_WIDTH)
    panel.use_python(host.agent_python())
    return panel


def take_slice(panel: Any, options: argparse.Namespace, folder: Path) -> Path:
    """A question about a slice at four moments. Returns the review page of the run, written into `folder`."""
    slicer_host = panel.host
    show(panel, options)
    panel.ask(options.question)
    slicer_host.screenshot(options.out / "1-asked.png")

    # The second thought, so that the first one's mask and mark are in the picture too.
    slicer_host.press(panel.ui.stepButton)
    rest(panel)
    catch_thought(panel, options.out / "2-thinking.png")
    slicer_host.press(panel.ui.runButton)
    rest(panel)
    count = len(panel.rows())
    print(f"{count} steps. {panel.status} {panel.ui.answerLabel.text}", flush=True)
    panel.select(1)
    slicer_host.screenshot(options.out / "3-reviewing.png")

    panel.select(count)
    page = folder / "review.html"
    panel.logic.writeReview(str(page))
    if options.example:
        options.example.parent.mkdir(parents=True, exist_ok=True)
        options.example.write_text(json.dumps(panel.run.record.trajectory(), indent=1) + "\n", "utf-8")
    slicer_host.press(panel.ui.acceptButton)
    slicer_host.screenshot(options.out / "4-accepted.png")
    return page


def take_volume(panel: Any, options: argparse.Namespace) -> None:
    """The same question about the whole volume, when the mask has been followed through it."""
    panel.host.close_scene()
    show(panel, options)
    panel.ui.questionEdit.setPlainText("")
    panel.ask(options.question)
    panel.ui.scopeSelector.setCurrentIndex(panel.ui.scopeSelector.findData("volume"))
    if options.range:
        panel.ui.firstSpinBox.setValue(options.range[0])
        panel.ui.lastSpinBox.setValue(options.range[1])
    panel.host.press(panel.ui.runButton)
    rest(panel)
    print(f"{len(panel.rows())} steps. {panel.status} {panel.ui.answerLabel.text}", flush=True)
    panel.select(1 + [step["kind"] for step in panel.logic.steps].index("grow"))
    panel.host.screenshot(options.out / "6-volume.png")


def show(panel: Any, options: argparse.Namespace) -> None:
    """Load the scan and put its slice, in a soft tissue window, into the middle of the three views."""
    volume = panel.host.load_volume(options.scan)
    low, high = SOFT_TISSUE
    volume.GetDisplayNode().AutoWindowLevelOff()
    volume.GetDisplayNode().SetWindowLevel(high - low, (high + low) / 2)
    index = volume.GetImageData().GetDimensions()[2] // 2 if options.slice is None else options.slice
    panel.show_slice(volume, index)


def rest(panel: Any) -> None:
    """Wait until nothing is under way."""
    panel.host.wait_until(lambda: not panel.logic.isWorking, _PATIENCE, "the agent")
    panel.host.process_events()


def catch_thought(panel: Any, picture: Path) -> None:
    """Take the picture at the very moment when the next thought is half written."""
    count = len(panel.rows())
    taken: list[bool] = []

    def on_text(_: str) -> None:
        written = len(panel.thought)
        if not taken and len(panel.rows()) == count and written > _ENOUGH_LETTERS:
            taken.append(panel.host.window.grab().save(str(picture)))

    panel.logic.textArrived.connect(on_text)


def take_page(page: Path, picture: Path, profile: Path) -> None:
    """The review page as a browser shows it, at the second step."""
    from browser import Browser

    with Browser(profile / "chromium", size=PAGE) as window:
        window.open(page)
        window.press("home", "right", "right")
        window.screenshot(picture)


def shrink(folder: Path) -> None:
    """256 colours a picture: nobody sees it, and the repository stays small."""
    from PIL import Image

    for path in sorted(folder.glob("*.png")):
        picture = Image.open(path).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
        picture.save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
