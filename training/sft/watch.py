"""Evaluation during fine-tuning: greedy episodes on held-out questions, the best state, detection of collapse.

The loss on expert replies does not show that a policy no longer answers properly; episodes do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ibis_agent.mask.masks import decode_rle
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.training_contract import Chat
from ibis_agent.run.episode import Limits
from transformers import TrainerCallback

from training.common.best import BEST, Best
from training.rollouts.figures import figures_of
from training.rollouts.roller import Question, Roller
from training.rollouts.sampling import BatchPolicy
from training.sft.turn_data import Place, read_picture, read_record

_TURNS = 5


def held_questions(places: Sequence[Place], most: int) -> list[Question]:
    """At most `most` questions of held-out turns, evenly spread."""
    first = list({(place.folder, place.offset): place for place in places}.values())
    if len(first) > most:
        first = [first[int((n + 0.5) * len(first) / most)] for n in range(most)]
    found = []
    for place in first:
        record = read_record(place)
        shape = (int(record["height"]), int(record["width"]))
        truth = decode_rle(record.get("target_rle") or "", shape)
        picture = place.folder / record["image"]
        asked = (str(record["structure"]), str(record["question"]))
        found.append(Question(str(picture), read_picture(picture), *asked, np.asarray(truth)))
    return found


class Watch(TrainerCallback):
    """Runs episodes on held-out questions whenever the Trainer evaluates.

    share: training stops if their quality falls below this share of the best; 0: never.

    Attributes:
        best: the best state so far; collapsed: why training was stopped, or empty.
        figures: of the last evaluation, "held_…".
    """

    def __init__(
        self,
        questions: Sequence[Question],
        segmenter: Any,
        chat: Chat,
        card: ModelCard,
        out: Path,
        share: float,
    ) -> None:
        self._questions, self._segmenter = list(questions), segmenter
        self._chat, self._card = chat, card
        self.best = Best(out / BEST, share)
        self.collapsed = ""
        self.figures: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and not state.global_step:
            self.measure(model, 0)

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> Any:
        if state.is_world_process_zero:
            self.measure(model, state.global_step)
            state.log_history.append({"step": state.global_step, **self.figures})
        stop = bool(self.collapsed)
        if args.world_size > 1:  # other processes wait here, to stop at the same step
            flag = torch.tensor([int(stop)], device=args.device)
            torch.distributed.broadcast(flag, 0)
            stop = bool(flag.item())
        if stop:
            control.should_training_stop = True
        return control

    @torch.no_grad()
    def measure(self, model: Any, step: int) -> None:
        """Run greedy episodes with the current model."""
        bare = model.get_base_model() if hasattr(model, "get_base_model") else model
        was, kept = model.training, bare.config.use_cache
        model.eval()
        try:
            policy = BatchPolicy(bare, self._chat, self._card)
            half = bare.device.type == "cuda" and torch.cuda.is_bf16_supported()
            with torch.autocast(bare.device.type, torch.bfloat16, enabled=half):
                roller = Roller(policy, self._segmenter, Limits(max_turns=_TURNS))
                groups = roller.run(self._questions, 1, 0.0)
        finally:
            model.train(was)
            bare.config.use_cache = kept
        self.figures = {f"held_{k}": v for k, v in figures_of([each for (each,) in groups]).items()}
        self.collapsed = self.best.note(step, self.figures, trained_of(model))


def trained_of(model: Any) -> dict[str, torch.Tensor]:
    """The trainable parameters by name."""
    return {name: each for name, each in model.named_parameters() if each.requires_grad}
