"""A folder belongs to one run: its settings are saved there, and resuming with others is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ibis_agent.errors import InputError
from ibis_agent.fields import read_json
from ibis_agent.files import write_json

from training.common.settings import settings_from, settings_to_json

SETTINGS = "settings.json"


def same_run(
    file: Path,
    settings: dict[str, Any],
    facts: dict[str, Any],
    free: Sequence[str] = (),
    kind: type | None = None,
    write: bool = True,
) -> None:
    """Check that the run in `file` has the same settings; write them if there is no such file.

    Args:
        settings, facts: everything the result depends on; settings are compared one by one.
        free: settings that do not change the result.
        kind: the settings' dataclass, for defaults of keys that an older file lacks.
        write: whether this process may write the file.

    Raises InputError naming what differs.
    """
    if not file.is_file():
        if write:
            write_json(file, {"settings": settings, **facts})
        return
    before = read_json(file)
    known = before.get("settings") or {}
    if kind is not None:
        with contextlib.suppress(InputError):  # of another version: the differences are reported below
            known = settings_to_json(settings_from(known, kind))
    keys = dict.fromkeys((*settings, *known))
    changed = [key for key in keys if key not in free and settings.get(key) != known.get(key)]
    changed += [key for key, value in facts.items() if key not in changed and before.get(key, value) != value]
    if changed:
        raise InputError(
            "the folder contains a run with other settings or data",
            file=file.parent,
            value=", ".join(changed),
            remedy="Choose another folder, or remove it.",
        )
