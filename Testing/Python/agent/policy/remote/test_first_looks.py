"""First looks at several slices go out to the server together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bright_volumes import NOTHING, disc, run_over
from chained_segmenter import ENDING
from chat_server import hostile, seeing, serving
from ibis_agent.errors import Cancelled, ModelError
from ibis_agent.run.action import Watch
from remote_servers import HASTY, http, pointing, remote


@pytest.fixture
def eyes() -> Callable[..., str]:
    """Clicks the bright thing where it is large."""

    def answer(rgb: np.ndarray, text: str) -> str:
        return (
            pointing()(rgb, text) if (rgb[:, :, 0] > 128).mean() > 0.05 and "so far" not in text else ENDING
        )

    return answer


def searched(url: str, together: int) -> Any:
    policy = remote(url)
    policy.together = together  # type: ignore[misc]
    run = run_over([disc(6) if 8 <= n <= 16 else NOTHING for n in range(24)], policy=policy)
    while run.key is None:
        run.step()
    return run


def test_first_looks_go_out_together_and_give_what_they_give_one_by_one(eyes: Callable[..., str]) -> None:
    several = threading.Event()
    plain = seeing(eyes)

    def respond(body: Any, send: Callable[[str], None]) -> tuple[int, int]:
        if server.busy > 1:
            several.set()
        several.wait(20)  # the first one waits for company
        return plain(body, send)

    with serving(respond) as server:
        fast = searched(server.url, 4)
        assert server.most_busy > 1
        slow = searched(server.url, 1)
        looks = [[(each.kind, each.index, each.words) for each in run.actions] for run in (fast, slow)]
        assert looks[0] == looks[1] and len(looks[0]) > 4
        assert np.array_equal(fast.mask(fast.key), slow.mask(slow.key))


def test_a_stop_during_first_looks_leaves_the_run_as_it_was_and_asks_anew(eyes: Callable[..., str]) -> None:
    released = threading.Event()
    plain = seeing(eyes)

    def respond(body: Any, send: Callable[[str], None]) -> tuple[int, int]:
        released.wait(60)
        return plain(body, send)

    with serving(respond) as server:
        run = run_over([disc(6)] * 12, policy=remote(server.url))
        with pytest.raises(Cancelled):
            run.step(Watch(cancelled=lambda: bool(server.bodies)))
        assert run.actions == ()
        released.set()
        run.step()
        assert len(run.actions) == 1


def test_a_failing_server_fails_the_look_and_the_run_stands() -> None:
    with hostile(lambda connection: (connection.sendall(http("400 Bad")), connection.close())) as url:
        run = run_over([disc(6)] * 12, policy=remote(url, patience=HASTY))
        with pytest.raises(ModelError, match="refused"):
            run.step()
        assert run.actions == () and run.status == "ready"
