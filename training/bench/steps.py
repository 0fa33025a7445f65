"""Time of the parts of a step, compared with transformers' `generate` for the same work.

    python -m training.bench [--json F] [--policy DIR] [--segmenter FILE] [--pictures 3] [--repeats 5]

Runs episodes on phantoms, then the same turns as published: every turn goes through a PNG file, `generate` computes
the whole prompt again, and the reply is written to its last token. Both alternate in one process, with the same
weights, precision, pictures and clicks. Caches are cleared before every episode, so that repeats gain nothing. On a
busy machine, `--clock cpu` counts only CPU time of this process.

Every figure is the median over the repeats, averaged over the turns. The rows about volumes are explained in
training.bench.volume.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ibis_agent.segmenter as segmenters
import numpy as np
import torch
from ibis_agent.actions import Click
from ibis_agent.errors import ModelError
from ibis_agent.files import write_json
from ibis_agent.policy.contract import Turn
from ibis_agent.policy.qwen25.local import LocalPolicy
from ibis_agent.policy.qwen25.source import Qwen25Folder, demo_folder
from ibis_agent.run.episode import Limits, Step
from ibis_agent.run.run import Run
from ibis_agent.run.settings import Settings
from ibis_agent.scan.picture import Picture
from ibis_agent.segmenter.sam2.segmenter import Sam2Segmenter
from PIL import Image
from transformers.generation.streamers import BaseStreamer

from training.bench import episodes
from training.bench.clock import use_processor_time
from training.bench.shown import QUESTIONS, phantom_picture, synchronize, tensors_for_generate
from training.bench.volume import measure_volume, table_of
from training.common.commands import check_output, command_parser, ending

# Parts of a step, in the order of the table.
PARTS = {
    "pictures and tokens": "overlay, tokens, patches (published: through a PNG file)",
    "policy prefill": "from the tokens to the first new one, including the vision encoder",
    "policy decode": "all further tokens",
    "segmenter predict": "clicks to mask",
    "rest": "parsing the reply, saving the state",
}


@dataclass(frozen=True)
class Work:
    """One turn of an episode: what is needed to repeat it with `generate`."""

    turn: Turn
    clicks: tuple[Click, ...]
    logits: np.ndarray | None
    """(S/4, S/4) that the prediction started from, or None."""


@dataclass(frozen=True)
class Cost:
    """Cost of a turn: seconds by part, tokens written, passes through the language model."""

    seconds: dict[str, float]
    tokens: int
    passes: int


class FirstToken(BaseStreamer):
    """Records when `generate` has its first new token; its first call is for the prompt."""

    def __init__(self) -> None:
        self.calls = 0
        self.at = 0.0

    def put(self, value: object) -> None:
        self.calls += 1
        if self.calls == 2:
            self.at = time.perf_counter()

    def end(self) -> None:
        pass


def ours(
    picture: Picture, question: str, policy: LocalPolicy, segmenter: Sam2Segmenter, turns: int
) -> tuple[list[Work], list[Cost], float]:
    """An episode: its turns, their costs, and the seconds to embed the picture.

    Stops at the first unreadable reply.
    """
    policy.forget()
    segmenter.kept.forget()
    begun = time.perf_counter()
    segmenter.embed(picture.rgb)  # a run does this during the policy's first turn
    synchronize(policy)
    embedding = time.perf_counter() - begun
    run = Run.on_picture(picture, question, policy, segmenter, Settings(Limits(max_turns=turns)))
    work, costs = [], []
    while run.status == "ready":
        turn = run.turn()
        begun = time.perf_counter()
        done = run.step()
        total = time.perf_counter() - begun
        last = policy.last
        step = None if done is None else done.steps[-1]
        if step is None or step.unreadable or last is None:
            break
        asked, predicted = step.seconds["policy"], step.seconds["segmenter"]
        seconds = {
            "pictures and tokens": asked - last.prefill - last.decode,
            "policy prefill": last.prefill,
            "policy decode": last.decode,
            "segmenter predict": predicted,
            "rest": total - asked - predicted,
        }
        work.append(Work(turn, *clicks_of(run.steps)))
        costs.append(Cost(seconds, len(last.ids), last.forwards + 1))
    return work, costs, embedding


def plain(
    picture: Picture, work: list[Work], policy: LocalPolicy, segmenter: Sam2Segmenter, folder: Path
) -> tuple[list[Cost], float]:
    """The same turns with `generate`: their costs, and the seconds to embed the picture."""
    segmenter.kept.forget()
    begun = time.perf_counter()
    embedding = segmenter.embed(picture.rgb)
    synchronize(policy)
    embedded = time.perf_counter() - begun
    costs = []
    for each in work:
        begun = time.perf_counter()
        Image.fromarray(each.turn.picture).save(folder / "turn.png")
        shown = np.asarray(Image.open(folder / "turn.png").convert("RGB"))
        tensors = tensors_for_generate(policy, each.turn, shown)
        prepared = time.perf_counter()
        first = FirstToken()
        with torch.inference_mode():
            ids = policy.model.generate(
                **tensors, max_new_tokens=policy.card.max_new_tokens, do_sample=False, streamer=first
            )
        written = ids[0, tensors["input_ids"].shape[1] :].tolist()
        policy.chat.decode(written)
        decoded = time.perf_counter()
        if each.clicks:
            segmenter.predict(embedding, each.clicks, each.logits)
            synchronize(policy)
        seconds = {
            "pictures and tokens": prepared - begun,
            "policy prefill": first.at - prepared,
            "policy decode": decoded - first.at,
            "segmenter predict": time.perf_counter() - decoded,
            "rest": 0.0,
        }
        costs.append(Cost(seconds, len(written), len(written)))
    return costs, embedded


def measure(
    policy: LocalPolicy,
    segmenter: Sam2Segmenter,
    pictures: int,
    repeats: int,
    turns: int,
    progress: Callable[[str], object],
) -> dict[str, Any]:
    """Run both alternately and return the figures that `--json` writes, in seconds.

    Raises ModelError if the policy gives no readable reply.
    """
    costs: dict[str, dict[tuple[int, int], list[Cost]]] = {"ours": {}, "generate": {}}
    embeddings: dict[str, list[float]] = {"ours": [], "generate": []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat, seed in itertools.product(range(repeats + 1), range(pictures)):
            progress(f"{f'repeat {repeat} of {repeats}' if repeat else 'warming up'}, picture {seed + 1}")
            picture, question = phantom_picture(seed), QUESTIONS[seed % len(QUESTIONS)]
            work, mine, embedded = ours(picture, question, policy, segmenter, turns)
            theirs, embedded_again = plain(picture, work, policy, segmenter, Path(folder))
            if not repeat:
                continue  # the first round is warm-up
            embeddings["ours"].append(embedded)
            embeddings["generate"].append(embedded_again)
            for kind, rows in (("ours", mine), ("generate", theirs)):
                for number, cost in enumerate(rows):
                    costs[kind].setdefault((seed, number), []).append(cost)
    if not costs["ours"]:
        remedy = "Measure a trained policy."
        raise ModelError("the policy gave no readable reply, so there is nothing to time", remedy=remedy)
    result: dict[str, Any] = {
        "machine": machine(policy.device),
        "policy": {**policy.identity, "parameters": policy.network.parameters},
        "segmenter": dict(segmenter.identity),
        "precision": policy.precision,
        "turns": len(costs["ours"]),
        "repeats": repeats,
    }
    for kind, by_turn in costs.items():
        seconds = {
            part: averaged([[c.seconds[part] for c in rows] for rows in by_turn.values()]) for part in PARTS
        }
        tokens = averaged([[cost.tokens for cost in rows] for rows in by_turn.values()])
        result[kind] = {
            "seconds": seconds,
            "step": sum(seconds.values()),
            "embed": float(np.median(embeddings[kind])),
            "tokens": tokens,
            "passes": averaged([[cost.passes for cost in rows] for rows in by_turn.values()]),
            "tokens_per_second": tokens / (seconds["policy prefill"] + seconds["policy decode"]),
        }
    result["ratio"] = result["generate"]["step"] / result["ours"]["step"]
    return result


def averaged(by_turn: list[list[float]] | list[list[int]]) -> float:
    """The median over the repeats of each turn, averaged over the turns."""
    return float(np.mean([np.median(repeats) for repeats in by_turn]))


def table(result: dict[str, Any]) -> str:
    """A table for the terminal: milliseconds per step, and the ratio."""
    mine, theirs = result["ours"], result["generate"]
    rows = [(part, mine["seconds"][part], theirs["seconds"][part]) for part in PARTS]
    rows.append(("a step", mine["step"], theirs["step"]))
    rows.append(("segmenter embed, once", mine["embed"], theirs["embed"]))
    lines = [
        result["machine"],
        f"{result['policy']['name']}, {result['policy']['parameters'] / 1e6:.1f} M parameters, "
        f"{result['precision']}; {result['turns']} turns, {result['repeats']} times each",
        "",
        f"{'milliseconds':24}{'ours':>10}{'generate':>10}{'ratio':>8}",
    ]
    for name, one, other in rows:
        ratio = f"{other / one:8.2f}" if min(one, other) > 5e-4 else ""
        lines.append(f"{name:24}{1000 * one:10.1f}{1000 * other:10.1f}{ratio}")
    for name, key in (("tokens per reply", "tokens"), ("passes per reply", "passes")):
        lines.append(f"{name:24}{mine[key]:10.1f}{theirs[key]:10.1f}")
    one, other = mine["tokens_per_second"], theirs["tokens_per_second"]
    lines.append(f"{'tokens per second':24}{one:10.1f}{other:10.1f}{one / other:8.2f}")
    return "\n".join(lines)


def clicks_of(steps: tuple[Step, ...]) -> tuple[tuple[Click, ...], np.ndarray | None]:
    """All clicks up to the last step, and the logits before it; ((), None) if it is not a click."""
    if not isinstance(steps[-1].action, Click):
        return (), None
    before = [step for step in steps[:-1] if isinstance(step.action, Click)]
    clicks = tuple(step.action for step in steps if isinstance(step.action, Click))
    return clicks, before[-1].logits if before else None


def machine(device: str) -> str:
    """CPU or GPU, threads, and versions of torch and transformers."""
    import transformers

    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(torch.device(device))
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def main() -> None:
    parser = command_parser("bench", __doc__)
    parser.add_argument("--policy", type=Path, help="a policy folder (default: the demo policy)")
    parser.add_argument("--segmenter", type=Path, help="a checkpoint (default: the demo segmenter)")
    parser.add_argument("--segmenter-config", help="its architecture, if the checkpoint does not say")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--turns", type=int, default=4, help="most turns of an episode")
    parser.add_argument("--slices", type=int, default=100, help="slices of the volume; 0: no volume")
    parser.add_argument(
        "--episodes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure episodes of 5 and 20 turns",
    )
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: CPU time, see above")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    chosen = parser.parse_args()
    if chosen.clock == "cpu":
        use_processor_time()
    with ending():
        check_output(chosen.json)
        policy = Qwen25Folder(chosen.policy or demo_folder()).open(chosen.device, chosen.precision)
        segmenter = segmenters.open(chosen.segmenter, chosen.segmenter_config, chosen.device)
        assert isinstance(segmenter, Sam2Segmenter)
        result = measure(policy, segmenter, chosen.pictures, chosen.repeats, chosen.turns, show_progress)
        show_progress(f"a volume of {chosen.slices} slices")
        result["clock"] = chosen.clock
        if chosen.episodes:
            show_progress("whole episodes")
            result["episodes"] = episodes.measure(policy, chosen.repeats)
        if chosen.slices:
            result["volume"] = measure_volume(segmenter, chosen.slices)
    show_progress("")
    print(table(result))
    if "episodes" in result:
        print("\n" + episodes.table(result["episodes"]))
    if "volume" in result:
        print("\n" + table_of(result["volume"]))
    if chosen.json:
        write_json(chosen.json, result)


def show_progress(text: str) -> None:
    """Show a progress line, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r{text:60}\r", end="", file=sys.stderr, flush=True)
