"""A worker of a cohort: loads the models once, processes one scan after the other, and reads the next one meanwhile.

It communicates through a pipe: entries come in, results go out; it ends when the pipe closes. It prints nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import queue
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ibis_agent.policy as policies
from ibis_agent.cli.cohort_masks import masks_of
from ibis_agent.cli.cohort_result import result_of, result_of_several
from ibis_agent.cli.cohort_scans import Entry
from ibis_agent.cli.request import Request
from ibis_agent.cli.runner import Runner, load_policy, load_segmenter
from ibis_agent.cli.several import Several, questions_of
from ibis_agent.errors import IbisError
from ibis_agent.run.growth import give_back_memory

WORKING = ".working-"
Models = tuple[Any, Any]
Work = Runner | Several


def load_models(asked: Request) -> Models:
    """The policy and the segmenter of a request. Imports torch. Raises ModelError."""
    segmenter, policy = load_segmenter(asked), load_policy(policies.find(asked.policy), asked)
    if asked.history is not None:
        policy.card = replace(policy.card, history=asked.history)
    return policy, segmenter


def work(
    pipe: Connection,
    asked: Request,
    out: Path,
    number: int = 0,
    load: Callable[[Request], Models] = load_models,
) -> None:
    """Serve until the pipe closes. Sends ("ready",), then (name, result) for each entry; or ("failed", error)."""
    with contextlib.suppress(ValueError):  # in a thread, as in tests, the main program handles signals
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; our parent closes the pipe
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        try:
            models = load(_on_own_card(asked, number))
        except (IbisError, ModuleNotFoundError) as error:
            pipe.send(("failed", error))
            return
        pipe.send(("ready",))
        prepared: queue.Queue[tuple[Entry, Work | str] | None] = queue.Queue(maxsize=1)
        threading.Thread(target=_read_ahead, args=(pipe, asked, out, prepared), daemon=True).start()
        while (each := prepared.get()) is not None:
            entry, ready = each
            pipe.send((entry.name, answer(entry, ready, models, out)))


def _end_with(sentinel: int) -> None:
    """End at once if the cohort is killed: the next one continues in the same folder."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _read_ahead(
    pipe: Connection, asked: Request, out: Path, prepared: queue.Queue[tuple[Entry, Work | str] | None]
) -> None:
    """Take entries from the pipe and read their scans, one ahead of the current one."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            entry: Entry = pipe.recv()
            prepared.put((entry, prepare(entry, asked, out)))
    prepared.put(None)


def prepare(entry: Entry, asked: Request, out: Path) -> Work | str:
    """Check one entry and read its scan. Returns a text in case of an error."""
    folder = out / f"{WORKING}{os.getpid()}-{entry.name}"
    shutil.rmtree(folder, ignore_errors=True)
    request = replace(
        asked,
        scan=Path(entry.scan),
        question=entry.question or asked.question,
        questions=() if entry.question else asked.questions,
        series=entry.series or None,
        masks=masks_of(entry, asked.masks),
        out=folder,
    )
    made: Work | str = _guarded(partial(_prepared, request))
    return made


def _prepared(request: Request) -> Work:
    """A run, or the runs for several structures, with the scan already read."""
    prompts = request.questions or ([request.question] if request.question else [])
    questions = questions_of(request, prompts)
    if len(questions) > 1:
        return Several(replace(request, question=None, questions=()), questions)
    return Runner(replace(request, question=prompts[0] if prompts else None, questions=()))


def answer(entry: Entry, work: Work | str, models: Models, out: Path) -> dict[str, Any] | str:
    """Process one scan; its folder gets its final name when it is complete. Returns a text in case of an error."""
    if isinstance(work, str):
        return work
    begun, folder = time.perf_counter(), work.task.folder

    def do() -> dict[str, Any]:
        work.begin(*models)
        for runner in [work] if isinstance(work, Runner) else work.runs():
            while runner.run.status == "ready":
                runner.do(runner.run.step)
        work.finish()
        work.give_back()
        seconds = time.perf_counter() - begun
        if isinstance(work, Runner):
            result = result_of(entry, work, seconds)
        else:
            result = result_of_several(entry, work, seconds)
        result.save(folder)
        shutil.rmtree(out / entry.name, ignore_errors=True)
        folder.rename(out / entry.name)
        return result.to_json()

    made: dict[str, Any] | str = _guarded(do)
    if isinstance(made, str):
        shutil.rmtree(folder, ignore_errors=True)
    # No other scan needs these pictures, and freed pieces of memory are not returned to the system automatically.
    if (kept := getattr(models[1], "kept", None)) is not None:
        kept.forget()
    give_back_memory()
    return made


def _guarded(do: Callable[[], Any]) -> Any:
    """The result, or one line that says what went wrong."""
    try:
        return do()
    except IbisError as error:
        return str(error)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"


def _on_own_card(asked: Request, number: int) -> Request:
    """Distribute the workers over the GPUs of a machine."""
    if asked.device != "auto":
        return asked
    with contextlib.suppress(ImportError):
        import torch

        if torch.cuda.device_count() > 1:
            device = f"cuda:{number % torch.cuda.device_count()}"
            return replace(asked, device=device)
    return asked
