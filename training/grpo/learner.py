"""The trainable policy and one update of it: from an update's rollouts to steps of the optimiser.

    learner = Learner(settings, found, card)
    figures = learner.learn(groups, update=0)      # advantages, clipped objective, optimiser steps

Random numbers depend only on the seed and the update's number. The training loop is in train, advantages in credit,
the loss of a token in objective.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import ibis_agent.policy as policies
import numpy as np
import torch
from ibis_agent.errors import InputError
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.folder import PolicyFolder
from torch import Tensor, nn

from training.common.resuming import learning_rate
from training.grpo.credit import advantages, credit_figures
from training.grpo.objective import divergence, importance, shares, surrogate
from training.grpo.settings import GrpoSettings
from training.rollouts.roller import Rollout, RolloutTurn
from training.rollouts.sampling import BatchPolicy, Request, Sample
from training.sft.settings import SftSettings
from training.sft.train import device_of, trainable_model


class Learner:
    """The policy, its trainable parameters and the optimiser.

    Attributes:
        whole: the model, including its adapter.
        policy: the same model, as a BatchPolicy that samples and scores replies.
        trained: the trainable parameters by name; optimiser: their AdamW.
    """

    def __init__(self, settings: GrpoSettings, found: PolicyFolder, card: ModelCard) -> None:
        """Loads the model onto the settings' device. Raises IbisError."""
        self.settings, self.card = settings, card
        device, self.precision = device_of(settings.device, settings.precision)
        torch.manual_seed(settings.seed)  # LoRA's matrices start from random numbers
        as_sft = SftSettings(
            settings.model, (), settings.out, tune=settings.tune, lora=settings.lora, vision=settings.vision
        )
        self.whole: Any = trainable_model(as_sft, found, device, self.precision).eval()
        model = self.whole.get_base_model() if settings.tune == "lora" else self.whole
        self.policy = BatchPolicy(model, policies.trainable(settings.model).chat(card), card)
        self._fixed = self.policy
        if settings.kl and settings.tune == "full":
            fixed = trainable_model(as_sft, found, device, self.precision).eval().requires_grad_(False)
            self._fixed = BatchPolicy(fixed, self.policy.chat, card)
        self.trained = {name: p for name, p in self.whole.named_parameters() if p.requires_grad}
        self.optimiser = torch.optim.AdamW(
            self.trained.values(), lr=settings.rate, weight_decay=settings.weight_decay
        )
        self._before: dict[int, Tensor] = {}

    def learn(self, groups: Sequence[Sequence[Rollout]], update: int) -> dict[str, float]:
        """Learn from the groups of update number `update` (from 0) and return figures for the curves."""
        settings = self.settings
        values = advantages(groups, settings.rewards)
        turns: list[tuple[RolloutTurn, float]] = []
        for group, mine in zip(groups, values, strict=True):
            for rollout, each in zip(group, mine, strict=True):
                turns += list(zip(rollout.turns, each.tolist(), strict=True))[rollout.own :]
        self._before = {}
        if settings.importance_cap:
            self._score_before([turn for turn, value in turns if value or settings.kl])
        chances = np.concatenate([turn.said.logprobs for turn, _ in turns])
        self._set_rate(update)
        sums = {"clipped": 0.0, "kl": 0.0, "gradient": 0.0, "tokens": 0.0, "steps": 0.0}
        rng = np.random.default_rng([settings.seed, update, 1])
        for _ in range(settings.epochs):
            for part in _parts(turns, settings.minibatches, rng):
                self.step(part, sums, update)
        tokens, steps = max(sums.pop("tokens"), 1.0), max(sums.pop("steps"), 1.0)
        return {
            "clipped": sums["clipped"] / tokens,
            "gradient": sums["gradient"] / steps,
            "entropy": -float(chances.mean()),
            "turns_learned": float(sum(bool(value) for _, value in turns)),
            **({"kl": sums["kl"] / tokens} if settings.kl else {}),
            **credit_figures(groups, values),
        }

    def step(self, turns: Sequence[tuple[RolloutTurn, float]], sums: dict[str, float], update: int) -> None:
        """One optimiser step on `turns`, averaged as objective.shares says. Adds its figures to `sums`.

        Turns with zero advantage are counted in the average but not computed; the loss is the same.
        Raises InputError if the gradient is not finite.
        """
        settings = self.settings
        lengths = [len(turn.said.ids) for turn, _ in turns]
        count, each_share = sum(lengths), shares(lengths, settings.average, self.card.max_new_tokens)
        share_of = {id(turn.said): share for (turn, _), share in zip(turns, each_share, strict=True)}
        if not settings.kl:
            turns = [(turn, value) for turn, value in turns if value]
        if not turns:
            return
        # The same reply to the same request is computed once.
        alike: dict[tuple[bytes, tuple[int, ...]], list[tuple[Sample, float]]] = {}
        said: list[tuple[Request, tuple[int, ...]]] = []
        for turn, value in turns:
            assert turn.request is not None
            key = (turn.request.key, turn.said.ids)
            if key not in alike:
                said.append((turn.request, turn.said.ids))
            alike.setdefault(key, []).append((turn.said, value))
        several = list(alike.values())
        self.optimiser.zero_grad(set_to_none=True)
        for batch in self.policy.batches(said, settings.tokens):
            mine = [said[n] for n in batch]
            with self.computing():
                new = self.policy.score(mine, settings.temperature)
            fixed = self._reference(mine) if settings.kl else None
            total = torch.zeros((), device=self.policy.device)
            for k, n in enumerate(batch):
                for sample, value in several[n]:
                    old = torch.from_numpy(sample.logprobs).to(new[k].device)
                    weight = None
                    if settings.importance_cap:
                        before = self._before[id(sample)]
                        weight, old = importance(before, old, settings.importance_cap), before
                    clip = (settings.clip_low, settings.clip_high, settings.ratio)
                    each, held = surrogate(new[k], old, value, *clip)
                    each = each if weight is None else each * weight
                    sums["clipped"] += float(held.sum())
                    if fixed is not None:
                        apart = divergence(new[k], fixed[k])
                        each = each + settings.kl * apart
                        sums["kl"] += float(apart.detach().sum())
                    total = total + each.sum() * share_of[id(sample)]
            total.backward()
        gradient = nn.utils.clip_grad_norm_(self.trained.values(), settings.clip)
        if not bool(torch.isfinite(gradient)):
            raise InputError(
                "the gradient is not finite: training has diverged",
                file=settings.out,
                value=f"update {update}",
                remedy="Start again with a lower learning rate (rate).",
            )
        self.optimiser.step()
        if settings.vision:
            self.policy.forget_pictures()
        sums["tokens"] += count
        sums["steps"] += 1
        sums["gradient"] += float(gradient)

    @torch.no_grad()
    def _score_before(self, turns: Sequence[RolloutTurn]) -> None:
        """Score this update's replies with the model before it learns."""
        said = [(turn.request, turn.said.ids) for turn in turns if turn.request is not None]
        for batch in self.policy.batches(said, self.settings.tokens):
            with self.computing():
                scores = self.policy.score([said[n] for n in batch], self.settings.temperature)
            self._before.update((id(turns[n].said), score) for n, score in zip(batch, scores, strict=True))

    @torch.no_grad()
    def _reference(self, said: Sequence[Any]) -> list[Tensor]:
        """Log-probabilities under the model that training started from."""
        off = self.whole.disable_adapter() if self.settings.tune == "lora" else contextlib.nullcontext()
        if self.settings.tune == "lora" and self.settings.vision:
            self.policy.forget_pictures()
        with off, self.computing():
            return self._fixed.score(said, self.settings.temperature)

    def computing(self) -> Any:
        """Autocast to bf16 if that is the precision; the weights stay fp32."""
        if self.precision != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.policy.device.type, torch.bfloat16)

    def _set_rate(self, update: int) -> None:
        settings = self.settings
        rate = learning_rate(update, settings.updates, settings.rate, settings.warmup, floor=0.1)
        for group in self.optimiser.param_groups:
            group["lr"] = rate


def _parts(
    turns: Sequence[tuple[RolloutTurn, float]], parts: int, rng: np.random.Generator
) -> list[list[tuple[RolloutTurn, float]]]:
    """Split into parts of similar size. Turns with the same request stay together: they share computation."""
    together: dict[bytes, list[tuple[RolloutTurn, float]]] = {}
    for turn, value in turns:
        assert turn.request is not None
        together.setdefault(turn.request.key, []).append((turn, value))
    groups = list(together.values())
    found: list[list[tuple[RolloutTurn, float]]] = [[] for _ in range(parts)]
    for n in rng.permutation(len(groups)):
        min(found, key=len).extend(groups[n])
    return [part for part in found if part]
