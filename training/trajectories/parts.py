"""The work of training.trajectories, picture by picture, in one or several processes, and resumable.

Each finished picture is a small file in `parts/`, written completely or not at all, and so are the problems of each
scan. A resumed run finds them. The result does not depend on interruptions or the number of processes, because every
question has a seed of its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import queue
import re
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ibis_agent.actions import Terminate
from ibis_agent.cases.case import Problem
from ibis_agent.errors import InputError, ModelError
from ibis_agent.files import write_bytes, write_text
from ibis_agent.mask.masks import encode_rle
from ibis_agent.record.published import from_trajectory
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.episode import Step

from training.common import questions
from training.common.pictures import Choice, Group, Shown, Source, within_frame
from training.common.processes import end_with_parent
from training.common.store import Kept, opened
from training.trajectories import expert
from training.trajectories.turns import action_of


@dataclass(frozen=True)
class Work:
    """The settings of a run, besides its groups.

    Attributes:
        out: the folder.
        choice, recipe: of the pictures, and of the expert.
        question: a wording with {structure}; empty for many wordings.
        per_picture: structures asked for per picture, chosen at random; 0 for all.
        absent_share: share of all questions that ask for absent structures.
        absent: further names of absent structures, for these questions.
        trajectories: also write every run as ibis-trajectory/1.
        seed: of all random choices.
        segmenter, config, device: arguments of segmenter.open.
        store: a folder of pictures shared with other commands, see training.common.store.
        root: folder of the source; the published form names files relative to it.
    """

    out: Path
    choice: Choice
    recipe: expert.Recipe
    question: str = ""
    per_picture: int = 0
    absent_share: float = 0.1
    absent: tuple[str, ...] = ()
    trajectories: bool = False
    seed: int = 0
    segmenter: Path | None = None
    config: str | None = None
    device: str = "auto"
    store: Path | None = None
    root: Path | None = None

    def name_of(self, file: Path) -> str:
        """The name of a source file in records."""
        if self.root is not None and file.resolve().is_relative_to(self.root.resolve()):
            return file.resolve().relative_to(self.root.resolve()).as_posix()
        return file.name


class Worker:
    """The state of one process: the segmenter, and the scan read last."""

    def __init__(self, work: Work, segmenter: Any) -> None:
        self.work, self.segmenter = work, segmenter
        self._read: tuple[str, Source | Kept] | None = None

    def pictures(self, number: int, group: Group, share: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Do the missing pictures among every n-th picture of a group; yields (done, total) after each.

        share: (first, n).
        """
        source = self._source(group)
        names = [part_name(number, n) for n in range(len(source.places))]
        mine = range(share[0], len(names), share[1])
        for done, n in enumerate(mine):
            yield done, len(mine)
            if not (self.work.out / "parts" / names[n]).is_file():
                write_part(self.work.out, names[n], self._picture(source, n, number))
        yield len(mine), len(mine)
        if share[0] == 0:
            problems = [vars(each) for each in source.problems]
            write_part(self.work.out, group_name(number), {"pictures": len(names), "problems": problems})

    def _source(self, group: Group) -> Source | Kept:
        if self._read is None or self._read[0] != group.key:
            self._read = None  # free its memory before the next scan is read
            self._read = (group.key, opened(group, self.work.choice, self.work.store))
        return self._read[1]

    def _picture(self, source: Source | Kept, n: int, number: int) -> dict[str, Any]:
        shown = source.show(source.places[n])
        if isinstance(shown, Problem):
            return {"samples": [], "published": [], "left_out": [], "problems": [vars(shown)]}
        whole, shown = shown, within_frame(shown)
        file = f"pictures/{number:06d}-{slug(shown.key)}.png"
        part: dict[str, Any] = {"samples": [], "published": [], "left_out": [], "problems": []}
        rng = rng_for(self.work.seed, shown.key)
        wanted, absent = self._questions(shown, rng)
        for name, reason in self._unasked(whole, shown, wanted).items():
            part["left_out"].append({"picture": shown.key, "structure": name, "reason": reason})
        embedding = self.segmenter.embed(shown.picture.rgb) if wanted else None
        everything = {**shown.truths, **shown.traces}
        for name in [*wanted, *absent]:
            rng = rng_for(self.work.seed, shown.key, name)
            truth = everything.get(name, np.zeros(shown.picture.rgb.shape[:2], bool))
            others = {other: each for other, each in everything.items() if other != name}
            run: expert.Run | expert.LeftOut = expert.Run((), True)
            if name in wanted:
                rgb = shown.picture.rgb
                run = expert.work(self.segmenter, embedding, rgb, truth, others, self.work.recipe, rng)
            if isinstance(run, expert.LeftOut):
                reason = run.reason
                part["left_out"].append({"picture": shown.key, "structure": name, "reason": reason})
                continue
            asked = self.work.question.replace("{structure}", name) or questions.question(name, rng)
            turns = expert.turns_of(run, name, truth, self.work.recipe, rng)
            sample = {
                "id": f"{shown.key}/{name}",
                "image": file,
                "scan": shown.scan,
                "height": truth.shape[0],
                "width": truth.shape[1],
                "structure": name,
                "question": asked,
                "target_rle": encode_rle(truth),
                "turns": turns,
            }
            part["samples"].append(sample)
            self._write_forms(shown, sample, run, part, file)
        if part["samples"]:
            write_png(self.work.out / file, shown.picture.rgb)
        return part

    def _questions(self, shown: Shown, rng: np.random.Generator) -> tuple[list[str], list[str]]:
        """(present structures to ask for, absent ones)."""
        wanted = list(shown.truths)
        if self.work.per_picture and len(wanted) > self.work.per_picture:
            kept = set(rng.permutation(wanted)[: self.work.per_picture].tolist())
            wanted = [name for name in wanted if name in kept]
        here = set(shown.truths) | set(shown.traces)
        could = [name for name in dict.fromkeys([*shown.absent, *self.work.absent]) if name not in here]
        share = self.work.absent_share
        expected = share if not wanted else share / (1 - share) * len(wanted) if share < 1 else len(could)
        count = min(len(could), int(expected) + int(rng.random() < expected % 1))
        return wanted, [str(name) for name in rng.permutation(could)[:count]] if count else []

    def _unasked(self, whole: Shown, shown: Shown, wanted: Sequence[str]) -> dict[str, str]:
        """Structure → why it is not asked for, for the picture as cut (`whole`) and as seen (`shown`)."""
        least = f"below --least-area {self.work.choice.least_area:g} of the picture"
        found = {name: f"{int(trace.sum())} pixels, {least}" for name, trace in shown.traces.items()}
        others = f"--per-picture {self.work.per_picture} asks for others"
        found |= {name: others for name in shown.truths if name not in wanted}
        gone = {**whole.truths, **whole.traces}.keys() - {**shown.truths, **shown.traces}.keys()
        return found | dict.fromkeys(sorted(gone), "outside the frame that the models see")

    def _write_forms(
        self, shown: Shown, sample: dict[str, Any], run: expert.Run, part: dict[str, Any], file: str
    ) -> None:
        """Add the run in the published form, and save it as ibis-trajectory/1 if wanted."""
        name = sample["structure"]
        trajectory = recorded(shown, sample, run, self.segmenter.identity)
        mask, value = shown.masks.get(name, (None, None))
        try:
            published = from_trajectory(
                trajectory,
                self.work.name_of(shown.file) if shown.file else file,
                self.work.name_of(mask) if mask else "",
                value,
                reverse=shown.reverse,
            )
            part["published"].append(published.to_json())
        except InputError:  # a scan that the published programs cannot read, or a box
            part["published"].append(None)
        if self.work.trajectories:
            stem = f"{Path(file).stem}-{slug(name)}"
            folder = self.work.out / "trajectories"
            folder.mkdir(exist_ok=True)
            trajectory.save(folder / f"{stem}.json")


def recorded(shown: Shown, sample: dict[str, Any], run: expert.Run, identity: dict[str, str]) -> Trajectory:
    """The run as a Trajectory; its steps are marked as made by a person."""
    steps: list[Step] = []
    for turn in sample["turns"]:
        action = action_of(turn)
        if isinstance(action, Terminate):
            mask = steps[-1].mask if steps else np.zeros((sample["height"], sample["width"]), bool)
            score = steps[-1].score if steps else None
        else:
            made = run.steps[turn["number"] - 1]
            mask, score = made.mask, made.score
        said = turn["thinking"], turn["reply"]
        steps.append(Step(turn["number"], action, "person", mask, None, score, *said))
    source = shown.file.name if shown.file else f"{slug(shown.key)}.png"
    return Trajectory.of_slice(
        shown.picture,
        sample["question"],
        steps,
        status="ended" if run.ended else "ready",
        reason="The expert terminated." if run.ended else "",
        segmenter=dict(identity),
        source=source,
        note="Simulated clicks of an expert who knows the ground truth.",
    )


def do_all(
    work: Work, groups: Sequence[tuple[int, Group]], workers: int, segmenter: Any, progress: Any
) -> None:
    """Make the missing parts of numbered groups.

    Args:
        segmenter: used if there is only one worker.
        progress: a tqdm bar, in pictures.

    Raises KeyboardInterrupt once all processes have stopped, ModelError if a process died.
    """
    todo = [(number, group) for number, group in groups if not is_done(work.out, number)]
    progress.total = len(todo)  # one picture per group until it is read
    if workers <= 1:
        worker = Worker(work, segmenter)
        for number, group in todo:
            before = 0
            for done, of in worker.pictures(number, group, (0, 1)):
                if done == 0:
                    progress.total += of - 1
                progress.update(done - before)
                before = done
        return
    shares = max(1, -(-2 * workers // max(1, len(todo))))
    context = multiprocessing.get_context("spawn")
    news, stop = context.Queue(), context.Event()
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin, initargs=(work, news, stop)
    ) as pool:
        # Share 0 also writes the group's own part, usually before other shares end; `is_done` finds those missing
        # if the run is killed in between.
        waiting: set[Future[None]] = {
            pool.submit(_share, number, group, (k, shares)) for number, group in todo for k in range(shares)
        }
        try:
            while waiting:
                ended, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                _update(news, progress)
                for each in ended:
                    each.result()
        except BaseException as error:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise ModelError(
                    "a worker process was killed, perhaps because memory ran out",
                    value=f"{workers} workers",
                    remedy="Run it again with fewer --workers; finished pictures are kept.",
                ) from error
            raise
        _update(news, progress)


_process: tuple[Worker, Any, Any] | None = None


def _begin(work: Work, news: Any, stop: Any) -> None:
    """Set up a worker process. The parent handles Ctrl-C."""
    global _process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    _process = (Worker(work, load_segmenter(work)), news, stop)


def _share(number: int, group: Group, share: tuple[int, int]) -> None:
    assert _process is not None
    worker, news, stop = _process
    before = -1
    for done, of in worker.pictures(number, group, share):
        news.put((max(0, done - max(before, 0)), of - (share[0] == 0) if before < 0 else 0))
        before = done
        if stop.is_set():
            return


def _update(news: Any, progress: Any) -> None:
    while True:
        try:
            done, more = news.get_nowait()
        except queue.Empty:
            return
        progress.total += more
        progress.update(done)


def load_segmenter(work: Work) -> Any:
    """The segmenter of a run, with one CPU thread per process, so that processes do not compete."""
    import ibis_agent.segmenter as segmenters
    import torch

    torch.set_num_threads(1)
    segmenter: Any = segmenters.open(work.segmenter, work.config, work.device)
    segmenter.kept.limit = 2**26  # bytes; small, as every picture comes once and there are several processes
    return segmenter


def part_name(number: int, n: int) -> str:
    return f"{number:06d}-{n:05d}.json"


def group_name(number: int) -> str:
    return f"{number:06d}.json"


def write_part(out: Path, name: str, part: dict[str, Any]) -> None:
    write_text(out / "parts" / name, json.dumps(part, ensure_ascii=False, allow_nan=False))


def read_parts(out: Path, number: int) -> Iterator[dict[str, Any]]:
    """A group's own part, then those of its pictures in order."""
    own = json.loads((out / "parts" / group_name(number)).read_text(encoding="utf-8"))
    yield own
    for n in range(own["pictures"]):
        yield json.loads((out / "parts" / part_name(number, n)).read_text(encoding="utf-8"))


def is_done(out: Path, number: int) -> bool:
    """Whether all parts of a group exist."""
    own = out / "parts" / group_name(number)
    if not own.is_file():
        return False
    count = json.loads(own.read_text(encoding="utf-8"))["pictures"]
    return all((out / "parts" / part_name(number, n)).is_file() for n in range(count))


def write_png(path: Path, rgb: np.ndarray) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    grey = bool((rgb == rgb[:, :, :1]).all())  # a third of the size; readers convert to RGB
    Image.fromarray(rgb[:, :, 0] if grey else rgb).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def rng_for(seed: int, *names: str) -> np.random.Generator:
    """A generator that depends only on the seed and these names."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def slug(text: str) -> str:
    """A file name for a key; for a long key, from its end, where slices of one scan differ."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[-80:].strip("-.") or "picture"
