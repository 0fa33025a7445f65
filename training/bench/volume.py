"""Time of propagation through a volume and of a correction, compared with sam2's own video predictor.

    python -m training.bench.volume [--json F] [--segmenter FILE] [--slices 100] [--clock cpu]

One click in the middle of a phantom's liver is propagated both ways to the ends of the stack; then a corrective click
is made a fifth of the stack further on, and what depends on it is propagated again. The same clicks and slices go
through the video predictor of the sam2 package as intended: it keeps no features, so every pass encodes every slice,
and it propagates corrections to the ends. Both use the same weights in one process. On the CPU, times are CPU time,
because wall time would depend on other processes.
"""

from __future__ import annotations

import contextlib
import copy
import io
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ibis_agent.actions import Click
from ibis_agent.files import write_json
from ibis_agent.scan.picture import apply_window
from ibis_agent.segmenter.embeddings import KeptEmbeddings
from ibis_agent.segmenter.sam2.segmenter import Sam2Segmenter
from ibis_agent.segmenter.sam2.source import Sam2File
from sam2.sam2_video_predictor import SAM2VideoPredictor

from training.bench.clock import use_processor_time
from training.common.commands import check_output, command_parser, ending
from training.phantoms.phantom import make_volume
from training.trajectories.clicks import next_click

WINDOW = (-160.0, 240.0)


class PreparedSlices:
    """Slices as frames for sam2's predictor: (3, S, S), prepared when needed."""

    def __init__(self, segmenter: Sam2Segmenter, grey: np.ndarray) -> None:
        self._segmenter, self._grey = segmenter, grey

    def __len__(self) -> int:
        return len(self._grey)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._segmenter.prepare(as_rgb(self._grey[index]))


class VolumePredictor(SAM2VideoPredictor):
    """sam2's video predictor on slices in memory instead of a folder of JPEGs."""

    @torch.inference_mode()
    def init_state(self, frames: PreparedSlices, height: int, width: int) -> dict[str, Any]:
        return {
            "images": frames,
            "num_frames": len(frames),
            "offload_video_to_cpu": True,
            "offload_state_to_cpu": False,
            "video_height": height,
            "video_width": width,
            "device": self.device,
            "storage_device": self.device,
            "point_inputs_per_obj": {},
            "mask_inputs_per_obj": {},
            "cached_features": {},
            "constants": {},
            "obj_id_to_idx": OrderedDict(),
            "obj_idx_to_id": OrderedDict(),
            "obj_ids": [],
            "output_dict_per_obj": {},
            "temp_output_dict_per_obj": {},
            "frames_tracked_per_obj": {},
        }


def plain_predictor(segmenter: Sam2Segmenter) -> VolumePredictor:
    """sam2's predictor with the segmenter's network and weights; corrected slices are conditioning frames."""
    network = copy.copy(segmenter.model)
    # The predictor only adds methods and these settings to the network, so the weights are not copied.
    network.__class__ = VolumePredictor
    network.fill_hole_area, network.non_overlap_masks = 0, False
    network.clear_non_cond_mem_around_input, network.add_all_frames_to_correct_as_cond = False, True
    return network


def as_rgb(grey: np.ndarray) -> np.ndarray:
    """(H, W) uint8 → (H, W, 3)."""
    return np.repeat(grey[:, :, None], 3, axis=2)


def phantom_stack(slices: int, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """((N, H, W) uint8 windowed axial slices of a phantom in radiological orientation, (N, H, W) bool liver)."""
    made = make_volume(seed, (2.5, 2.5, 150.0 / slices), (-62.0, 88.0))
    grey = apply_window(made.hu, WINDOW)[::-1, ::-1].transpose(2, 1, 0)[:slices]
    truth = made.masks["liver"][::-1, ::-1].transpose(2, 1, 0)[:slices]
    return np.ascontiguousarray(grey), np.ascontiguousarray(truth)


def measure_volume(segmenter: Sam2Segmenter, slices: int) -> dict[str, Any]:
    """The figures that `--json` writes, in seconds: wall time on CUDA, CPU time on the CPU."""
    now = time.perf_counter if segmenter.device.type == "cuda" else time.process_time
    grey, truth = phantom_stack(slices)
    count, height, width = grey.shape
    key = int(truth.sum((1, 2)).argmax())
    first = next_click(None, truth[key])
    assert first is not None
    spread, warm = (
        segmenter.follower(lambda n: as_rgb(grey[n]), count, (height, width), "memory") for _ in range(2)
    )
    warm.anchor(key, [first])
    segmenter.kept = kept = KeptEmbeddings()

    begun = now()
    spread.anchor(key, [first])
    for direction, last in ((1, count - 1), (-1, 0)):
        for _ in spread.follow(key, direction, last):
            pass
    _wait(segmenter)
    passed, encoded = now() - begun, kept.made

    wrong = min(count - 1, key + count // 5)
    standing = spread.standing(wrong)
    assert standing is not None
    goal = truth[wrong] if truth[wrong].any() else truth[key]
    second = next_click(standing.mask, goal) or Click(first.x, first.y)
    begun = now()
    spread.anchor(wrong, [second], standing.logits)
    _wait(segmenter)
    clicked = now() - begun
    visited = [
        found.index
        for step, end in ((1, count - 1), (-1, 0))
        for found in spread.follow(wrong, step, end, settle=True)
    ]
    _wait(segmenter)
    corrected = now() - begun
    encoded_again = kept.made - encoded

    begun = now()
    for way in ((1, count - 1), (-1, 0)):
        for _ in spread.follow(wrong, *way):
            pass
    _wait(segmenter)
    everything = now() - begun

    theirs = plain_predictor(segmenter)
    begun = now()
    state = theirs.init_state(PreparedSlices(segmenter, grey), height, width)
    _ask(theirs, state, key, first, (height, width))
    _wait(segmenter)
    plain = now() - begun
    begun = now()
    _ask(theirs, state, wrong, second, (height, width))
    _wait(segmenter)
    plain_again = now() - begun
    return {
        "segmenter": dict(segmenter.identity),
        "slices": count,
        "first_pass": passed,
        "correction": {
            "slice": clicked,
            "seconds": corrected,
            "visited": len(visited),
            "encoded": encoded_again,
            "of_first_pass": corrected / passed,
            "up_to_anchor_and_end": everything,
        },
        "sam2": {"first_pass": plain, "correction": plain_again},
        "features_bytes": kept.held,
    }


def table_of(result: dict[str, Any]) -> str:
    """A table for the terminal."""
    mine, theirs, count = result["correction"], result["sam2"], result["slices"]
    rows = [
        (f"first propagation, {count} slices", result["first_pass"], theirs["first_pass"]),
        (f"after a correction ({mine['visited']} slices redone)", mine["seconds"], theirs["correction"]),
        ("the corrected slice only", mine["slice"], None),
        ("… to the next anchor and the end", mine["up_to_anchor_and_end"], None),
    ]
    lines = [f"{'seconds':44}{'ours':>9}{'sam2':>9}{'ratio':>8}"]
    for name, one, other in rows:
        lines.append(f"{name:44}{one:9.2f}" + ("" if other is None else f"{other:9.2f}{other / one:8.2f}"))
    lines.append(f"{'a correction, relative to the first pass':44}{mine['of_first_pass']:9.1%}")
    lines.append(f"{'features kept, MB':44}{result['features_bytes'] / 1e6:9.1f}")
    return "\n".join(lines)


def _ask(
    predictor: VolumePredictor, state: dict[str, Any], index: int, click: Click, size: tuple[int, int]
) -> None:
    """A click propagated both ways through the whole stack by sam2's own predictor."""
    points = np.array([[min(int(click.x * size[1]), size[1] - 1), min(int(click.y * size[0]), size[0] - 1)]])
    sign = np.array([int(click.positive)], np.int32)
    predictor.add_new_points_or_box(state, index, 1, points.astype(np.float32), sign)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        for reverse in (False, True):
            for _ in predictor.propagate_in_video(state, start_frame_idx=index, reverse=reverse):
                pass


def _wait(segmenter: Sam2Segmenter) -> None:
    if segmenter.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = command_parser("bench.volume", __doc__)
    parser.add_argument("--segmenter", type=Path, help="a checkpoint (default: the demo segmenter)")
    parser.add_argument("--segmenter-config", help="its architecture, if the checkpoint does not say")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="see training.bench.clock")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    chosen = parser.parse_args()
    if chosen.clock == "cpu":
        use_processor_time()
    with ending():
        check_output(chosen.json)
        segmenter = Sam2File(chosen.segmenter, chosen.segmenter_config).open(chosen.device)
        result = measure_volume(segmenter, chosen.slices)
    print(table_of(result))
    if chosen.json:
        write_json(chosen.json, result)


if __name__ == "__main__":
    main()
