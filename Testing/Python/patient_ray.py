"""A Ray cluster on this machine, for tests: it comes up however busy the machine is. Imports no Ray."""

from __future__ import annotations

# Ray takes a slow start of its own helpers for a failure, and its metrics helper for indispensable.
PATIENCE = {
    "RAY_raylet_start_wait_time_s": "600",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_enable_metrics_collection": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}
