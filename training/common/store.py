"""Pictures and masks of scans, cut once and kept on disk for trajectories, GRPO and evaluation.

    python -m training.store SCANS --out build/store --workers 8      # ahead of time; or --shard 2/8 on eight machines

    source = opened(group, choice, Path("build/store"))    # instead of Source(group, choice)
    shown = source.show(source.places[0])

A scan is read when first needed. After that its pictures are in the store as memory-mapped .npy files, and the scan is
not read again by any command, restart or shard. The key depends only on the files (name, size, time) and the choice of
slices and structures, so a changed scan is cut again. A folder is written completely or not at all, so processes can
share a store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from ibis_agent.cases.case import Problem
from ibis_agent.fields import read_json
from ibis_agent.files import check_writable_folder, output_error, write_json
from ibis_agent.scan.frame import Frame
from ibis_agent.scan.geometry import PictureGeometry
from ibis_agent.scan.picture import Picture
from tqdm import tqdm

from training.common.pictures import Choice, Group, Shown, Source
from training.common.processes import end_with_parent

_SCHEMA = 1
_INDEX, _PIXELS, _MASKS = "index.json", "pixels.npy", "masks.npy"
_KEPT_OPEN = 256  # memory maps of one process


def opened(group: Group, choice: Choice, store: Path | None) -> Source | Kept:
    """The pictures of a group: from the store, which is filled if needed, or read directly without one.

    Raises OutputError.
    """
    if store is None or group.phantom is not None:
        return Source(group, choice)
    folder = store / _key(group, choice)
    if not (folder / _INDEX).is_file():
        check_writable_folder(store)
        lock = store / f".{folder.name}.lock"
        with FileLock(lock):  # so that only one process reads a scan
            if not (folder / _INDEX).is_file():
                _keep(Source(group, choice), folder)
        with contextlib.suppress(OSError):  # not while waiting: another process may hold it
            lock.unlink()
    return Kept(group, folder)


class Kept:
    """A group in a store; used like Source, but without the scan.

    Attributes:
        places, scan, problems: as of Source.
        usable: the places without a problem.
        digest: SHA-256 of pictures, masks and names.
    """

    def __init__(self, group: Group, folder: Path) -> None:
        self.group, self._folder = group, folder
        index = read_json(folder / _INDEX)
        self.scan, self.digest = str(index["scan"]), str(index["digest"])
        self.problems = [Problem(**each) for each in index["problems"]]
        self.places = [(str(plane), int(number)) for plane, number in index["places"]]
        self._rows: list[dict[str, Any]] = index["pictures"]
        self._at = {place: n for n, place in enumerate(self.places)}
        self._masks: dict[str, Any] = index["masks"]
        pairs = zip(self.places, self._rows, strict=True)
        self.usable = [place for place, row in pairs if "problem" not in row]

    def show(self, place: tuple[str, int]) -> Shown | Problem:
        """The same as Source.show; the arrays are copies."""
        row = self._rows[self._at[place]]
        if "problem" in row:
            return Problem(**row["problem"])
        pixels, masks = _mapped(self._folder / _PIXELS), _mapped(self._folder / _MASKS)
        height, width, channels = row["shape"]
        start = row["pixels"]
        values = np.array(pixels[start : start + height * width * channels]).reshape(height, width, channels)
        frame = None if row["frame"] is None else Frame(**row["frame"])
        picture = Picture(
            np.repeat(values, 3, axis=2) if channels == 1 else values,
            PictureGeometry.from_json(row["geometry"]),
            None if row["window"] is None else (row["window"][0], row["window"][1]),
            tuple(row["notes"]),
            frame,
        )
        found: dict[str, dict[str, np.ndarray]] = {"truths": {}, "traces": {}}
        for kind, name, top, left, bottom, right, offset in row["structures"]:
            mask = np.zeros((height, width), bool)
            count = (bottom - top) * (right - left)
            bits = np.unpackbits(np.array(masks[offset : offset + (count + 7) // 8]), count=count)
            mask[top:bottom, left:right] = bits.reshape(bottom - top, right - left)
            found[kind][name] = mask
        case = self.group.cases[0]
        origins = {name: (Path(file), value) for name, (file, value) in self._masks.items()}
        return Shown(
            row["key"],
            picture,
            **found,
            absent=list(row["absent"]),
            file=case.image,
            masks=origins,
            reverse=bool(row["reverse"]),
            scan=self.scan,
        )


def _keep(source: Source, folder: Path) -> None:
    """Write every picture of a source to a folder, one at a time to save memory. Raises OutputError."""
    rows: list[dict[str, Any]] = []
    origins: dict[str, Any] = {}
    digest = hashlib.sha256()
    check_writable_folder(folder.parent)
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
    try:
        temporary.mkdir()
        with _array(temporary / _PIXELS) as pixels, _array(temporary / _MASKS) as masks:
            for place in source.places:
                shown = source.show(place)
                if isinstance(shown, Problem):
                    rows.append({"problem": vars(shown)})
                    continue
                rows.append(_row(shown, pixels, masks, digest))
                origins |= {name: [str(file), value] for name, (file, value) in shown.masks.items()}
        index = {
            "scan": source.scan,
            "digest": digest.hexdigest(),
            "problems": [vars(each) for each in source.problems],
            "places": source.places,
            "masks": origins,
            "pictures": rows,
        }
        write_json(temporary / _INDEX, index)
        os.replace(temporary, folder)
    except OSError as error:
        raise output_error(error, folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _row(shown: Shown, pixels: _Appended, masks: _Appended, digest: Any) -> dict[str, Any]:
    rgb = shown.picture.rgb
    grey = bool((rgb == rgb[:, :, :1]).all())
    values = np.ascontiguousarray(rgb[:, :, :1] if grey else rgb)
    structures = []
    for kind in ("truths", "traces"):
        for name, mask in getattr(shown, kind).items():
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            top, bottom = int(rows[0]), int(rows[-1]) + 1
            left, right = int(columns[0]), int(columns[-1]) + 1
            offset = masks.add(np.packbits(mask[top:bottom, left:right]))
            structures.append([kind, name, top, left, bottom, right, offset])
            digest.update(
                f"{kind} {name} {top} {left} {bottom} {right}".encode() + np.packbits(mask).tobytes()
            )
    digest.update(f"{shown.key} {values.shape} {shown.absent}".encode() + values.tobytes())
    picture = shown.picture
    return {
        "key": shown.key,
        "shape": list(values.shape),
        "pixels": pixels.add(values.reshape(-1)),
        "geometry": picture.geometry.to_json(),
        "window": picture.window,
        "notes": list(picture.notes),
        "frame": None if picture.frame is None else dataclasses.asdict(picture.frame),
        "structures": structures,
        "absent": shown.absent,
        "reverse": shown.reverse,
    }


class _Appended:
    """Appends bytes to a stream; `size` bytes so far."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.size = stream, 0

    def add(self, values: np.ndarray) -> int:
        """Write (n,) uint8 and return their offset."""
        begun = self.size
        self._stream.write(values.tobytes())
        self.size += values.size
        return begun


@contextlib.contextmanager
def _array(path: Path) -> Iterator[_Appended]:
    """A .npy file of (n,) uint8 that grows while the block runs; n is written to its header at the end."""
    with open(path, "wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**15,)}
        np.lib.format.write_array_header_1_0(stream, header)
        appended, length = _Appended(stream), stream.tell()
        yield appended
        stream.seek(0)
        np.lib.format.write_array_header_1_0(stream, {**header, "shape": (appended.size,)})
        assert stream.tell() == length, "the header has the same length for any n"


class _Maps:
    """The most recently used memory maps."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, np.ndarray] = OrderedDict()

    def __call__(self, path: Path) -> np.ndarray:
        if path not in self._open:
            try:
                self._open[path] = np.load(path, mmap_mode="r")
            except ValueError:  # an empty array cannot be mapped
                self._open[path] = np.load(path)
            if len(self._open) > _KEPT_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(path)
        return self._open[path]


_mapped = _Maps()


def _key(group: Group, choice: Choice) -> str:
    cases = []
    for case in group.cases:
        files = [
            [str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns]
            for f in (case.image, case.mask)
            if f.exists()
        ]
        cases.append(
            [case.id, files, sorted(case.labels.items()), case.window, case.reverse, case.own_labels]
        )
    text = json.dumps([_SCHEMA, group.key, cases, dataclasses.asdict(choice)], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def fill(
    groups: Sequence[Group], choice: Choice, store: Path, workers: int = 1
) -> tuple[int, int, list[Problem]]:
    """Put groups into a store. Returns (pictures, scans with pictures, problems). Raises OutputError."""
    check_writable_folder(store)
    one = functools.partial(_filled, choice=choice, store=store)
    with contextlib.ExitStack() as stack:
        if workers <= 1:
            found: Iterable[tuple[int, list[Problem]]] = map(one, groups)
        else:
            pool = ProcessPoolExecutor(workers, get_context("spawn"), end_with_parent)
            stack.callback(pool.shutdown, cancel_futures=True)
            found = pool.map(one, groups)
        results = list(tqdm(found, total=len(groups), desc="scans", mininterval=2))
    counts = [count for count, _ in results]
    return sum(counts), sum(map(bool, counts)), [each for _, problems in results for each in problems]


def _filled(group: Group, choice: Choice, store: Path) -> tuple[int, list[Problem]]:
    source = opened(group, choice, store)
    return len(source.places), source.problems
