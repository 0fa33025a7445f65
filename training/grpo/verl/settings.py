"""What tool.yaml may contain, checked. Does not need verl.

Not in reward, because verl loads that file by its path, where defining a dataclass fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ibis_agent.errors import InputError

from training.common.settings import setting, settings_from
from training.grpo.settings import RewardSettings, check_rewards
from training.grpo.verl.coding import LEAST


@dataclass(frozen=True)
class ToolSettings:
    """The `config` of tool.yaml, explained there. Also checks the rewards given to `compute_score`."""

    type: str = "native"
    segmenter: str | None = None
    device: str | None = None
    actors: int = setting(0, least=0)
    share: float = setting(0.0, least=0, most=1)
    rewards: RewardSettings = field(default_factory=RewardSettings)


def tool_settings(values: Mapping[str, Any], file: str | None = None) -> ToolSettings:
    """The checked settings. Raises InputError, also for keys of `rewards` that only training.grpo uses."""
    found = settings_from(values, ToolSettings, file)
    for key in ("credit", "divisor", "least"):
        if key in (given := values.get("rewards") or {}):
            raise InputError(
                f"rewards.{key} has no effect in verl: its estimator compares states, {LEAST} turns or more, and "
                "divides by the batch's deviation",
                file=file,
                value=given[key],
                remedy="Remove it.",
            )
    check_rewards(found.rewards, file)
    return found
