"""The house itself: who may import whom, what needs torch, what is shipped, what CI runs."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(__file__).resolve().parents[2]
LOGIC = ROOT / "Logic" / "ibis_agent"
# Everything else must be importable where there is no torch: in Slicer, or before anything is installed.
NEED_TORCH = {
    "policy.generic.generic",
    "policy.qwen25.block",
    "policy.qwen25.build",
    "policy.qwen25.compiling",
    "policy.qwen25.decoding",
    "policy.qwen25.network",
    "policy.qwen25.packed_layers",
    "policy.qwen25.reference",
    "segmenter.sam2.beside",
    "segmenter.sam2.carrying",
    "segmenter.sam2.predictor",
    "segmenter.sam2.propagation",
    "segmenter.sam2.slice_network",
    "segmenter.sam2.segmenter",
}
# What 3D Slicer's own process imports; its Python has numpy and little else of ours.
FOR_SLICER = [
    "actions",
    "engine.client",
    "engine.job",
    "engine.protocol",
    "errors",
    "files",
    "mask.masks",
    "mask.structures",
    "scan.geometry",
    "scan.picture",
]


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """The modules that a source names in absolute imports, wherever in it they stand."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module


def offenders(paths: list[Path], forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in imports(path)
        if name.partition(".")[0] in forbidden
    ]


def test_the_agent_knows_nothing_of_slicer_and_nothing_of_training() -> None:
    outside = {
        "qt",
        "slicer",
        "ctk",
        "vtk",
        "PythonQt",
        "PySide6",
        "mrml",
        "training",
        "host",
        "IBISSlicerLib",
    }
    assert offenders(sources("Logic"), outside) == []


def test_the_slicer_module_never_imports_torch_or_training() -> None:
    assert offenders(sources("IBISSlicer"), {"torch", "transformers", "sam2", "training", "host"}) == []


def test_training_knows_nothing_of_slicer() -> None:
    assert offenders(sources("training"), {"qt", "slicer", "ctk", "vtk", "IBISSlicerLib", "host"}) == []


def test_torchvision_is_imported_nowhere() -> None:
    assert offenders(sources("Logic", "training", "IBISSlicer"), {"torchvision"}) == []


_IMPORT_WITHOUT = """
import importlib, pkgutil, sys
for name in {blocked!r}:
    sys.modules[name] = None
import ibis_agent
for name in {names!r} or [m.name.split(".", 1)[1] for m in pkgutil.walk_packages(ibis_agent.__path__, "ibis_agent.")
    if not m.ispkg and not m.name.endswith("__main__")]:
    try:
        importlib.import_module("ibis_agent." + name)
    except ImportError as error:
        print(name, "|", error)
"""


def failing_without(blocked: list[str], names: list[str] | None = None) -> dict[str, str]:
    """The modules of the agent that cannot be imported where the blocked packages are missing."""
    code = _IMPORT_WITHOUT.format(blocked=blocked, names=names)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "Logic", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split(" | ", 1) for line in done.stdout.splitlines())


def test_only_the_modules_that_compute_need_torch() -> None:
    failing = failing_without(["torch", "transformers", "sam2", "tokenizers", "safetensors"])
    assert set(failing) <= NEED_TORCH, failing


def test_what_slicer_imports_needs_numpy_alone() -> None:
    blocked = ["torch", "transformers", "sam2", "scipy", "nibabel", "SimpleITK", "PIL", "pydicom", "hydra"]
    assert failing_without(blocked, FOR_SLICER) == {}


def test_whatever_the_slicer_module_imports_of_the_agent_needs_no_torch() -> None:
    modules = {".".join(path.relative_to(LOGIC).with_suffix("").parts) for path in LOGIC.rglob("*.py")}
    named = set()
    for path in sources("IBISSlicer"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ibis_agent"):
                package = (node.module or "").partition(".")[2]
                named |= {package} | {f"{package}.{alias.name}".strip(".") for alias in node.names}
    used = sorted(named & modules)
    assert used and failing_without(["torch", "transformers", "sam2"], used) == {}


# Slicer reads no DICOM with these, and converts no trajectories.
TERMINAL_ALONE = ("cli", "scan/dicom", "mask/dicom", "record/published", "engine/process")


def test_no_advice_that_slicer_may_show_speaks_of_the_terminal_alone() -> None:
    options = {f"--{name}" for name in re.findall(r'"--([a-z-]+)"', _text(LOGIC / "cli" / "options.py"))}
    options |= {
        f"--{name}" for name in re.findall(r'"--([a-z-]+)"', _text(LOGIC / "cli" / "option_groups.py"))
    }
    assert {"--policy", "--send-slices-to", "--card"} <= options
    spoken = []
    for path in sources("Logic"):
        if str(path.relative_to(LOGIC)).startswith(TERMINAL_ALONE):
            continue
        nodes = list(ast.walk(ast.parse(_text(path))))
        joined = [node.values for node in nodes if isinstance(node, ast.JoinedStr)]
        parts = {id(each) for values in joined for each in values}
        for texts in [*joined, *([node] for node in nodes if id(node) not in parts)]:
            said = "".join(str(each.value) for each in texts if isinstance(each, ast.Constant))
            named = options & set(re.findall(r"--[a-z-]+", said))
            whole = "terminal" in said or "python -m" in said or "\n" in said  # the last: a docstring
            if named and not whole:
                spoken.append(f"{path.name}: {said}")
    assert spoken == []


def _text(path: Path) -> str:
    return path.read_text("utf-8")


def test_our_training_package_wins_over_the_one_that_sam2_installs() -> None:
    import training

    assert Path(training.__path__[0]) == ROOT / "training"
    code = "import training; print(training.__path__[0])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == ROOT / "training"


def test_every_source_says_at_its_top_what_lives_in_it() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in sources("Logic", "training", "IBISSlicer", "Testing")
        if path.read_text("utf-8").strip() and not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert silent == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
@pytest.mark.parametrize(
    "folder, extras",
    [
        ("Logic", ["models", "quantized", "dicom", "nninteractive", "parquet", "ray", "mcp"]),
        ("training", ["models", "training"]),
    ],
)
def test_every_package_that_is_imported_is_declared(folder: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = project["dependencies"] + [
        each for extra in extras for each in project["optional-dependencies"][extra]
    ]
    declared = {_normal(re.split(r"[^\w.-]", each, maxsplit=1)[0]) for each in needed} | {
        "sam2",
        "ibis-agent",
    }
    # omegaconf is hydra-core's own; naming it twice would let the two drift apart.
    declared.add("omegaconf")
    owners = importlib.metadata.packages_distributions()
    # The cluster's part runs in verl's own environment, see training/grpo/verl/__init__.py.
    of_the_cluster = {"verl", "pyarrow", "ray"}
    undeclared = set()
    for path in sources(folder):
        given = declared | of_the_cluster if "verl" in path.relative_to(ROOT).parts else declared
        for name in {name.partition(".")[0] for name in imports(path)} - set(sys.stdlib_module_names):
            owned_by = {_normal(owner) for owner in owners.get(name, [name])}
            if name not in ("ibis_agent", "training") and not owned_by & given:
                undeclared.add(f"{path.relative_to(ROOT)}: {name}")
    assert undeclared == set()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_wheel_holds_the_agent_and_nothing_else(tmp_path: Path) -> None:
    # From a copy: building leaves folders in the source tree.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "Logic", source / "Logic", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        ".",
    ]
    done = subprocess.run([*command, str(source)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"ibis_agent"}
    wanted = {path.relative_to(LOGIC.parent).as_posix() for path in LOGIC.rglob("*") if path.is_file()}
    assert {name for name in wanted if "__pycache__" not in name} <= set(names)
    assert any(name.endswith("LICENSE") for name in names)


def test_ci_runs_exactly_make_test() -> None:
    lines = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    commands = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    assert commands[-1] == "make test"
    assert sum("make test" in line for line in commands) == 1


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_test_checks_style_and_types_and_runs_every_test() -> None:
    done = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(tool in done.stdout for tool in ("ruff check .", "mypy", "-m pytest"))
