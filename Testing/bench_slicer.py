"""What opening the module and one step cost in Slicer's own process: part of `make bench`.

The volume has 512 × 512 × 300 voxels. A step counts from the arrival of its line to the request for a new picture: mask
decoded, segment and marks updated, run saved to its text node, panel filled. Rendering comes on top (here in software,
without a graphics card, so slower than elsewhere). Processor time is what the limits are for: on a machine that does
other work as well, the clock on the wall tells of that work too.
Runs in the simulated host: real MRML and real slice views, stand-in widgets.

    .venv-host/bin/python Testing/bench_slicer.py [--steps 20] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT / "Testing" / "Python"), str(ROOT / "Logic")]
SHAPE = (512, 512, 300)
OPENING, STEP, DRAWING = "opening the module", "step", "drawing three views"
LIMITS_MS = {OPENING: 1000, STEP: 50}  # of processor time, medians


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    import host

    if host.missing_parts():
        print(host.missing_parts(), file=sys.stderr)
        return 1
    taken = measure(host.start(), options.steps)
    figures = {}
    print(f"{'milliseconds, median':>24} {'processor':>10} {'wall':>8}")
    for name, times in taken.items():
        processor, wall = (statistics.median(each) for each in zip(*times, strict=True))
        figures[name] = {"processor_ms": round(processor, 2), "wall_ms": round(wall, 2)}
        print(f"{name:>24} {processor:10.1f} {wall:8.1f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0 if all(figures[name]["processor_ms"] < limit for name, limit in LIMITS_MS.items()) else 2


class Watch:
    """Milliseconds since it was made or last read: (of the processor, on the wall)."""

    def __init__(self) -> None:
        self._begun = time.process_time(), time.perf_counter()

    def read(self) -> tuple[float, float]:
        before, self._begun = self._begun, (time.process_time(), time.perf_counter())
        return (self._begun[0] - before[0]) * 1000, (self._begun[1] - before[1]) * 1000


def measure(slicer_host: object, count: int) -> dict[str, list[tuple[float, float]]]:
    """What each took every time, as `Watch` tells it."""
    import slicer
    from ibis_agent.actions import Click
    from ibis_agent.engine.protocol import decode, encode
    from ibis_agent.record.steps import step_to_json
    from ibis_agent.record.trajectory import Trajectory
    from ibis_agent.run.episode import Step
    from ibis_agent.scan.geometry import slice_geometry
    from ibis_agent.scan.picture import Picture
    from slicer_panel import Panel

    watch = Watch()
    panel = Panel(slicer_host, Path(tempfile.mkdtemp()))
    opening = watch.read()
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Bench")
    slicer.util.updateVolumeFromArray(volume, np.zeros(SHAPE[::-1], np.int16))
    volume.CreateDefaultDisplayNodes()
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    panel.host.process_events()
    run = panel.logic.ask(volume, "Segment the liver.", axis=2, index=150)
    geometry = slice_geometry(SHAPE, np.array(run._image["affine"]), "z", 150)
    noise = np.random.default_rng(0).integers(0, 255, (512, 512), np.uint8)
    picture = Picture(np.repeat(noise[:, :, None], 3, axis=2), geometry, (-160.0, 240.0))
    run.record.open(Trajectory.of_slice(picture, "Segment the liver.", ()).head())
    rows, cols = np.ogrid[:512, :512]
    steps, drawings = [], []
    for n in range(1, count + 1):
        mask = (
            np.hypot(rows - 256, cols - 220)
            < 40 + 60 * np.sin(np.arctan2(rows - 256, cols - 220) * 9) + 5 * n
        )
        click = Click(0.2 + 0.02 * n, 0.4, n % 3 != 0)
        step = Step(n, click, "policy", mask, None, 0.9, "because " * 30, "", "", {"total": 1.0})
        record = {**step_to_json(step, geometry), "uid": uuid.uuid4().hex}
        line = encode({"event": "step", "step": record, "after": run.record.after, "status": "ready"})
        watch.read()
        message = decode(line, "event")
        run.record.extend(message["after"], message["step"], message)
        run.showLast()
        run.save()
        panel.logic.changed.emit()
        steps.append(watch.read())
        panel.host.process_events()
        drawings.append(watch.read())
    # The first one allocates.
    return {OPENING: [opening], STEP: steps[1:], DRAWING: drawings[1:]}


if __name__ == "__main__":
    sys.exit(main())
