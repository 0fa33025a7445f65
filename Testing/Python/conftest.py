"""What every test may use: the shared data beside the checkout, and one way of running hypothesis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, missing
from host.fixtures import slicer_host  # noqa: F401
from hypothesis import HealthCheck, settings
from slicer_fixtures import asked, panel, stepped  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]

# No deadline: other work on the machine must not fail a test. Derandomised: a run tells about the code only.
settings.register_profile(
    "ibis",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("ibis")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real scans and recorded results of the published code, beside the checkout and not part of it."""
    folder = ROOT.parent / "shared"
    if not (folder / "parity" / "index.json").is_file():
        pytest.skip("the shared data is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def data(shared: Path) -> Path:
    """Real scans."""
    return shared / "data"


@pytest.fixture(scope="session")
def parity(shared: Path) -> Path:
    """Recorded results of the published code."""
    return shared / "parity"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if missing():
        pytest.skip(missing())
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started
