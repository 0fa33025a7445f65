"""A Ray cluster on this machine, for tests that do not depend on how busy it is."""

from __future__ import annotations

from typing import Any

import pytest

PATIENCE = {
    "RAY_raylet_start_wait_time_s": "90",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_enable_metrics_collection": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_enable_worker_prestart": "0",  # no process before one is asked for
    "RAY_prestart_worker_first_driver": "0",
}
_TRIES = 4


def begin(ray: Any, **options: Any) -> None:
    """`ray.init` with PATIENCE in the environment; skips the test where Ray does not come up.

    Ray's own helper has 15 s to start, whatever it is told, and takes the whole cluster down if it is slower.
    """
    for n in range(_TRIES):
        try:
            ray.init(include_dashboard=False, log_to_driver=False, **options)
            return
        except Exception as error:  # Ray has no class of its own for it
            ray.shutdown()
            if n + 1 == _TRIES:
                pytest.skip(f"Ray does not come up on this machine in time: {error}")
