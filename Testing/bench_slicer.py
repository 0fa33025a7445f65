"""What opening the module and one step cost in Slicer's own process: part of `make bench`.

The volume has 512 × 512 × 300 voxels. A step counts from its arrival to the request for a new picture: mask decoded,
segment and marks updated, run saved to its text node, panel filled. Rendering comes on top (here in software, without a
graphics card, so slower than elsewhere).
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
LIMITS = {"opening the module, ms": 1000, "step, median ms": 50}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    import host

    if host.missing_parts():
        print(host.missing_parts(), file=sys.stderr)
        return 1
    figures = measure(host.start(), options.steps)
    for name, value in figures.items():
        print(f"{name:>34}: {value:8.1f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0 if all(figures[name] < limit for name, limit in LIMITS.items()) else 2


def measure(slicer_host: object, count: int) -> dict[str, float]:
    import slicer
    from ibis_agent.actions import Click
    from ibis_agent.episode import Step
    from ibis_agent.geometry import slice_geometry
    from ibis_agent.picture import Picture
    from ibis_agent.trajectory import Trajectory, step_to_json
    from slicer_panel import Panel

    begun = time.perf_counter()
    panel = Panel(slicer_host, Path(tempfile.mkdtemp()))
    opening = (time.perf_counter() - begun) * 1000
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Bench")
    slicer.util.updateVolumeFromArray(volume, np.zeros(SHAPE[::-1], np.int16))
    volume.CreateDefaultDisplayNodes()
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    panel.host.process_events()
    run = panel.logic.ask(volume, "Segment the liver.", axis=2, index=150)
    geometry = slice_geometry(SHAPE, np.array(run._image["affine"]), "z", 150)
    noise = np.random.default_rng(0).integers(0, 255, (512, 512), np.uint8)
    picture = Picture(np.repeat(noise[:, :, None], 3, axis=2), geometry, (-160.0, 240.0))
    run.record.open(Trajectory(picture, "Segment the liver.", ()).head())
    rows, cols = np.ogrid[:512, :512]
    steps, renders = [], []
    for n in range(1, count + 1):
        mask = (
            np.hypot(rows - 256, cols - 220)
            < 40 + 60 * np.sin(np.arctan2(rows - 256, cols - 220) * 9) + 5 * n
        )
        click = Click(0.2 + 0.02 * n, 0.4, n % 3 != 0)
        step = Step(n, click, "policy", mask, None, 0.9, "because " * 30, "", "", {"total": 1.0})
        message = {**step_to_json(step, geometry), "uid": uuid.uuid4().hex}
        begun = time.perf_counter()
        run.record.extend(run.record.after, message, {"status": "ready"})
        run.showLast()
        run.save()
        panel.logic.changed.emit()
        arrived = time.perf_counter()
        panel.host.process_events()
        steps.append((arrived - begun) * 1000)
        renders.append((time.perf_counter() - arrived) * 1000)
    steps, renders = steps[1:], renders[1:]  # the first one allocates
    return {
        "opening the module, ms": opening,
        "step, median ms": statistics.median(steps),
        "step, slowest ms": max(steps),
        "rendering three views, median ms": statistics.median(renders),
    }


if __name__ == "__main__":
    sys.exit(main())
