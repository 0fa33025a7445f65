"""Estimated time of the steps from a folder of scans to a 7B policy: computed, not measured.

    python -m training.bench.costs                                # the table of training/README.md
    python -m training.bench.costs --scans 50 --gpus 1 4 --tflops 120

Counts floating-point operations (Kaplan et al. 2020: per weight and token, 2 forward, 2 for the gradient of the inputs,
2 for that of the weights) and divides them by the assumed speed of a GPU. Decoding is bound by reading the weights for
every token, so its time is a separate assumption. Attention, reading files and waiting are left out: expect half as
much again, and measure the first hundred steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from training.common.commands import command_parser

HOUR = 3600.0


@dataclass(frozen=True)
class Assumptions:
    """The assumptions of the estimate.

    Attributes:
        scans, slices, structures, clicks: number of scans, slices per scan, structures per slice, and clicks per
            question, followed by one terminating turn.
        picture, prompt, reply: tokens per turn. 334 is a picture of 262,144 pixels in cells of 28 × 28.
        weights: used for every token (28 layers of 233 million, and the output); the embedding is a look-up.
        vision: operations of the vision tower per picture: 1,337 patches, 0.63 billion weights.
        tflops: 10¹² operations per second of a GPU: 35 % of the 989 of an H100 or H200 in bf16.
        shared: efficiency of several GPUs.
        token: seconds per token of a batch in plain PyTorch; vllm: the same with vLLM.
        sft_epochs, full_epochs: of training/configs/sft-7b-lora.yaml and sft-7b-full.yaml.
        updates, questions, group: of training/configs/grpo-7b-lora.yaml; replies sampled at a time.
        asked: questions of an evaluation.
        embed, predict: seconds of the segmenter: MedSAM2's architecture at 512 pixels, measured on two cores.
    """

    scans: int = 200
    slices: int = 8
    structures: int = 4
    clicks: int = 3
    picture: int = 334
    prompt: int = 400
    reply: int = 120
    weights: float = 7.07e9
    vision: float = 2 * 1337 * 0.63e9
    tflops: float = 346.0
    shared: float = 0.9
    token: float = 0.030
    vllm: float = 0.010
    sft_epochs: int = 10
    full_epochs: int = 3
    updates: int = 500
    questions: int = 16
    group: int = 4
    replies: int = 32
    asked: int = 600
    embed: float = 0.505
    predict: float = 0.033

    @property
    def pictures(self) -> int:
        return self.scans * self.slices

    @property
    def turns(self) -> int:
        """Number of turns of all trajectories; each is a sample for fine-tuning."""
        return self.pictures * self.structures * (self.clicks + 1)

    @property
    def length(self) -> int:
        """Tokens per sample."""
        return self.picture + self.prompt + self.reply


def trajectories(a: Assumptions) -> float:
    """Seconds of the segmenter on two CPU cores: one embedding per picture, one prediction per click."""
    return a.pictures * (a.embed + a.structures * a.clicks * a.predict)


def learning(a: Assumptions, turns: float, passes: int, gpus: int) -> float:
    """Seconds to train on `turns` turns.

    passes: of 2 operations per weight: 3 with LoRA (forward, again for checkpointing, gradient of the inputs), 4 with
    all weights. The vision tower is frozen and runs forward only.
    """
    operations = turns * (2 * passes * a.weights * a.length + a.vision)
    return operations / (a.tflops * 1e12) / speed(a, gpus)


def rollouts(a: Assumptions, episodes: float, gpus: int, token: float, at_a_time: int) -> float:
    """Seconds for episodes with a turn per click and one to terminate: prompts plus replies."""
    turns = a.clicks + 1
    read = episodes * turns * (2 * a.weights * (a.picture + a.prompt) + a.vision) / (a.tflops * 1e12)
    batches = max(1.0, episodes / gpus / at_a_time)
    return read / speed(a, gpus) + batches * turns * a.reply * token


def grpo_update(a: Assumptions, gpus: int) -> float:
    """Seconds per update: on one GPU training.grpo with LoRA, on several verl with vLLM and all weights."""
    episodes, turns = a.questions * a.group, a.questions * a.group * (a.clicks + 1)
    if gpus == 1:
        return rollouts(a, episodes, 1, a.token, a.replies) + learning(a, turns, 3, 1)
    return rollouts(a, episodes, gpus, a.vllm, 4 * a.replies) + learning(a, turns, 4, gpus)


def speed(a: Assumptions, gpus: int) -> float:
    """Speed relative to one GPU."""
    return 1.0 if gpus == 1 else gpus * a.shared


def rows(a: Assumptions, gpus: Sequence[int]) -> list[list[str]]:
    """Header and rows: the time of each step on these numbers of GPUs."""
    table = [["step", "how much", *(f"{n} GPU{'s' if n > 1 else ''}" for n in gpus)]]
    cpu = f"{_time(trajectories(a))} on two CPU cores"
    table.append(["trajectories", f"{a.pictures:,} pictures, {a.turns:,} turns", *[cpu] * len(gpus)])
    for name, epochs, passes in (("SFT, LoRA", a.sft_epochs, 3), ("SFT, all weights", a.full_epochs, 4)):
        much = f"{epochs} epochs, {epochs * a.turns * a.length / 1e6:,.0f} M tokens"
        table.append([name, much, *(_time(learning(a, epochs * a.turns, passes, n)) for n in gpus)])
    much = f"{a.updates} updates of {a.questions} × {a.group} episodes"
    table.append(["GRPO", much, *(_time(a.updates * grpo_update(a, n)) for n in gpus)])
    # training.evaluate asks one question at a time on each GPU.
    times = [_time(a.asked / n * rollouts(a, 1, 1, a.token, 1)) for n in gpus]
    table.append(["evaluate", f"{a.asked} questions", *times])
    return table


def _time(seconds: float) -> str:
    return f"{seconds / HOUR:.1f} h" if seconds >= HOUR else f"{seconds / 60:.0f} min"


def main() -> None:
    parser = command_parser("bench.costs", __doc__)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8])
    for each in dataclasses.fields(Assumptions):
        option = f"--{each.name.replace('_', '-')}"
        parser.add_argument(option, type=type(each.default), default=each.default)
    args = vars(parser.parse_args())
    gpus = args.pop("gpus")
    if min(gpus) < 1 or any(value <= 0 for value in args.values()):
        raise SystemExit("error: every number must be above 0")
    for n, row in enumerate(rows(Assumptions(**args), gpus)):
        print("| " + " | ".join(row) + " |")
        if not n:
            print("| --- | --- |" + " ---: |" * len(gpus))


if __name__ == "__main__":
    main()
