"""A folder of trajectories: the numbers of its scans, and merging finished parts into the final files.

Scans keep their numbers, so that more can be added to a finished folder: existing lines stay, new ones follow.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ibis_agent.cases.case import Problem
from ibis_agent.cases.cases import refuse, tally
from ibis_agent.errors import InputError
from ibis_agent.fields import read_json
from ibis_agent.files import atomic_write, write_json

from training.common.pictures import Group
from training.trajectories.parts import read_parts

NAME, PUBLISHED, REPORT = "trajectories.jsonl", "published.json", "report.json"
_GROUPS, _MERGED = "groups.json", "merged.json"


def numbered(out: Path, groups: Sequence[Group]) -> list[tuple[int, Group]]:
    """Every group with its number in the folder. New groups get the next numbers, which are saved.

    Raises InputError if a group of the folder is missing or has other labels.
    """
    file = out / _GROUPS
    if (out / NAME).is_file() and not file.is_file():
        raise InputError(
            "the folder was finished by an older version and cannot be added to",
            file=out,
            remedy="Choose another folder.",
        )
    known: list[list[str]] = read_json(file) if file.is_file() else []
    places = {key: number for number, (key, _) in enumerate(known)}
    given = {group.key: _fingerprint(group) for group in groups}
    for key, fingerprint in known:
        if given.get(key) != fingerprint:
            what = "has other labels than before" if key in given else "is no longer among the scans"
            raise InputError(
                f"a scan of this folder {what}",
                file=out,
                value=key,
                remedy="Choose another folder: scans can be added, but not changed or removed.",
            )
    for group in groups:
        if group.key not in places:
            places[group.key] = len(known)
            known.append([group.key, given[group.key]])
    if not file.is_file() or len(known) > len(read_json(file)):
        write_json(file, known)
    return sorted(((places[group.key], group) for group in groups), key=lambda each: each[0])


def finished(out: Path, count: int) -> dict[str, Any] | None:
    """The report of a folder in which all `count` groups are merged, else None."""
    files = [out / name for name in (NAME, PUBLISHED, REPORT, _MERGED)]
    if not all(file.is_file() for file in files) or read_json(out / _MERGED)["groups"] != count:
        return None
    return read_json(out / REPORT)


def merged(out: Path) -> int:
    """The number of groups already in the final files; these are the first ones."""
    return int(read_json(out / _MERGED)["groups"]) if (out / _MERGED).is_file() else 0


def merge(
    out: Path, count: int, problems: Sequence[Problem], identity: dict[str, str], strict: bool
) -> dict[str, Any]:
    """Append the parts of `count` groups to the final files and return the report. `strict` raises for problems."""
    before: dict[str, Any] = {"groups": 0, "questions": 0, "published": 0, "left_out": [], "problems": []}
    if (out / _MERGED).is_file():
        before = read_json(out / _MERGED)
    tally_of = _Tally()
    found = [Problem(**each) for each in before["problems"]]
    left_out: list[dict[str, str]] = list(before["left_out"])
    written = 0
    with atomic_write(out / NAME) as lines, atomic_write(out / PUBLISHED) as published:
        with (
            lines.open("w", encoding="utf-8") as line_file,
            published.open("w", encoding="utf-8") as json_file,
        ):

            def publish(each: Any) -> None:
                nonlocal written
                json_file.write((",\n" if written else "[\n") + json.dumps(each, ensure_ascii=False))
                written += 1

            if before["questions"]:
                for text in _first_lines(out / NAME, before["questions"]):
                    line_file.write(text)
                    tally_of.add(json.loads(text))
                for each in json.loads((out / PUBLISHED).read_text(encoding="utf-8"))[: before["published"]]:
                    publish(each)
            for number in range(before["groups"], count):
                for part in read_parts(out, number):
                    found += [Problem(**each) for each in part["problems"]]
                    left_out += part.get("left_out", [])
                    for sample in part.get("samples", []):
                        line_file.write(json.dumps(sample, ensure_ascii=False) + "\n")
                        tally_of.add(sample)
                    for each in part.get("published", []):
                        if each is not None:
                            publish(each)
            json_file.write("\n]\n" if written else "[]\n")
        if strict:
            refuse([*problems, *found])
    counts = tally_of.counts
    counts["without_published_form"] = counts["questions"] - written
    report = {
        **counts,
        "mistakes": dict(sorted(tally_of.mistakes.items())),
        "structures": tally_of.structures(),
        "left_out": {"count": len(left_out), "each": left_out},
        "problems": tally([*problems, *found]),
        "segmenter": identity,
    }
    write_json(out / REPORT, report)
    kept = {"groups": count, "questions": counts["questions"], "published": written}
    write_json(out / _MERGED, {**kept, "left_out": left_out, "problems": [vars(each) for each in found]})
    shutil.rmtree(out / "parts", ignore_errors=True)
    return report


class _Tally:
    """Counts for the report."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.mistakes: Counter[str] = Counter()
        self._clicks: dict[str, list[int]] = defaultdict(list)
        self._ious: dict[str, list[float]] = defaultdict(list)
        self._pictures: set[str] = set()

    def add(self, sample: Any) -> None:
        turns = sample["turns"]
        self._pictures.add(sample["image"])
        self.counts["pictures"] = len(self._pictures)
        self.counts["questions"] += 1
        self.counts["turns"] += len(turns)
        self.mistakes.update(turn["mistake"] for turn in turns if turn["mistake"])
        if sample["target_rle"]:
            self._clicks[sample["structure"]].append(sum(turn["kind"] != "terminate" for turn in turns))
            self._ious[sample["structure"]].append(turns[-1]["iou_after"])
        else:
            self.counts["absent"] += 1

    def structures(self) -> dict[str, Any]:
        return {
            name: {
                "questions": len(clicks),
                "clicks_mean": round(float(np.mean(clicks)), 3),
                "iou_mean": round(float(np.mean(self._ious[name])), 4),
            }
            for name, clicks in sorted(self._clicks.items())
        }


def _fingerprint(group: Group) -> str:
    cases = [[case.id, sorted(case.labels.items())] for case in group.cases]
    return hashlib.sha256(json.dumps([group.phantom, cases]).encode()).hexdigest()[:32]


def _first_lines(path: Path, count: int) -> Iterator[str]:
    with path.open(encoding="utf-8") as stream:
        for _ in range(count):
            yield stream.readline()
