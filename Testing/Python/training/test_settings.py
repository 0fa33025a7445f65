"""Settings in YAML: every mistake is named by file, key and remedy before any work."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from ibis_agent.errors import InputError

from training.common.settings import read_settings, setting, settings_from, settings_to_json
from training.sft.settings import SftSettings

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Part:
    rank: int = setting(8, least=1, most=64)


@dataclass(frozen=True)
class Whole:
    model: Path
    data: tuple[Path, ...] = ()
    part: Part = Part()
    rate: float = setting(1e-5, above=0)
    kind: Literal["lora", "full"] = "lora"
    loud: bool = False
    limit: float | None = None
    card: dict[str, Any] = field(default_factory=dict)


def written(tmp_path, text):
    path = tmp_path / "settings.yaml"
    path.write_text(text, "utf-8")
    return path


def test_what_is_written_is_read_and_changes_win(tmp_path):
    path = written(tmp_path, "model: a\ndata: b\npart: {rank: 4}\nrate: 1e-4\nkind: full\nlimit: 3\n")
    assert read_settings(path, Whole) == Whole(Path("a"), (Path("b"),), Part(4), 1e-4, "full", limit=3.0)
    changed = read_settings(path, Whole, ["part.rank=16", "data=[x, y]", "loud=true", "card={history: 2}"])
    assert changed.part.rank == 16 and changed.data == (Path("x"), Path("y"))
    assert changed.loud is True and changed.card == {"history": 2}
    assert settings_from(settings_to_json(changed), Whole) == changed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: a\nrat: 1", 'unknown key (got rat). Did you mean "rate"?'),
        ("model: a\npart: {rang: 1}", 'Did you mean "part.rank"?'),
        ("rate: 1", 'the key "model" is missing'),
        ("model: a\nrate: fast", "rate must be a number"),
        ("model: a\nrate: 0", "rate must be above 0"),
        ("model: a\nrate: .nan", "rate must be a number"),
        ("model: a\npart: {rank: 0}", "part.rank must be at least 1"),
        ("model: a\npart: {rank: 4.5}", "part.rank must be a whole number"),
        ("model: a\npart: {rank: true}", "part.rank must be a whole number"),
        ("model: a\npart: 4", "part must have parts"),
        ("model: a\nkind: ful", "kind must be lora or full (got ful). Did you mean full?"),
        ("model: a\nloud: yes please", "loud must be true or false"),
        ("model: a\nmodel: b", "occurs twice"),
        ("model: [a", "is not YAML"),
        ("model: [3]", "model must be a path"),
        ("model:", "model must be a path"),
        ("model: null", "model must be a path, in quotes if this is meant (got null)"),
        ("model: [~]", "model must be a path"),
        ("model: a\ndata: [~]", "data[0] must be a path"),
        (
            "model: a\npart: {rank: 010}",
            "part.rank must be a number in decimal (YAML reads 8) (got 010)",
        ),
        ("model: a\nrate: 1:30", "(YAML reads 90)"),
        ("model: a\ncard: {history: 010}", "card.history must be a number in decimal (YAML reads 8)"),
        ("model: a\ndata: []", "data must be one or more"),
        ("- a", "contains no settings"),
    ],
)
def test_a_mistake_is_named(tmp_path, text, said):
    path = written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_settings(path, Whole)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("change", ["steps", "=3", "part=[", "model.x=1"])
def test_a_change_that_is_none_is_refused(tmp_path, change):
    with pytest.raises(InputError):
        read_settings(written(tmp_path, "model: a\n"), Whole, [change])


@pytest.mark.parametrize("name", ["sft-demo", "sft-7b-lora", "sft-7b-full"])
def test_the_settings_that_are_shipped_are_right(name):
    settings = read_settings(ROOT / "training" / "configs" / f"{name}.yaml", SftSettings)
    assert settings.tune == ("full" if name.endswith("full") else "lora")


@pytest.mark.parametrize(
    "name", ["2026-11-24", "20261124", "1_000", "0x1F", "on", "2026-13-45", "12:30", "1e3"]
)
def test_folders_may_be_named_by_a_date_or_a_number(tmp_path, name):
    """As acquisition days and study numbers are; YAML would take them for something else."""
    path = written(tmp_path, f"model: {name}\ndata: [{name}, b]\n")
    assert read_settings(path, Whole).model == Path(name)
    assert read_settings(path, Whole).data == (Path(name), Path("b"))
    changed = read_settings(path, Whole, [f"data={name}", f"model=in/{name}", "limit=null", "part.rank=0x10"])
    assert changed.data == (Path(name),) and changed.model == Path("in") / name
    assert changed.limit is None and changed.part.rank == 16


@pytest.mark.parametrize("name", ["2026-11-24", "1_000", "monday"])
def test_a_training_looks_for_its_data_where_it_was_told(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    settings = read_settings(
        ROOT / "training/configs/sft-demo.yaml", SftSettings, [f"data={name}", "out=run"]
    )
    assert settings.data == (Path(name),) and settings.data[0].is_dir()
