"""The extension as CMake packages it: unpacked somewhere, the module opens from there and passes its own test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
STAND_INS = ROOT / "Testing" / "cmake"
SESSION = """
import sys
from pathlib import Path

import host

module = host.start().open(Path(sys.argv[1]) / "IBISSlicer.py")
import ibis_agent

assert Path(ibis_agent.__file__).is_relative_to(sys.argv[1]), ibis_agent.__file__
module.source.IBISSlicerTest().runTest()
host.start().quit()
assert not host.start().errors, host.start().errors
print("from its installed place: passed")
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    told = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr[-4000:]
    return told.stdout


def configure(source: Path, build: Path) -> Any:
    for tool in ("cmake", "cpack", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    return subprocess.run(
        ["cmake", "-S", str(source), "-B", str(build), f"-DSlicer_DIR={STAND_INS}"],
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_packaged_module_opens_and_passes_its_own_test_where_it_was_unpacked(
    slicer_host: Any, tmp_path: Path
) -> None:
    build, place = tmp_path / "build", tmp_path / "unpacked somewhere"
    told = configure(ROOT, build)
    assert told.returncode == 0, told.stderr
    run("cpack", cwd=build)
    with tarfile.open(build / "IBISSlicer.tar.gz") as package:
        package.extractall(place, filter="data")
    (folder,) = place.glob("lib/Slicer-*/qt-scripted-modules")
    assert (folder / "Resources" / "SampleData" / "IBISPhantom.nrrd").is_file()
    output = run(
        sys.executable, "-c", SESSION, folder,
        cwd=tmp_path, IBIS_TEST_SCRIPTED="1", PYTHONPATH=str(ROOT / "Testing"), QT_QPA_PLATFORM="offscreen",
    )  # fmt: skip
    assert "from its installed place: passed" in output


def test_a_file_that_is_listed_and_missing_stops_the_build(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "IBISSlicer", source / "IBISSlicer")
    shutil.copytree(
        ROOT / "Logic", source / "Logic", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )
    for name in ("CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    (source / "IBISSlicer" / "IBISSlicerLib" / "Agent.py").unlink()
    told = configure(source, tmp_path / "build")
    assert told.returncode != 0 and "Agent.py does not exist" in " ".join(told.stderr.split())
