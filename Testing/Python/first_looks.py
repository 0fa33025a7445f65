"""How long the search for a key slice takes with first looks together and one by one; a program.

python Testing/Python/first_looks.py [SECONDS]

The server is one of our own that takes SECONDS (1) for every reply, however many it is writing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from bright_volumes import NOTHING, disc, run_over
from chained_segmenter import ENDING, clicking
from chat_server import seeing, serving
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.remote.connection import Connection
from ibis_agent.policy.remote.remote import RemotePolicy


def answer(rgb: np.ndarray, text: str) -> str:
    return clicking(0.5, 0.5) if (rgb[:, :, 0] > 128).mean() > 0.05 and "so far" not in text else ENDING


def searched(together: int, seconds: float) -> tuple[float, int]:
    """How long it took, and how many looks it took, in a volume of 80 slices."""
    plain = seeing(answer)

    def slowly(body: dict[str, Any], send: Callable[[str], None]) -> tuple[int, int]:
        time.sleep(seconds)
        return plain(body, send)

    with serving(slowly) as server:
        policy = RemotePolicy(Connection(server.url, ""), "demo", ModelCard(name="served"))
        policy.together = together  # type: ignore[misc]
        run = run_over([disc(6) if 50 <= n <= 62 else NOTHING for n in range(80)], policy=policy)
        begun = time.monotonic()
        while run.key is None:
            run.step()
        return time.monotonic() - begun, len(server.bodies)


if __name__ == "__main__":
    wait = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    for count in (4, 1):
        took, looks = searched(count, wait)
        print(f"{count} at once: {took:.1f} s, {looks} looks")
