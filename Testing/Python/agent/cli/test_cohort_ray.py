"""A cohort by workers of Ray, in a cluster on this machine."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scripted_cohort
import test_cohort
from ibis_agent.cli.cohort_ray import join, start_actor
from ibis_agent.errors import InputError
from patient_ray import PATIENCE
from test_cohort import four_scans  # noqa: F401 - a fixture

ray = pytest.importorskip("ray")


def test_workers_of_ray_leave_what_one_leaves(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in PATIENCE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    test_cohort.write_scan(scans / "b.nii.gz", 5, corner=1000)  # at which a worker ends
    try:
        join("auto")
    except InputError as error:
        pytest.skip(f"Ray does not come up on this machine in time: {error}")
    try:
        two = test_cohort.run(scans, tmp_path / "two", 2, partial(start_actor, load=scripted_cohort.load))
    finally:
        ray.shutdown()
    assert two == test_cohort.run(scans, tmp_path / "one", 1, test_cohort.PROCESSES)
    assert "memory" in two[1]["error"] and not two[0]["error"]
    first, second = test_cohort.masks(tmp_path / "one"), test_cohort.masks(tmp_path / "two")
    assert list(first) == list(second) == ["a", "sub_c"]
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_an_address_without_a_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise ConnectionError("nobody answers there")

    monkeypatch.setattr(ray, "init", nobody)
    with pytest.raises(InputError, match="nobody answers"):
        join("10.0.0.1:6379")
