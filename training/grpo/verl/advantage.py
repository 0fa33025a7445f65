"""The advantages of training.grpo.credit as verl's estimator: algorithm.adv_estimator=ibis_state.

verl imports this module if VERL_USE_EXTERNAL_MODULES names it, as launch.sh does. How a turn's state gets here is
explained in coding.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est

from training.grpo.verl.coding import advantages_of

NAME = "ibis_state"


@register_adv_est(NAME)
def state_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, index: Any = None, **_: Any
) -> tuple[Tensor, Tensor]:
    """((B, L), (B, L)): the advantages, twice, as verl also wants returns. index: (B,) ids of the questions."""
    found = advantages_of(token_level_rewards, response_mask, index)
    return found, found
