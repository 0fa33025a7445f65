"""Pictures of the module at four moments, for the README: `make screenshots`.

    .venv-host/bin/python Testing/screenshots.py [--scan FILE] [--slice N] [--question TEXT] [--out FOLDER]

The simulated host draws them: real slice views and the module's real panel, but not 3D Slicer; a strip on top says so.
The agent is the demonstration policy and segmenter, run by the Python that has them, on a phantom or on a CT.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT / "Testing" / "Python"), str(ROOT / "Logic")]
SIZE = (1440, 1010)
PANEL_WIDTH = 470


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scan", type=Path, required=True, help="NIfTI, NRRD …")
    parser.add_argument(
        "--slice", type=int, help="voxel index of the axial slice; the middle one if left out"
    )
    parser.add_argument("--question", default="Segment the liver.")
    parser.add_argument("--window", type=float, nargs=2, default=(-160, 240), metavar=("MIN", "MAX"))
    parser.add_argument(
        "--script", type=Path, help="play a script instead of the models (see worker_script.py)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "IBISSlicer" / "Resources" / "Screenshots")
    options = parser.parse_args()
    import host

    if host.missing_parts() or host.agent_python() is None:
        print(host.missing_parts() or "no Python with the agent's packages (make venv)", file=sys.stderr)
        return 1
    logging.basicConfig(level=logging.WARNING)
    options.out.mkdir(parents=True, exist_ok=True)
    take(host, options)
    return 0


def take(host: Any, options: argparse.Namespace) -> None:
    from slicer_panel import Panel

    slicer_host = host.start()
    slicer_host.window.resize(*SIZE)
    slicer_host.window._set_panel_width(PANEL_WIDTH)
    panel = Panel(slicer_host, Path(tempfile.mkdtemp()))
    panel.use_python(host.agent_python())
    if options.script:
        panel.logic.worker.arguments = ["--script", str(options.script.resolve())]
    volume = slicer_host.load_volume(options.scan)
    low, high = options.window
    volume.GetDisplayNode().AutoWindowLevelOff()
    volume.GetDisplayNode().SetWindowLevel(high - low, (high + low) / 2)
    panel.show_slice(
        volume, volume.GetImageData().GetDimensions()[2] // 2 if options.slice is None else options.slice
    )
    panel.ask(options.question)
    slicer_host.screenshot(options.out / "1-asked.png")
    panel.logic.worker.load(wait=True)
    slicer_host.press(panel.ui.stepButton)
    slicer_host.wait_until(lambda: panel.ui.thoughtEdit.plainText and not panel.rows(), 300, "a thought")
    pause(slicer_host, 0.3)
    slicer_host.screenshot(options.out / "2-thinking.png")
    panel.rest()
    panel.run_all()
    print(f"{len(panel.rows())} steps; {panel.status}")
    panel.select(min(2, len(panel.rows())))
    slicer_host.screenshot(options.out / "3-reviewing.png")
    panel.select(len(panel.rows()))
    slicer_host.press(panel.ui.acceptButton)
    slicer_host.screenshot(options.out / "4-accepted.png")
    slicer_host.quit()


def pause(slicer_host: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    slicer_host.wait_until(lambda: time.monotonic() > end, seconds + 5)


if __name__ == "__main__":
    sys.exit(main())
