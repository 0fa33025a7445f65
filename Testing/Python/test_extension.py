"""What the Extensions Manager's index reads of this repository, read the same way: as text, and its pictures."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CMAKE = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
ENTRY = ROOT / "docs" / "IBISSlicer.json"
RAW = re.compile(r"https://raw\.githubusercontent\.com/([\w.-]+/[\w.-]+)/([\w.-]+)/(.+)")


def value(name: str, cmake: str = CMAKE) -> str:
    """A field of CMakeLists.txt, which the index finds by its quotation marks."""
    (found,) = re.findall(rf'set\s*\(EXTENSION_{name}\s*"([^"]+)"\)', cmake)
    return str(found)


def test_the_name_is_the_entry_s_and_does_not_begin_with_slicer_but_the_repository_s_does() -> None:
    (name,) = re.findall(r"project\(\s*(\w+)\s*\)", CMAKE)
    assert name == ENTRY.stem and not name.lower().startswith("slicer")
    entry = json.loads(ENTRY.read_text(encoding="utf-8"))
    assert re.fullmatch(r"https://github\.com/[\w.-]+/Slicer[\w-]*\.git", entry["scm_url"])
    assert entry["$schema"].endswith("slicer-extension-catalog-entry-schema-v1.0.2.json#")
    assert entry["category"] == value("CATEGORY")
    assert entry["build_dependencies"] == value("DEPENDS").split()
    assert set(entry) <= {
        "$schema", "build_dependencies", "build_subdirectory", "category", "scm_revision", "scm_url", "scm_type",
        "enabled", "tier", "dicom_support_rule",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["ICONURL", "SCREENSHOTURLS"])
def test_every_picture_address_is_that_of_a_picture_in_the_repository(name: str) -> None:
    entry = json.loads(ENTRY.read_text(encoding="utf-8"))
    for address in value(name).split():
        found = RAW.fullmatch(address)
        assert found, address
        repository, branch, path = found.groups()
        assert entry["scm_url"] == f"https://github.com/{repository}.git"
        assert entry["scm_revision"] == branch
        assert value("HOMEPAGE") == f"https://github.com/{repository}"
        picture = ROOT / path
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n", path


def test_license_and_description_are_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Research use only" in value("DESCRIPTION") and len(value("DESCRIPTION")) < 250


def test_the_readme_has_a_sentence_for_the_module_and_names_its_paper() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"\*\*IBISSlicer\*\*: [^|]+?\.", readme)
    assert "arxiv.org" in readme


@pytest.mark.parametrize(
    "address", ["https://github.com/someone/SlicerOther", "https://github.com/someone/SlicerOther.git"]
)
def test_one_command_writes_the_address_everywhere(tmp_path: Path, address: str) -> None:
    script = ROOT / "docs" / "set_address.py"
    spec = importlib.util.spec_from_file_location("set_address", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for part in ("CMakeLists.txt", "docs/IBISSlicer.json"):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / part, tmp_path / part)
    shutil.copytree(ROOT / module.SCREENSHOTS, tmp_path / module.SCREENSHOTS)
    module.set_address(tmp_path, address, "release")
    cmake = (tmp_path / "CMakeLists.txt").read_text("utf-8")
    texts = cmake + (tmp_path / "docs" / "IBISSlicer.json").read_text("utf-8")
    assert "OWNER" not in texts
    assert value("HOMEPAGE", cmake) == "https://github.com/someone/SlicerOther"
    assert all("/someone/SlicerOther/release/" in each for each in value("SCREENSHOTURLS", cmake).split())
    with pytest.raises(ValueError, match="beginning with Slicer"):
        module.set_address(tmp_path, "https://github.com/someone/IBIS")


def test_the_repository_stays_below_what_the_index_takes() -> None:
    # What a clone transfers. The packs of this checkout say less: they may hold the same objects twice.
    sent = subprocess.run(
        ["git", "pack-objects", "--revs", "--stdout", "-q"],
        cwd=ROOT,
        input=b"HEAD\n",
        capture_output=True,
        check=True,
    ).stdout
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    checkout = sum((ROOT / name).stat().st_size for name in tracked.splitlines() if (ROOT / name).is_file())
    assert len(sent) < 100e6 and checkout < 30e6
