"""`ibis-agent cohort SCANS --prompt … --out DIR`: one question about many scans, in worker processes that load once.

Every scan has its own folder in DIR, which appears when it is complete. Finished scans are skipped, so the same command
continues an interrupted cohort. A scan that cannot be used is reported in one line, and the others are still
processed. What a worker does is in cohort_worker.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import multiprocessing.connection
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ibis_agent.segmenter as segmenters
from ibis_agent import files
from ibis_agent.cli import terminal
from ibis_agent.cli.claim import Claim
from ibis_agent.cli.cohort_masks import with_masks
from ibis_agent.cli.cohort_result import RESULT_NAME, Result, is_result
from ibis_agent.cli.cohort_scans import Entry, entries_of
from ibis_agent.cli.cohort_worker import WORKING, load_models, work
from ibis_agent.cli.exit_codes import SOME_FAILED
from ibis_agent.cli.request import Request, check_options
from ibis_agent.cli.several import questions_of
from ibis_agent.errors import InputError
from ibis_agent.fields import read_json
from ibis_agent.record.cohort_page import write_cohort_page, write_table

COHORT_NAME, TABLE_NAME, PAGE_NAME = "cohort.json", "measures.csv", "index.html"
_SCHEMA = "ibis-cohort/1"
_AHEAD = 2  # entries per worker: the current one, and the next one to read
_BETWEEN = 10.0  # seconds between updates of the table and the page

Start = Callable[[Request, Path, int], tuple[Connection, Callable[[], None]]]


class Worker:
    """A worker as its cohort sees it, with its entries; the first one is being processed."""

    def __init__(self, asked: Request, out: Path, number: int, start: Start) -> None:
        self.number, self.entries = number, deque[Entry]()
        self.pipe, self._end = start(asked, out, number)

    def give(self, entry: Entry) -> None:
        with contextlib.suppress(OSError):  # it has just died; this is handled when waiting for its answer
            self.pipe.send(entry)
        self.entries.append(entry)

    def end(self) -> None:
        self.pipe.close()
        self._end()


class Cohort:
    """The scans, the results so far, and the files about all of them.

    out: created if missing. Raises InputError if it contains a cohort with another question.
    """

    def __init__(self, entries: list[Entry], asked: Request, out: Path) -> None:
        self.entries, self.asked, self.out = entries, asked, out
        self.results: dict[str, Result] = {}
        files.check_writable_folder(out)
        self._check_places()
        self._check_same()
        for entry in entries:
            found = Result.load(out / entry.name)
            if found is not None and not found.error:
                self.results[entry.name] = dataclasses.replace(found, scan=entry.scan)
        self.already = len(self.results)
        self._written = 0.0

    @property
    def todo(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.name not in self.results]

    def run(
        self, workers: int, start: Start, tell: Callable[[Result, int], object] = lambda result, done: None
    ) -> None:
        """Process the remaining scans.

        tell: called with every result and the number of scans done.
        Raises what loading the models raises, and OutputError if another cohort is using the folder.
        """
        claim = Claim(self.out)
        try:
            files.write_json(self.out / COHORT_NAME, self._check_same())
        except BaseException:
            claim.release()
            raise
        waiting = deque(self.todo)
        for leftover in self.out.glob(f"{WORKING}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for name in (COHORT_NAME, TABLE_NAME, PAGE_NAME):
            files.remove_unfinished(self.out / name)
        at_work = [Worker(self.asked, self.out, n, start) for n in range(min(workers, len(waiting)))]
        try:
            while any(worker.entries for worker in at_work) or waiting:
                for worker in at_work:
                    while waiting and len(worker.entries) < _AHEAD:
                        worker.give(waiting.popleft())
                for worker, told in _heard(at_work):
                    if told is None:  # it died, most likely for lack of memory; the current scan is blamed
                        self._replace(worker, at_work, waiting, start, tell)
                    elif told[0] == "failed":
                        raise told[1]
                    elif told[0] != "ready":
                        entry = worker.entries.popleft()
                        done = told[1]
                        result = (
                            Result(
                                entry.name, entry.scan, self._question(entry), error=terminal.one_line(done)
                            )
                            if isinstance(done, str)
                            else Result(**done)
                        )
                        self._keep(result, tell)
        finally:
            for worker in at_work:
                worker.end()
            self.write()
            claim.release()

    def write(self) -> None:
        """Write the table and the page for the results so far. Raises OutputError."""
        known = [self.results[entry.name].to_json() for entry in self.entries if entry.name in self.results]
        write_table(self.out / TABLE_NAME, known)
        question = self.asked.question or ", ".join(self.asked.questions) or "Several questions"
        write_cohort_page(self.out / PAGE_NAME, question, known, len(self.entries) - len(known))
        self._written = time.monotonic()

    def _keep(self, result: Result, tell: Callable[[Result, int], object]) -> None:
        self.results[result.name] = result
        if time.monotonic() - self._written > _BETWEEN:
            self.write()
        tell(result, len(self.results))

    def _replace(
        self,
        worker: Worker,
        at_work: list[Worker],
        waiting: deque[Entry],
        start: Start,
        tell: Callable[[Result, int], object],
    ) -> None:
        worker.end()
        at_work.remove(worker)
        while worker.entries:
            entry = worker.entries.popleft()
            found = Result.load(self.out / entry.name)
            if found is not None and not found.error:  # finished, but its worker died before reporting it
                self._keep(dataclasses.replace(found, scan=entry.scan), tell)
                continue
            text = "the worker process ended unexpectedly, possibly for lack of memory"
            self._keep(Result(entry.name, entry.scan, self._question(entry), error=text), tell)
            break
        waiting.extendleft(reversed(worker.entries))
        if waiting:
            at_work.append(Worker(self.asked, self.out, worker.number, start))

    def _question(self, entry: Entry) -> str:
        return entry.question or self.asked.question or ", ".join(self.asked.questions)

    def _check_places(self) -> None:
        """Raises InputError if a result would overwrite something that is not ours, such as the scan's own folder."""
        ours = (self.out / COHORT_NAME).exists()
        own = [] if ours else [self.out / name for name in (TABLE_NAME, PAGE_NAME)]
        folders = [self.out / entry.name for entry in self.entries]
        taken = [path for path in own if path.exists()]
        taken += [path for path in folders if not is_result(path)]
        if taken:
            remedy = "Choose another --out, an empty folder."
            raise InputError("the results would overwrite this", file=taken[0], remedy=remedy)

    def _check_same(self) -> dict[str, Any]:
        """The settings that affect the results, which are stored beside them.

        Raises InputError if there are results with other settings: answers to two questions are never mixed.
        """
        path = self.out / COHORT_NAME
        now = {"schema": _SCHEMA, **json.loads(json.dumps(_deciding(self.asked), default=str))}
        if path.exists() and any(self.out.glob(f"*/{RESULT_NAME}")):
            before = read_json(path)
            known = before if isinstance(before, dict) else {}
            other = [key for key in {**known, **now} if (known.get(key) or None) != (now.get(key) or None)]
            if other:
                raise InputError(
                    "the folder contains a cohort with another question or other settings",
                    file=path,
                    value=", ".join(other),
                    remedy="Choose another --out, or use the same question and settings.",
                )
        return now


def _deciding(asked: Request) -> dict[str, Any]:
    """The request without the scan, the folder, and anything that does not affect the results."""
    said = {each.name: getattr(asked, each.name) for each in dataclasses.fields(asked)}
    said["masks"] = asked.masks.to_json()
    return {
        key: said[key] for key in said if key not in ("scan", "series", "device", "out", "mask", "resume")
    }


def _heard(workers: list[Worker]) -> Iterator[tuple[Worker, Any]]:
    """The workers' messages, waiting for at least one; None for a worker that is gone."""
    pipes = {worker.pipe: worker for worker in workers}
    for pipe in multiprocessing.connection.wait(list(pipes)):
        worker = pipes[pipe]  # type: ignore[index]
        try:
            yield worker, worker.pipe.recv()
        except (EOFError, OSError):
            yield worker, None


def start_process(
    asked: Request, out: Path, number: int, load: Callable[[Request], Any] = load_models
) -> tuple[Connection, Callable[[], None]]:
    """Start a worker process. Returns the pipe to it, and a function that ends it.

    load: returns policy and segmenter.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, asked, out, number, load), daemon=True)
    process.start()
    theirs.close()  # so that we notice when it ends

    def end() -> None:
        process.join(timeout=1)  # it ends when the pipe closes, unless it is processing a scan
        if process.is_alive():
            process.kill()
            process.join()

    return ours, end


def run_cohort(asked: Request, options: argparse.Namespace) -> int:
    """The command. asked: the request for every scan."""
    entries = entries_of(options.scans)
    if options.structures is not None:
        asked = _with_structures(asked, options.structures)
    elif asked.question:
        questions_of(asked, [asked.question])  # unknown structures are reported before any scan is read
    if not (asked.question or asked.questions) and not all(entry.question for entry in entries):
        raise InputError("there is no question", remedy="Add --prompt, or a column prompt to the manifest.")
    if options.workers < 1:
        raise InputError(
            "at least one worker is needed", value=options.workers, remedy="Give --workers 1 or more."
        )
    check_options(asked)
    screen = terminal.Screen(quiet=options.quiet or options.json)
    if segmenters.is_address(asked.segmenter):  # shows the licence of its weights
        screen.line(str(segmenters.find(asked.segmenter)))
    cohort = Cohort(with_masks(entries, asked.masks), asked, options.out)
    if cohort.already:
        screen.line(f"{cohort.already} of {len(entries)} scans are already done")
    begun = time.monotonic()

    def tell(result: Result, done: int) -> None:
        if options.json:
            told = {key: value for key, value in result.to_json().items() if key != "thumbnail"}
            print(json.dumps({"event": "scan", "done": done, "of": len(entries), **told}), flush=True)
        left = (time.monotonic() - begun) / (done - cohort.already) * (len(entries) - done)
        count = screen.dim(f"[{done}/{len(entries)}]")
        if result.error:
            screen.line(
                f"{count} {terminal.one_line(result.name)}  {screen.bad(terminal.one_line(result.error))}"
            )
            return
        words = terminal.one_line(result.answer) or result.status
        rest = f"doubt {result.doubt:.2f}, {result.seconds:.1f} s; {_duration(left)} left"
        screen.line(f"{count} {terminal.one_line(result.name)}  {words}  {screen.dim(rest)}")

    start: Start = start_process
    if options.ray:
        from ibis_agent.cli.cohort_ray import join, start_actor

        join(options.ray)
        start = start_actor
    cohort.run(options.workers, start, tell)
    failed = sum(bool(result.error) for result in cohort.results.values())
    if options.json:
        summary = {"event": "done", "scans": len(entries), "failed": failed}
        summary |= {"table": str(options.out / TABLE_NAME), "page": str(options.out / PAGE_NAME)}
        print(json.dumps(summary), flush=True)
    screen.line(
        f"{len(entries) - failed} of {len(entries)} scans done" + (f", {failed} failed" if failed else "")
    )
    for name in (TABLE_NAME, PAGE_NAME):
        screen.line(f"  {terminal.one_line(options.out / name)}")
    return SOME_FAILED if failed else 0


def _with_structures(asked: Request, listed: str) -> Request:
    """Raises InputError for a structure that is unknown to the policy."""
    if asked.question:
        raise InputError(
            "--structures and --prompt cannot be combined", value=listed, remedy="Give only one of them."
        )
    names = [each.strip() for each in listed.split(",") if each.strip()]
    return dataclasses.replace(asked, questions=tuple(questions_of(asked, names)))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
