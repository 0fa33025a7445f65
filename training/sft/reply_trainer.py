"""transformers' Trainer for replies: loss on the policy's tokens, curves, a clean stop, complete checkpoints.

The Trainer provides the steps, the schedule, mixed precision, several devices and resuming.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ibis_agent.policy as policies
import torch
import torch.nn.functional as F
from ibis_agent.policy.language import Language
from ibis_agent.policy.training_contract import Chat, Encoded
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback

from training.common.resuming import Curves
from training.rollouts.samples import IGNORED, collate, where_said

_WHOLE = "whole"
_PLOT_EVERY = 60  # seconds
_SHOWN = {
    "loss": "loss",
    "accuracy": "accuracy",
    "grad_norm": "gradient",
    "learning_rate": "rate",
    "eval_loss": "held_loss",
    "eval_accuracy": "held_accuracy",
}


class Batches:
    """Collates samples into a batch, with the weight of every token in the loss.

    digits: weight of the digits of coordinates. They are few of a reply's tokens, but all the segmenter gets of it.
    """

    def __init__(self, chat: Chat, language: Language, digits: float = 1.0) -> None:
        self._chat, self._language, self._digits = chat, language, digits
        self._pad = next(iter(sorted(chat.stops)))

    def __call__(self, samples: Sequence[Encoded]) -> dict[str, Tensor]:
        batch = collate(samples, self._pad)
        batch["weights"] = (batch["labels"] != IGNORED).float()
        if self._digits != 1.0:
            for row, sample in enumerate(samples):
                batch["weights"][row, : len(sample.ids)] *= self._of(sample)
        return batch

    def _of(self, sample: Encoded) -> Tensor:
        weights = torch.ones(len(sample.ids))
        start = len(sample.ids) - int(sample.learn.sum())
        pieces = [self._chat.decode([int(token)]) for token in sample.ids[start:]]
        text = "".join(pieces)
        action = self._language.place.search(text)
        at = 0
        for number, piece in enumerate(pieces):
            inside = action is not None and action.start() <= at < action.end()
            if inside and any(letter.isdigit() for letter in piece):
                weights[start + number] = self._digits
            at += len(piece)
        return weights


class ReplyTrainer(Trainer):
    """Computes the logits of replies only; the loss is the mean over their tokens in an optimiser step.

    Every token of a step has the same weight, however the step is split into batches and devices. `accuracy` is
    the share of tokens that greedy decoding predicts correctly, given the ones before.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.compute_loss_func = self._loss
        self._weights: Tensor | None = None
        self._right = {True: [0, 0], False: [0, 0]}

    def get_batch_samples(self, *given: Any, **named: Any) -> Any:
        """No batch after the last step: resumed from its last checkpoint, the Trainer would do one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(*given, **named)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = dict(inputs)
        keep, wanted = where_said(inputs["labels"])
        self._weights = inputs.pop("weights")[:, 1:][:, keep]
        inputs.update(labels=wanted, logits_to_keep=keep, use_cache=False)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        assert self._weights is not None
        logits = outputs.logits.float()
        said = labels != IGNORED
        each = F.cross_entropy(logits[said], labels[said], reduction="none") * self._weights[said]
        assert self.model is not None
        right = self._right[self.model.training]
        right[0] += int((logits[said].argmax(-1) == labels[said]).sum())
        right[1] += int(said.sum())
        count = said.sum() if num_items_in_batch is None else num_items_in_batch
        return each.sum() / count

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load a full model by this project's loader; the Trainer would silently load nothing.

        The checkpoint has the weight names of the model family's files; the Trainer expects those of its modules.
        """
        model = self.model if model is None else model
        if self.is_fsdp_enabled or not isinstance(model, PreTrainedModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        taught = policies.trainable(resume_from_checkpoint)
        found = taught.inspect(weights_only=True)
        model.load_state_dict(taught.network(found, "cpu", "fp32").state_dict())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        for training, name in ((True, "accuracy"), (False, "eval_accuracy")):
            right, of = self._right[training]
            if of and ("loss" if training else "eval_loss") in logs:
                logs[name] = right / of
                self._right[training] = [0, 0]
        super().log(logs, *args, **kwargs)


class Plotted(TrainerCallback):
    """The curves as JSON lines, a plot and TensorBoard files; truncated when a run resumes from a checkpoint."""

    def __init__(self, folder: Path, title: str, resumed_at: int, watch: Any = None) -> None:
        """watch: a Watch called before this; its `figures` are added to the curves."""
        self._curves = Curves(folder, resumed_at, tensorboard=True)
        self._folder, self._title = folder, title
        self._begun = self._plotted = time.perf_counter()
        self._step, self._watch = resumed_at, watch

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        row = {name: float(logs[key]) for key, name in _SHOWN.items() if key in (logs or {})}
        if not row:
            return
        steps, now = state.global_step - self._step, time.perf_counter()
        if steps:
            row["seconds"] = (now - self._begun) / steps
            self._begun, self._step = now, state.global_step
        self._curves.add(step=state.global_step, **row)

    def on_save(self, *_: Any, **__: Any) -> None:
        if time.perf_counter() - self._plotted > _PLOT_EVERY:
            self._plot()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._plot()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._watch is not None:
            self._curves.add(step=state.global_step, **self._watch.figures)
        if state.global_step >= state.max_steps:
            self._plot()

    def _plot(self) -> None:
        self._curves.plot(self._folder / "curves.png", self._title)
        self._plotted = time.perf_counter()


class Stopping(TrainerCallback):
    """On Ctrl-C or SIGTERM, finishes the step, writes a checkpoint and ends the run.

    A second signal ends it at once, leaving the last checkpoint.
    """

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals while the block runs. Has no effect outside the main thread."""
        before: dict[signal.Signals, Any] = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                with contextlib.suppress(ValueError):  # not the main thread
                    before[number] = signal.signal(number, self._hear)
            yield
        finally:
            for heard, handler in before.items():
                signal.signal(heard, handler)

    def _hear(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("stopping after this step; press Ctrl-C again to stop at once", flush=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if args.world_size > 1:
            # Signals reach processes at different steps, but all must stop at the same one.
            asked = torch.tensor([int(self.asked)], device=args.device)
            torch.distributed.all_reduce(asked)
            self.asked = bool(asked.item())
        if self.asked:
            control.should_save = control.should_training_stop = True
        return control


class Marked(TrainerCallback):
    """Marks a checkpoint as complete after everything in it is written."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _WHOLE).touch()


def last_checkpoint(folder: Path, clear: bool = True) -> tuple[Path | None, int]:
    """(newest complete checkpoint, its step), or (None, 0). clear: remove incomplete ones left by a kill."""
    newest, step = None, 0
    for path in sorted(folder.glob("checkpoint-*")):
        number = path.name.partition("-")[2]
        if not number.isdigit():
            continue
        if not (path / _WHOLE).is_file():
            if clear:
                shutil.rmtree(path, ignore_errors=True)
        elif int(number) > step:
            newest, step = path, int(number)
    return newest, step
