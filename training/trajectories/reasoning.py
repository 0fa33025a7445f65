"""Reasoning for the turns of a folder of trajectories: from a teacher model, or from templates.

    python -m training.trajectories.reasoning DIR --templates                          # no network
    python -m training.trajectories.reasoning DIR --teacher http://localhost:8000/v1 --model NAME
    python -m training.trajectories.reasoning DIR --teacher https://HOST/v1 --model NAME --price-in 2.5 --price-out 10

With a teacher, PICTURES LEAVE THIS MACHINE unless the teacher runs on it: each turn's picture is sent to the address,
and its operator can see and keep it. The command first says what will be sent, to whom and at what cost, and sends
nothing without a yes (--yes for scripts). The key is read from OPENAI_API_KEY.

Every answer is checked (see reasoning_checks), requested again if it cannot be used, and saved at once in
`reasoning_cache.jsonl`, so that a resumed run pays for nothing twice. At the end `trajectories.jsonl` is rewritten with
the new thinking, and `reasoning.json` has the statistics. Deliberate mistakes, which have no loss, are left alone.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ibis_agent.actions import Reply, format_reply
from ibis_agent.errors import InputError, ModelError
from ibis_agent.files import atomic_write, write_json
from ibis_agent.mask.masks import decode_rle
from ibis_agent.record.steps import actions_of
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.scan.picture import overlay
from PIL import Image
from tqdm import tqdm

from training.common.commands import RESUMABLE, command_parser, ending
from training.trajectories import templates
from training.trajectories.generate import NAME, read_trajectories
from training.trajectories.parts import rng_for, slug
from training.trajectories.reasoning_checks import VERSION, checked, messages_for, slip_before, tokens_of
from training.trajectories.teacher import KEY_VARIABLE, Teacher, Unanswered
from training.trajectories.turns import action_of

CACHE, REPORT = "reasoning_cache.jsonl", "reasoning.json"
_SILENT = 8  # turns in a row without an answer that end the run


@dataclass(frozen=True)
class Task:
    """One turn that needs thinking."""

    key: str
    sample: dict[str, Any]
    turn: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.sample['id']}, turn {self.turn['number']}"


def from_templates(folder: Path, style: str = "varied", seed: int = 0) -> int:
    """Rewrite all thinking from templates. Returns the number of turns."""
    thoughts: dict[tuple[str, int], str] = {}
    for sample in read_trajectories(folder):
        after = None
        for turn in sample["turns"]:
            meant = templates.intended(action_of(turn), turn["mistake"])
            present = bool(sample["target_rle"])
            moment = templates.Moment(
                sample["structure"], meant, turn["number"] == 1, present, turn["iou_before"], after
            )
            rng = rng_for(seed, sample["id"], str(turn["number"]))
            thoughts[sample["id"], turn["number"]] = templates.thinking(moment, style, rng)
            after = turn["mistake"]
    rewrite(folder, thoughts)
    return len(thoughts)


def from_teacher(
    folder: Path, teacher: Teacher, parallel: int = 4, attempts: int = 3, keep_failed: bool = True
) -> dict[str, Any]:
    """Ask for every turn with loss that is not in the cache, rewrite the trajectories, and return the report.

    Args:
        attempts: most requests per turn while answers are unusable.
        keep_failed: turns without a usable answer keep their thinking; if False, they raise InputError.

    Raises ModelError if the teacher refuses or does not answer; answers so far are kept in the cache.
    """
    known = read_cache(folder)
    tasks = list(tasks_of(folder, teacher.model))
    todo = list({task.key: task for task in tasks if task.key not in known}.values())
    refused: Counter[str] = Counter()
    failed: dict[str, str] = {}
    stop = teacher.stopped
    stop.clear()
    with (
        (folder / CACHE).open("a", encoding="utf-8") as cache,
        ThreadPoolExecutor(parallel) as pool,
        tqdm(total=len(todo), desc="turns", mininterval=1) as progress,
    ):
        # Called in the worker thread, so that answers that arrive while the run is stopping are saved too.
        def keep(task: Task, thinking: str) -> None:
            line = {"key": task.key, "model": teacher.model, "thinking": thinking}
            with teacher.spent.lock:
                cache.write(json.dumps(line, ensure_ascii=False) + "\n")
                cache.flush()

        waiting: dict[Future[tuple[str | None, list[str]]], Task] = {}
        queue = iter(todo)
        silent = 0
        try:
            while True:
                for task in queue:
                    waiting[pool.submit(_thought, folder, teacher, task, attempts, stop, keep)] = task
                    if len(waiting) >= 2 * parallel:
                        break
                if not waiting:
                    break
                for each in wait(waiting, return_when=FIRST_COMPLETED).done:
                    task = waiting.pop(each)
                    thinking, reasons = each.result()
                    refused.update(reason.split(":")[0] for reason in reasons)
                    progress.update()
                    if thinking is None:
                        failed[task.key] = reasons[-1]
                        silent = silent + 1 if reasons[-1].startswith("no answer") else 0
                        if silent >= _SILENT:
                            raise ModelError(
                                "the teacher does not answer",
                                value=reasons[-1],
                                remedy="Try again later; nothing is lost.",
                            )
                        continue
                    silent = 0
                    known[task.key] = thinking
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    without = [
        {"turn": task.name, "reason": failed.get(task.key, "")} for task in tasks if task.key not in known
    ]
    spent = teacher.spent
    report = {
        "model": teacher.model,
        "prompt_version": VERSION,
        "turns": len(tasks),
        "from_cache": len(tasks) - len(todo),
        "asked": len(todo),
        "without_answer": {"count": len(without), "each": without},
        "answers_refused": dict(sorted(refused.items())),
        "requests": spent.requests,
        "retries": spent.retries,
        "tokens_in": spent.tokens_in,
        "tokens_out": spent.tokens_out,
    }
    write_json(folder / REPORT, report)
    if without and not keep_failed:
        raise InputError(
            f"{len(without)} turns have no usable answer", file=folder / REPORT, remedy="Run it again."
        )
    rewrite(
        folder,
        {(task.sample["id"], task.turn["number"]): known[task.key] for task in tasks if task.key in known},
    )
    return report


def tasks_of(folder: Path, model: str) -> Iterator[Task]:
    """The turns that need thinking; their keys depend on everything the answer depends on."""
    for sample in read_trajectories(folder):
        for turn in sample["turns"]:
            if turn["learn"]:
                parts = [VERSION, model, _digest(folder / sample["image"]), sample["question"]]
                parts += [turn["mask_before_rle"], turn["kind"], turn["x"], turn["y"], turn["positive"]]
                parts += [turn["box"]] if turn["kind"] == "box" else []
                parts += [bool(sample["target_rle"]), turn["number"] == 1, slip_before(sample, turn)]
                key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
                yield Task(key, dict(sample), dict(turn))


def read_cache(folder: Path) -> dict[str, str]:
    """key → thinking. A last line cut off by a kill is ignored and ended."""
    path = folder / CACHE
    if not path.exists():
        return {}
    known: dict[str, str] = {}
    text = path.read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            known[entry["key"]] = entry["thinking"]
        except (ValueError, KeyError, TypeError):
            continue
    if text and not text.endswith("\n"):
        with path.open("a", encoding="utf-8") as cache:
            cache.write("\n")
    return known


def rewrite(folder: Path, thoughts: dict[tuple[str, int], str]) -> None:
    """Put thoughts, (sample id, turn number) → text, into trajectories.jsonl and the ibis-trajectory/1 files."""
    with atomic_write(folder / NAME) as path, path.open("w", encoding="utf-8") as lines:
        for sample in read_trajectories(folder):
            for turn in sample["turns"]:
                text = thoughts.get((sample["id"], turn["number"]))
                if text is not None:
                    turn["thinking"] = text
                    turn["reply"] = format_reply(Reply(text, action_of(turn)))
            lines.write(json.dumps(sample, ensure_ascii=False) + "\n")
            _rewrite_ours(folder, sample)


def _rewrite_ours(folder: Path, sample: Any) -> None:
    ours = folder / "trajectories" / f"{Path(sample['image']).stem}-{slug(sample['structure'])}.json"
    if not ours.is_file():
        return
    record = Trajectory.load(ours)
    steps = tuple(
        dataclasses.replace(step, thinking=turn["thinking"], reply=turn["reply"])
        for step, turn in zip(record.steps, sample["turns"], strict=True)
    )
    dataclasses.replace(record, actions=actions_of(steps, record.slices.first)).save(ours)


def seen_at(folder: Path, sample: Any, turn: Any) -> np.ndarray:
    """(H, W, 3) uint8: the picture with the mask before this turn, as the policy sees it."""
    with Image.open(folder / sample["image"]) as image:
        rgb = np.array(image.convert("RGB"))
    if turn["number"] == 1:
        return rgb
    return overlay(rgb, decode_rle(turn["mask_before_rle"], (sample["height"], sample["width"])))


def estimate(tasks: Iterable[Task], price_in: float | None, price_out: float | None) -> dict[str, Any]:
    """The estimated requests, pictures, tokens and cost of these turns; prices are per million tokens."""
    tasks = list(tasks)
    pairs = [tokens_of(task.sample["height"], task.sample["width"]) for task in tasks]
    tokens_in, tokens_out = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    cost = None
    if price_in is not None and price_out is not None:
        cost = (tokens_in * price_in + tokens_out * price_out) / 1e6
    return {
        "requests": len(tasks),
        "pictures": len({task.sample["image"] for task in tasks}),
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "cost": cost,
    }


def agreed(teacher: Teacher, expected: dict[str, Any], per_minute: float, yes: bool) -> bool:
    """Say what will be sent, where and at what cost, and ask for a yes. Raises InputError without a terminal."""
    if not expected["requests"]:
        return True
    minutes = expected["requests"] / per_minute if per_minute else 0
    price = (
        "prices not given" if expected["cost"] is None else f"about {expected['cost']:.2f} in your currency"
    )
    print(
        f"{expected['requests']} requests to {teacher.model} at {teacher.host}, about {expected['tokens_in']} "
        f"tokens in and {expected['tokens_out']} out: {price}; at least {minutes:.0f} minutes."
    )
    if teacher.local:
        print("The teacher runs on this machine: no picture leaves it.")
    else:
        print(
            f"{expected['pictures']} PICTURES WILL LEAVE THIS MACHINE. The operator of {teacher.host} can see and "
            "keep them. Make sure that you may send them, and that they show no names."
        )
    if yes:
        return True
    if not sys.stdin.isatty():
        raise InputError("sending needs a yes, and there is no terminal to ask", remedy="Add --yes to agree.")
    try:
        return input("Continue? Type yes: ").strip().lower() == "yes"
    except EOFError:
        return False


def _thought(
    folder: Path,
    teacher: Teacher,
    task: Task,
    attempts: int,
    stop: threading.Event,
    keep: Callable[[Task, str], None],
) -> tuple[str | None, list[str]]:
    """(thinking or None, reasons why answers were refused)."""
    messages = messages_for(task.sample, task.turn, seen_at(folder, task.sample, task.turn))
    reasons: list[str] = []
    for _ in range(attempts):
        if stop.is_set():
            return None, [*reasons, "stopped"]
        try:
            text = teacher.ask(messages)
        except Unanswered as error:
            return None, [*reasons, str(error)]
        try:
            thinking = checked(text, task.sample, task.turn)
            keep(task, thinking)
            return thinking, reasons
        except ValueError as error:
            reasons.append(str(error))
            again = f"That cannot be used: {error}. Answer again and follow all instructions."
            messages = [
                *messages[:2],
                {"role": "assistant", "content": text[:2000]},
                {"role": "user", "content": again},
            ]
    return None, reasons


@functools.lru_cache(maxsize=64)
def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError("the picture cannot be read", file=path, value=error.strerror) from error


def _temperature(text: str) -> float | None:
    return None if text == "none" else float(text)


def main() -> None:
    parser = command_parser("trajectories.reasoning", __doc__)
    add = parser.add_argument
    add("folder", type=Path, help="made by training.trajectories")
    add("--templates", action="store_true", help="no teacher, no network")
    add("--style", choices=templates.STYLES, default="varied", help="style of templates")
    add("--seed", type=int, default=0, help="seed of templates")
    add("--teacher", help=f"address of an OpenAI-compatible API; the key is read from {KEY_VARIABLE}")
    add("--model", help="the teacher's model name there")
    add("--yes", action="store_true", help="agree to the cost and to sending the pictures")
    add("--price-in", type=float, help="per million input tokens")
    add("--price-out", type=float, help="per million output tokens")
    add("--per-minute", type=float, default=60, help="most requests per minute")
    add("--parallel", type=int, default=4)
    add("--max-tokens", type=int, default=400, help="of one answer; reasoning models need thousands")
    add("--temperature", type=_temperature, default=0.4, help="a number, or none for the teacher's default")
    add("--timeout", type=float, default=120, help="seconds per answer")
    add("--tries", type=int, default=6, help="tries per answer if the server is busy or fails")
    add("--attempts", type=int, default=3, help="answers per turn if they cannot be used")
    add("--strict", action="store_true", help="fail if turns have no usable answer")
    args = parser.parse_args()
    with ending(RESUMABLE):
        if args.templates == bool(args.teacher):
            raise InputError("a source of thinking is needed", remedy="Give --templates or --teacher URL.")
        if args.templates:
            print(f"{from_templates(args.folder, args.style, args.seed)} turns from templates")
            return
        if not args.model:
            raise InputError("the teacher needs the name of a model", remedy="Give --model.")
        if min(args.per_minute, args.parallel, args.timeout, args.tries, args.attempts) <= 0:
            raise InputError("--per-minute, --parallel, --timeout, --tries and --attempts must be positive")
        teacher = Teacher(
            args.teacher,
            args.model,
            per_minute=args.per_minute,
            timeout=args.timeout,
            tries=args.tries,
            max_tokens=args.max_tokens,
            temperature=args.temperature,
        )
        known = read_cache(args.folder)
        todo = {t.key: t for t in tasks_of(args.folder, args.model) if t.key not in known}
        expected = estimate(todo.values(), args.price_in, args.price_out)
        if not agreed(teacher, expected, args.per_minute, args.yes):
            raise SystemExit("nothing was sent")
        report = from_teacher(args.folder, teacher, args.parallel, args.attempts, not args.strict)
    print(
        f"{report['turns']} turns: {report['from_cache']} from the cache, {report['asked']} asked in "
        f"{report['requests']} requests, {report['without_answer']['count']} unchanged; "
        f"{report['tokens_in']} tokens in, {report['tokens_out']} out"
    )


if __name__ == "__main__":
    main()
