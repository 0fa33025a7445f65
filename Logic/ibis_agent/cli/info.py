"""Describes a file or folder for `ibis-agent info`: a policy, a segmenter, a trajectory or a scan.

Errors are the same as for a run. A small model is also loaded to see whether that works; a large one only on request.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

import ibis_agent.policy as policies
import ibis_agent.segmenter as segmenters
from ibis_agent.cli.record_path import record_in
from ibis_agent.errors import IbisError, InputError
from ibis_agent.facts import Fact
from ibis_agent.policy.contract import PolicySource
from ibis_agent.policy.required_memory import count_words, gigabytes
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.scan.checks import by
from ibis_agent.segmenter.nninteractive.source import NnInteractiveAddress
from ibis_agent.segmenter.sam2.source import Sam2File

# A larger model is loaded only on request: it would take a minute and most of a small machine's memory.
_QUICK = 2 * 10**9
_CHECKPOINTS = (".pt", ".pth", ".safetensors")

Facts = dict[str, str]


def inspect(
    path: str | os.PathLike[str] | PolicySource | None = None,
    config: str | None = None,
    load: bool = False,
    series: str | None = None,
    modality: str | None = None,
    agreed: str = "",
) -> dict[str, Facts]:
    """Facts by title. None stands for the demo models; a policy may be given by its source.

    Args:
        config: architecture of a segmenter's checkpoint, as for --segmenter-config.
        load: load a model of any size.
        series, modality: for a scan, as for `load_scan`.
        agreed: the host that slices may be sent to, for a segmenter on a server.

    Raises IbisError if the kind of file is not supported, or the file cannot be used.
    """
    if path is None:
        return {
            "Demo policy": _policy(policies.find(), load),
            "Demo segmenter": _segmenter(None, config, load),
        }
    if not isinstance(path, (str, os.PathLike)):
        return {"Policy": _policy(path, load)}
    if segmenters.is_address(path):
        return {"Segmenter": _segmenter_on_server(str(path), agreed)}
    path = record_in(path)
    if not path.exists():
        raise InputError("there is no such file or folder", file=path, remedy="Check the path.")
    if path.is_dir():
        if (path / "config.json").exists() or any(path.glob("*.safetensors")):
            return {"Policy": _policy(policies.find(path), load)}
        return {"Scan": _scan(path, series, modality)}
    name = path.name.lower()
    if name.endswith(_CHECKPOINTS):
        return {"Segmenter": _segmenter(path, config, load)}
    if name.endswith(".json"):
        return {"Trajectory": _trajectory(path)}
    return {"Scan": _scan(path, series, modality)}


def _policy(source: PolicySource, load: bool) -> Facts:
    from ibis_agent.policy.prompts import DEFAULT_PROMPTS, TOOL_PROMPTS

    of_its_kind, card = source.facts(), source.card

    def load_it() -> str:
        policy = source.open()
        where = [f"{key} {getattr(policy, key)}" for key in ("device", "precision") if hasattr(policy, key)]
        return ", ".join(where) or f"clicks tested with a probe image: {of_its_kind.get('probe') or 'now'}"

    facts = {
        "name": card.name,
        "note": card.note,
        "origin": card.origin,
        "model": source.kind,
        **of_its_kind,
        "pictures": Fact(
            f"{card.orientation.value}, overlay {card.overlay_colour} at {card.overlay_alpha:g}",
            {
                "orientation": card.orientation.value,
                "overlay_colour": list(card.overlay_colour),
                "overlay_alpha": card.overlay_alpha,
            },
        ),
        "prompts": "this program's defaults"
        if card.prompts in (DEFAULT_PROMPTS, TOOL_PROMPTS)
        else "the card's",
        "actions": Fact(card.speech.words, card.language),
        "history": Fact(f"{card.history} earlier turns" if card.history else "none", card.history),
    }
    small = source.run_bytes("fp32", "cpu") < _QUICK
    return _without_blanks(facts | {"loads": _tried(load_it, load or small)})


def _segmenter(where: Path | None, config: str | None, load: bool) -> Facts:
    source = segmenters.find(where, config)
    assert isinstance(source, Sam2File)  # an address is not a path
    file, found = source.file, source.inspect()
    size = file.stat().st_size
    facts = {
        "file": str(file),
        "architecture": found.name,
        "model": Fact(
            f"{source.kind}, {count_words(found.parameters)} parameters",
            {"kind": source.kind, "parameters": found.parameters},
        ),
        "stored": Fact(gigabytes(size), {"bytes": size}),
        "sha256": source.sha256(),
        "sees pictures of": Fact(f"{found.image_size} × {found.image_size}", [found.image_size] * 2),
        "memory to run": Fact(gigabytes(source.run_bytes()), source.run_bytes()),
    }

    def load_it() -> str:
        segmenter = source.open()
        side = np.zeros((found.image_size, found.image_size, 3), np.uint8)
        begun = time.perf_counter()
        segmenter.embed(side)
        return f"{segmenter.device} in {segmenter.precision}, a picture takes {_seconds(begun)}"

    return facts | {"loads": _tried(load_it, load or source.run_bytes() < _QUICK)}


def _segmenter_on_server(where: str, agreed: str) -> Facts:
    source = segmenters.find(where, agreed=agreed)
    assert isinstance(source, NnInteractiveAddress)
    told: dict[str, str] = {}

    def load_it() -> str:
        segmenter = source.open()
        told["server's licence"] = segmenter.identity["licence"]
        taken = {"clicks": segmenter.can.clicks, "boxes": segmenter.can.boxes}
        taken["a starting mask"] = segmenter.can.starting_mask
        segmenter.session.close()
        return (
            f"version {segmenter.identity['version']}, takes {', '.join(key for key in taken if taken[key])}"
        )

    loads = _tried(load_it, True)
    return _without_blanks({**source.facts(), **told, "loads": loads})


def _trajectory(path: Path) -> Facts:
    recorded = Trajectory.load(path)
    slices, geometry = recorded.slices, recorded.picture.geometry
    people = sum(each.by == "person" for each in recorded.actions)
    count = Fact(
        f"{len(recorded.actions)}, {people} of them by the person",
        {"all": len(recorded.actions), "by_a_person": people},
    )
    facts = {"file": str(path), "question": recorded.question, "answer": recorded.answer or ""}
    if recorded.alone:
        sides = [geometry.width, geometry.height]
        picture = {"plane": geometry.plane, "size": sides, "slice": geometry.index}
        facts |= {"steps": count, "picture": Fact(f"{geometry.plane}, {by(sides)}", picture)}
    else:
        visited, shown = recorded.visited, [n for n, each in sorted(recorded.rows.items()) if each["area_px"]]
        span = f"{slices.first} to {slices.last} of {len(slices)}"
        looks = max((each.look for each in recorded.actions), default=0)
        key, where = recorded.key, f"slices {shown[0]} to {shown[-1]}" if shown else "no slice"
        facts |= {
            "actions": count,
            "second looks": Fact(str(looks), looks),
            "slices": Fact(
                f"{geometry.plane}, {span}, {len(visited)} visited",
                {
                    "plane": geometry.plane,
                    "first": slices.first,
                    "last": slices.last,
                    "of": len(slices),
                    "visited": list(visited),
                },
            ),
            "key slice": "" if key is None else Fact(str(key), key),
            "object": Fact(
                f"in {where}" + ("" if recorded.ml is None else f", {recorded.ml:.2f} mL"),
                {"slices": shown, "ml": recorded.ml},
            ),
        }
    return _without_blanks(
        {
            **facts,
            "status": Fact(
                f"{recorded.status}. {recorded.reason}".strip(" ."),
                {"status": recorded.status, "reason": recorded.reason},
            ),
            "scan": recorded.source,
            "made": recorded.created,
            "policy": Fact(_identity(recorded.policy), dict(recorded.policy or {})),
            "segmenter": Fact(_identity(recorded.segmenter), dict(recorded.segmenter)),
            "note": recorded.note,
        }
    )


def _scan(path: Path, series: str | None, modality: str | None) -> Facts:
    from ibis_agent.cli.request import reading_lines
    from ibis_agent.scan.load import load_scan

    scan = load_scan(path, series=series, modality=modality)
    low, high = float(scan.voxels.min()), float(scan.voxels.max())
    sides = [int(side) for side in scan.voxels.shape]
    grey = {"type": str(scan.voxels.dtype), "lowest": low, "highest": high}
    facts: Facts = {
        "file": str(path),
        "kind": scan.kind,
        "size": Fact(by(sides), sides),
        "grey values": Fact(f"{scan.voxels.dtype}, {low:g} to {high:g}", grey),
        "modality": scan.modality,
    }
    if scan.kind == "volume":
        spacing = [float(each) for each in np.linalg.norm(scan.affine[:3, :3], axis=0)]
        size = " × ".join(f"{each:g}" for each in spacing) + " mm"
        facts["spacing"] = Fact(size, spacing) if scan.sized else "unknown: measurements are in pixels"
    if scan.window:
        facts["window"] = Fact(f"{scan.window[0]:g} to {scan.window[1]:g}", list(scan.window))
    if scan.inverted:
        facts["shown"] = "low values are bright (MONOCHROME1)"
    for n, (term, note) in enumerate(reading_lines(scan.told)):
        facts[term if n == 0 else f"{term} {n + 1}"] = Fact(note, None if n else list(scan.told))
    return _without_blanks(facts)


def _tried(load_it: Callable[[], str], wanted: bool) -> str:
    if not wanted:
        return Fact("not tested because the model is large; use --load to test", {"tried": False})
    begun = time.perf_counter()
    try:
        how = load_it()
    except IbisError as error:
        return Fact(f"no: {error}", {"tried": True, "loads": False, "error": str(error)})
    took = time.perf_counter() - begun
    return Fact(
        f"yes, in {took:.1f} s: {how}", {"tried": True, "loads": True, "seconds": round(took, 2), "how": how}
    )


def _identity(identity: Mapping[str, str] | None) -> str:
    return ", ".join(value for value in (identity or {}).values() if value)


def _seconds(since: float) -> str:
    return f"{time.perf_counter() - since:.1f} s"


def _without_blanks(facts: Facts) -> Facts:
    return {term: value for term, value in facts.items() if value}
