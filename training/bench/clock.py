"""Which clock the benchmarks read: the one on the wall, or how long one core worked for this process."""

from __future__ import annotations

import time

import torch


def use_processor_time() -> None:
    """Let every clock, here and in the agent, tick with this process's work only, on one thread.

    On an idle core that is the time on the wall; on a busy one the wall's clock would measure the others.
    CUDA's work is not counted.
    """
    torch.set_num_threads(1)
    time.perf_counter = time.process_time
