"""One scan of a cohort from its request to its record: a run on a slice or over a volume, with models loaded before."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ibis_agent.cli import runner
from ibis_agent.cli.request import Request
from ibis_agent.cli.runner import TRAJECTORY_NAME, load_policy, load_segmenter


@dataclass(frozen=True)
class Question:
    """What all scans of a cohort are asked; `base` is without a scan."""

    base: Request
    volume: bool = False
    looks: int | None = None
    follow: Any = "auto"


class Job:
    """A scan that was read and may be worked on. Making one raises IbisError, and reads the scan."""

    def __init__(self, asked: Question) -> None:
        self._job: Any
        if asked.volume:
            from ibis_agent.cli.volume_job import VolumeJob, VolumeRequest

            self._job = VolumeJob(VolumeRequest(asked.base, looks=asked.looks, follow=asked.follow))
            self.folder: Path = self._job.folder
        else:
            self._job = runner.Run(asked.base)
            self.folder = self._job.job.folder

    def run(self, policy: Any, segmenter: Any) -> None:
        """Work to the end, and write everything."""
        self._job.begin(policy, segmenter)
        if hasattr(self._job, "stack"):
            self._job.run.run()
        else:
            while self._job.episode.status == "ready":
                self._job.step()
        self._job.finish()

    def record(self) -> dict[str, Any]:
        """What was written as trajectory.json."""
        return dict(json.loads((self.folder / TRAJECTORY_NAME).read_text("utf-8")))

    def values(self) -> tuple[np.ndarray | None, bool]:
        """The scan's grey values, (I, J, K), where they are at hand, and whether they are Hounsfield units."""
        if not hasattr(self._job, "stack"):
            return None, False
        scan = self._job.stack.scan
        return scan.voxels, scan.may_be_ct


def load_models(asked: Question) -> tuple[Any, Any]:
    """The policy and the segmenter. Raises ModelError."""
    from dataclasses import replace

    import ibis_agent.policy as policies

    segmenter = load_segmenter(asked.base)
    found = policies.find(asked.base.policy)
    policy = load_policy(found, asked.base)
    if asked.base.history is not None:
        policy.card = replace(policy.card, history=asked.base.history)
    return policy, segmenter
