"""The clock of the benchmarks: wall time, or CPU time of this process."""

from __future__ import annotations

import time

import torch


def use_processor_time() -> None:
    """Make time.perf_counter count CPU time of this process, with one thread, also in the agent.

    On an idle core this equals wall time; on a busy one, wall time would include other processes. GPU time is not
    counted.
    """
    torch.set_num_threads(1)
    time.perf_counter = time.process_time
