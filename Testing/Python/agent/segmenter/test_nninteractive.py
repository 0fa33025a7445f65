"""nnInteractive on a server as segmenter: its client's own protocol, against a server that draws balls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ibis_agent.segmenter as segmenters
import numpy as np
import pytest
from ibis_agent.actions import Box, Click
from ibis_agent.errors import InputError, ModelError
from ibis_agent.segmenter.nninteractive import source

pytest.importorskip("nnInteractive.inference.remote.remote_session")
pytest.importorskip("torch")

from bright_volumes import NOTHING, SIDE, Clicker, disc, run_over
from ibis_agent.record.trajectory import Trajectory
from ibis_agent.run.given import given
from ibis_agent.run.run import Run
from nninteractive_server import RADIUS, Balls, balls

SLICES = [disc(6) if 4 <= n <= 11 else NOTHING for n in range(16)]
CLICK, OTHER = Click(0.5, 0.5), Click(0.75, 0.5)


@pytest.fixture(name="server")
def a_server() -> Iterator[Balls]:
    with balls() as made:
        yield made


@pytest.fixture(name="segmenter")
def a_segmenter(server: Balls) -> Iterator[Any]:
    made: Any = segmenters.open(server.address)
    yield made
    made.session.close()


def run_with(segmenter: Any, policy: Any = None, **more: Any) -> Run:
    run = run_over(SLICES)
    return Run(run.slices, "Segment it", policy, segmenter, **more)


def depth(run: Run) -> list[int]:
    return [index for index, area in run.areas_mm2().items() if area]


def test_a_click_on_one_slice_is_a_mask_in_all_slices_at_once(segmenter: Any) -> None:
    run = run_with(segmenter)
    run.click(8, CLICK)
    assert depth(run) == list(range(5, 12))
    assert run.found[8].anchor and not run.found[7].anchor
    assert set(run.actions[0].touched) == set(range(5, 12))
    assert segmenter.identity["licence"] == "CC BY-NC-SA 4.0" and segmenter.can.volume


def test_a_policy_works_on_its_key_slice_and_nothing_is_followed(segmenter: Any) -> None:
    run = run_with(segmenter, Clicker())
    assert run.run() == "ended"
    assert not [each for each in run.actions if each.kind == "grow"]
    assert run.reason == "The segmenter found the object in all slices at once." and run.volume_ml > 0


def test_undo_takes_the_servers_undo_and_going_further_back_gives_all_prompts_again(
    segmenter: Any, server: Balls
) -> None:
    run = run_with(segmenter)
    run.click(8, CLICK)
    one = run.volume()
    run.click(8, OTHER)
    two = run.volume()
    run.undo()
    np.testing.assert_array_equal(run.volume(), one)
    run.click(3, Click(0.2, 0.2))
    run.undo()
    run.undo()
    run.click(8, CLICK)
    run.click(8, OTHER)
    np.testing.assert_array_equal(run.volume(), two)
    assert "/reset_interactions" in server.calls


def test_a_box_and_a_negative_click_reach_the_server(segmenter: Any, server: Balls) -> None:
    run = run_with(segmenter)
    run.click(8, Box(0.25, 0.25, 0.75, 0.5))
    assert server.marks == [("box", [[8, 9], [SIDE // 4, SIDE // 2], [SIDE // 4, 3 * SIDE // 4]])]
    run.click(8, Click(0.5, 0.4, positive=False))
    assert server.marks[-1] == ("point", ([8, int(0.4 * SIDE), SIDE // 2], False))


def test_a_mask_to_begin_from_is_handed_over_before_the_first_click(segmenter: Any, server: Balls) -> None:
    start = {n: disc(5) for n in range(5, 10)}
    run = run_with(segmenter, given=given(start))
    np.testing.assert_array_equal(run.mask(6), start[6])
    run.click(7, Click(0.9, 0.9))
    assert [kind for kind, _ in server.marks] == ["seg", "point"]
    assert run.mask(7).sum() > start[7].sum() and np.array_equal(run.mask(5) & start[5], start[5])
    run.undo()
    np.testing.assert_array_equal(run.mask(7), start[7])


def test_a_mask_on_one_slice_is_found_in_the_others(segmenter: Any, server: Balls) -> None:
    run = run_with(segmenter, given=given({7: disc(5)}))
    assert [kind for kind, _ in server.marks] == ["box"] and depth(run) == [6, 7, 8]


def test_a_slice_alone_is_a_volume_of_one(segmenter: Any) -> None:
    rgb = np.zeros((20, 30, 3), np.uint8)
    found = segmenter.predict(segmenter.embed(rgb), [CLICK])
    rows, columns = np.indices((20, 30))
    np.testing.assert_array_equal(found.mask, (rows - 10) ** 2 + (columns - 15) ** 2 < RADIUS**2)


def test_the_run_is_recorded_and_goes_on_from_its_record(segmenter: Any) -> None:
    run = run_with(segmenter)
    run.click(8, CLICK)
    run.click(5, OTHER)
    record = Trajectory.from_json(Trajectory.of(run).to_json())
    assert not record.replay(segmenter).differences
    assert record.segmenter["licence"] == "CC BY-NC-SA 4.0"


def test_a_lease_that_ran_out_is_claimed_anew_and_the_run_goes_on(segmenter: Any, server: Balls) -> None:
    run = run_with(segmenter)
    run.click(8, CLICK)
    server.lease = "of somebody else"
    run.click(8, OTHER)
    assert server.leases == 2 and len(server.marks) == 2 and depth(run) == list(range(5, 12))


def test_a_full_server_and_an_absent_one_are_one_line_each(server: Balls) -> None:
    server.free = False
    with pytest.raises(ModelError, match="is full"):
        segmenters.open(server.address)
    with pytest.raises(ModelError, match="the nnInteractive server does not answer") as error:
        segmenters.open("nninteractive:http://127.0.0.1:9")
    assert "\n" not in str(error.value)


def test_slices_leave_this_machine_only_after_a_yes_for_that_host(monkeypatch: pytest.MonkeyPatch) -> None:
    far = "nninteractive:https://gpu.example.org"
    with pytest.raises(InputError, match=r"--send-slices-to gpu\.example\.org"):
        segmenters.find(far).inspect()
    with pytest.raises(InputError):
        segmenters.find(far, agreed="other.example.org").inspect()
    assert segmenters.find(far, agreed="gpu.example.org").inspect()
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"pip install 'ibis-agent\[nninteractive\]'"):
        segmenters.find("nninteractive:http://localhost:1527").inspect()
    for wrong in ("nninteractive:", "nninteractive:ftp://localhost", "nninteractive:http://me:secret@host"):
        with pytest.raises(ModelError):
            segmenters.find(wrong)


def test_after_a_failure_everything_is_given_anew(
    segmenter: Any, server: Balls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server has taken is unknown then: a start or a click may be there, or not."""
    import httpx

    start, session = given({n: disc(5) for n in range(5, 10)}), type(segmenter.session._remote)
    plain = run_with(segmenter, given=start)
    plain.click(7, Click(0.9, 0.9))
    for method in ("add_initial_seg_interaction", "add_point_interaction"):
        run, taken = run_with(segmenter, given=start), getattr(session, method)

        def slow(self: Any, *arguments: Any, taken: Any = taken, **named: Any) -> None:
            taken(self, *arguments, **named)
            raise httpx.ReadTimeout("too late")

        with monkeypatch.context() as patch:
            patch.setattr(session, method, slow)
            with pytest.raises(ModelError):
                run.click(7, Click(0.9, 0.9))
        server.marks.clear()
        run.click(7, Click(0.9, 0.9))
        assert [kind for kind, _ in server.marks] == ["seg", "point"], method
        np.testing.assert_array_equal(run.volume(), plain.volume())


def test_info_says_where_it_is_whether_it_answers_and_the_licence_of_its_weights(
    server: Balls, capsys: pytest.CaptureFixture[str]
) -> None:
    from ibis_agent.cli import commands as cli

    assert cli.main(["info", server.address, "--json"]) == cli.OK
    facts = json.loads(capsys.readouterr().out)["Segmenter"]
    assert "for noncommercial use only" in facts["licence"]
    assert facts["server's licence"] == "CC BY-NC-SA 4.0" and facts["address"].startswith("http://127.0.0.1:")
    assert facts["loads"]["loads"] and "clicks, boxes, a starting mask" in facts["loads"]["how"]
    assert server.free, "the session that was tried is given back"
    assert cli.main(["info", "nninteractive:http://127.0.0.1:9", "--json"]) == cli.OK
    gone = json.loads(capsys.readouterr().out)["Segmenter"]["loads"]
    assert not gone["loads"] and "127.0.0.1:9" in gone["error"]
    assert cli.main(["info", "nninteractive:http://far.example", "--json"]) == cli.OK
    far = json.loads(capsys.readouterr().out)["Segmenter"]["loads"]
    assert "--send-slices-to far.example" in far["error"]


def test_the_first_lines_of_a_run_say_the_licence(
    server: Balls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ibis_agent.cli import commands as cli
    from PIL import Image

    shown = np.repeat(np.arange(40, 200, 4, np.uint8)[:, None, None], 40, 1).repeat(3, 2)
    Image.fromarray(shown).save(tmp_path / "scan.png")
    command = ["run", str(tmp_path / "scan.png"), "--prompt", "Segment the liver", "--max-turns", "1"]
    cli.main([*command, "--segmenter", server.address, "--out", str(tmp_path / "out"), "--device", "cpu"])
    told = capsys.readouterr()
    first = told.out.split("loading")[0]
    assert first, told.err
    assert server.address.removeprefix("nninteractive:") in first and "for noncommercial use only" in first
