"""The review page of a volume: slices, the cuts across them, how they fit into a page, and it in a browser."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from ibis_agent.errors import InputError
from ibis_agent.mask.measurements import measure
from ibis_agent.record import review_view
from ibis_agent.record.comparison_page import write_comparison
from ibis_agent.record.review import review_page, write_review
from ibis_agent.record.review_pictures import ROOM, fitted, read_png, runs_of
from ibis_agent.record.review_view import view_of
from ibis_agent.scan.geometry import slice_geometry
from PIL import Image
from recorded_runs import LPS, SHAPE, body, grey, volume_record

HOSTILE = '</script><img src=x onerror="document.body.dataset.hacked=1"><script>document.body.dataset.hacked=2</script>'


def decoded(runs: list[int], shape: tuple[int, ...]) -> np.ndarray:
    rest = int(np.prod(shape)) - sum(runs)
    return np.repeat(np.arange(len(runs) + 1) % 2 == 1, [*runs, rest]).reshape(shape)


def test_every_slice_comes_with_its_mask_area_and_clicks() -> None:
    view = view_of(volume_record())
    assert [each["index"] for each in view["slices"]] == list(range(1, 12))
    for each in view["slices"]:
        inside = slice_geometry(SHAPE, LPS, "axial", each["index"]).extract(body())
        np.testing.assert_array_equal(decoded(each["runs"], inside.shape), inside)
        assert each["area"] == inside.sum() * 4.0
    assert [len(each["marks"]) for each in view["slices"]] == [0, 0, 0, 2] + [0] * 7
    assert view["slices"][view["key"]]["index"] == 4


def test_a_step_of_a_volume_shows_the_clicks_that_its_slice_stood_on() -> None:
    steps = view_of(volume_record())["steps"]
    assert [(each["kind"], len(each["marks"])) for each in steps] == [
        ("click", 1), ("click", 1), ("click", 2), ("terminate", 2), ("grow", 0),
    ]  # fmt: skip
    assert steps[-1]["runs"] is None and steps[-1]["words"] == "followed"


def test_the_page_says_how_large_the_object_is() -> None:
    lines = dict(view_of(volume_record())["measures"])
    assert lines["Volume"] == f"{body().sum() * 12 / 1000:.2f} mL" and lines["Parts"] == "1"
    record = volume_record()
    values = grey().astype(float)
    record["measurements"] = measure(body(), (2.0, 2.0, 3.0), 2, values, ct=True).to_json()
    told = dict(view_of(record)["measures"])
    assert told.pop("Mean inside").endswith("HU") and told == lines
    facts = dict(view_of(record)["facts"])
    assert facts["Slice spacing"] == "3 mm"


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("signs", [(-1, -1, 1), (1, 1, 1), (1, -1, -1)])
def test_the_cuts_are_the_other_two_planes_as_a_viewer_shows_them(
    plane: str, signs: tuple[int, int, int]
) -> None:
    affine = np.diag([2.0 * signs[0], 2.0 * signs[1], 3.0 * signs[2], 1.0])
    record = volume_record(plane, affine)
    run, gone = slice_geometry(SHAPE, affine, plane, None), 5
    del record["slices"][gone - 1]  # a slice that was not met
    cuts = view_of(record)["cuts"]
    assert {cut["plane"] for cut in cuts} == {"axial", "coronal", "sagittal"} - {plane}
    for cut in cuts:
        shape = cut["height"], cut["width"]
        seen = []
        for index in range(SHAPE[slice_geometry(SHAPE, affine, cut["plane"], 0).axis]):
            geometry = slice_geometry(SHAPE, affine, cut["plane"], index)
            mask, voxels = body(), grey()
            for volume in (mask, voxels):
                np.moveaxis(volume, run.axis, 0)[gone] = 0
            seen.append((geometry.extract(mask), geometry.extract(voxels)))
        # The first slice of the volume was not met either: the cut begins after it.
        crop: Any = [slice(None), slice(None)]
        crop[0 if cut["down"] else 1] = slice(None, -1) if cut["backwards"] else slice(1, None)
        mask, pixels = decoded(cut["runs"], shape), read_png(cut["png"], *shape)
        places = [n for n, (_, each) in enumerate(seen) if np.array_equal(each[tuple(crop)], pixels)]
        assert len(places) == 1
        np.testing.assert_array_equal(mask, seen[places[0]][0][tuple(crop)])
        assert mask.any()


def test_what_contradicts_itself_is_refused() -> None:
    twice = volume_record()
    twice["slices"].append(twice["slices"][0])
    elsewhere = volume_record()
    elsewhere["actions"][0]["slice"] = 99
    number = volume_record()
    number["slices"][0]["score"] = float("nan")
    for record in (twice, elsewhere, number, volume_record(slices=[]), {"schema": "ibis-volume/1"}):
        with pytest.raises(InputError, match="not a trajectory"):
            review_page(record)


def test_a_picture_of_another_size_than_it_says_is_not_unpacked() -> None:
    record = volume_record()
    record["slices"][0]["picture"]["png"] = base64.b64encode(
        bytes_of(np.zeros((900, 900), np.uint8))
    ).decode()
    with pytest.raises(InputError, match="differs from its record"):
        review_page(record)


def bytes_of(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def noise(count: int, side: int) -> Iterator[tuple[int, np.ndarray]]:
    pixels = np.random.default_rng(3).integers(0, 255, (side, side), np.uint8)
    return ((index, np.roll(pixels, index)) for index in range(count))


def test_masks_without_pictures_are_fitted_too() -> None:
    assert fitted(iter(()), [1], [0, 1]) == {}


def test_grey_pictures_are_kept_exactly_and_grey() -> None:
    pixels = dict(noise(2, 200))
    shown = fitted(iter(pixels.items()), {0}, {1})
    for index, each in shown.items():
        assert each.reduced == 1
        np.testing.assert_array_equal(read_png(each.png, 200, 200), pixels[index])


def test_slices_on_which_nothing_happened_are_small() -> None:
    shown = fitted(noise(4, 512), {0}, {1})
    assert [shown[n].reduced for n in range(4)] == [1, 1, 4, 4]


def test_where_room_is_short_clicked_slices_keep_their_size_and_some_of_the_masked_ones() -> None:
    one = len(bytes_of(next(noise(1, 512))[1]))
    shown = fitted(noise(20, 512), {3}, set(range(20)), room=10 * one)
    assert shown[3].reduced == 1
    whole = [n for n in range(20) if shown[n].reduced == 1 and n != 3]
    assert 3 <= len(whole) < 19 and {0, 19} <= set(whole)
    assert sum(len(each.png) for each in shown.values()) * 3 / 4 <= 10 * one


def test_three_hundred_slices_fit_into_ten_megabytes_even_if_all_are_noise() -> None:
    shown = fitted(noise(300, 512), set(range(0, 300, 20)), set(range(300)))
    assert sum(len(each.png) for each in shown.values()) < 9_000_000


def test_very_many_slices_fit_too_and_those_that_were_clicked_keep_their_size() -> None:
    shown = fitted(noise(800, 150), {500}, set(range(800)))
    assert shown[500].reduced == 1
    assert sum(len(each.png) for each in shown.values()) < 9_000_000


def test_a_page_has_less_room_for_pictures_where_the_masks_take_much(monkeypatch: pytest.MonkeyPatch) -> None:
    record, given = volume_record(), []

    def noted(*parts: Any) -> Any:
        given.append(parts[-1])
        return fitted(*parts)

    monkeypatch.setattr(review_view, "fitted", noted)
    runs = [each["runs"] for each in review_view.view_of(record)["slices"]]
    assert given == [ROOM - 3 * sum(len(str(each)) for each in runs) // 4] and given[0] < ROOM


def test_runs_of_an_empty_and_of_a_full_mask() -> None:
    assert runs_of(np.zeros((2, 3), bool)) == [] and runs_of(np.ones((2, 3), bool)) == [0, 6]


def opened(browser: Browser, folder: Path, made: dict[str, Any] | None = None, fragment: str = "") -> Path:
    page = folder / "review.html"
    write_review(page, made or volume_record())
    browser.resize(1280, 900)
    browser.open(page, fragment)
    return page


_INSIDE = """
const [h, w, ux, uy] = arguments, path = document.getElementById("fill"), inside = [];
for (let r = 0; r < h; r++) for (let c = 0; c < w; c++)
  inside.push(path.isPointInFill(new DOMPoint((c + .5) * ux, (r + .5) * uy)) ? 1 : 0);
return inside;
"""


def drawn(browser: Browser) -> np.ndarray:
    return np.array(browser.run(_INSIDE, 16, 20, 1, 1), bool).reshape(16, 20)


def truth(index: int) -> np.ndarray:
    return slice_geometry(SHAPE, LPS, "axial", index).extract(body())


def test_it_opens_on_the_key_slice_as_it_is_at_the_end(browser: Browser, tmp_path: Path) -> None:
    browser.complaints()
    opened(browser, tmp_path)
    assert browser.text("#slice-text").startswith("4 ·")
    np.testing.assert_array_equal(drawn(browser), truth(4))
    assert browser.run("return document.querySelectorAll('#marks .mark').length") == 2
    assert (
        browser.text("#edge-left") == "R"
        and browser.run("return document.getElementById('scale').hidden") is False
    )
    assert browser.complaints() == []


def test_slider_keys_plot_and_cuts_lead_to_other_slices(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    browser.press("up", "up")
    assert browser.text("#slice-text").startswith("6 ·")
    np.testing.assert_array_equal(drawn(browser), truth(6))
    browser.press("down")
    assert browser.text("#slice-text").startswith("5 ·")
    browser.run(
        "const s = document.getElementById('slice'); s.value = 8; s.dispatchEvent(new Event('input'))"
    )
    assert browser.text("#slice-text").startswith("9 ·")
    browser.run(
        "const b = document.getElementById('plot').getBoundingClientRect();"
        "document.getElementById('plot').dispatchEvent(new MouseEvent('click', {clientX: b.x + b.width * .5 / 11}))"
    )
    assert browser.text("#slice-text").startswith("1 ·")
    browser.run(
        "const b = document.querySelector('.cut image').getBoundingClientRect();"
        "document.querySelector('.cut svg').dispatchEvent(new MouseEvent('click',"
        "{clientX: b.x + b.width / 2, clientY: b.y + b.height * .5 / 11}))"
    )
    assert browser.text("#slice-text").startswith("11 ·")


def test_a_step_shows_its_own_slice_with_its_own_mask(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    browser.press("home", "right")
    assert browser.text("#step-title") == "Step 1, slice 3" and "at this step" in browser.text("#slice-text")
    assert drawn(browser).sum() == 12
    browser.press("right", "right")
    np.testing.assert_array_equal(drawn(browser), truth(4))
    assert browser.run("return document.querySelectorAll('#marks .mark.minus').length") == 1
    browser.press("end")
    assert browser.text("#words") == "Followed"
    np.testing.assert_array_equal(drawn(browser), truth(4))


def test_the_cuts_have_their_letters_and_follow_the_slice(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    names = "return [...document.querySelectorAll('.cut .name')].map((e) => e.textContent)"
    assert browser.run(names) == ["Coronal", "Sagittal"]
    edges = "return [...document.querySelectorAll('.cut:last-child .edge')].map((e) => e.textContent)"
    assert browser.run(edges) == ["A", "P", "S", "I"]
    where = "return document.querySelector('.cut .here').getAttribute('y1')"
    before = float(browser.run(where))
    browser.press("up")
    assert float(browser.run(where)) == pytest.approx(before - 1.5)


def test_the_wheel_goes_through_the_slices_and_leaves_the_page_alone_beyond_them(
    browser: Browser, tmp_path: Path
) -> None:
    opened(browser, tmp_path)
    wheel = (
        "const e = new WheelEvent('wheel', {deltaY: arguments[0], cancelable: true});"
        "document.getElementById('picture').dispatchEvent(e); return e.defaultPrevented"
    )
    assert browser.run(wheel, -40) is True
    assert browser.text("#slice-text").startswith("5 ·")
    assert browser.run(wheel, -4000) is False


def test_hostile_words_do_nothing_and_nothing_is_fetched(browser: Browser, tmp_path: Path) -> None:
    record = volume_record(question=HOSTILE, answer=HOSTILE, reason=HOSTILE, note=HOSTILE, status=HOSTILE)
    for action in record["actions"]:
        action["words"] = HOSTILE
        for step in action["steps"]:
            step |= {"thinking": HOSTILE, "reply": HOSTILE}
    record["limits"] = {HOSTILE: {HOSTILE: HOSTILE}}
    record["models"] = {"policy": {"name": HOSTILE}}
    browser.requests()
    page = opened(browser, tmp_path, record)
    browser.press("home", "right", "end", "up")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("return document.body.dataset.hacked || ''") == ""
    assert browser.text("h1") == HOSTILE and HOSTILE in browser.text("#sheet")
    asked = [each for each in browser.requests() if not each.startswith("data:image/png")]
    assert asked == [page.resolve().as_uri()]


def test_on_paper_there_are_cuts_plot_slices_and_all_that_was_said(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    count = "return document.querySelectorAll(arguments[0]).length"
    assert browser.run(count, "#sheet figure") == 2 + 8
    assert browser.run(count, "#sheet .plot .bar") == 11 and browser.run(count, "#sheet li") == 5
    assert len(browser.pdf()) > 20_000


def test_on_a_phone_a_volume_needs_no_scrolling_sideways(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    browser.resize(360, 740, phone=True)
    assert browser.run("return document.documentElement.scrollWidth") <= 360
    assert browser.run("return document.querySelector('.cut').getBoundingClientRect().height") > 100
    browser.resize(1280, 900)


def test_a_run_over_a_volume_without_any_action_opens(browser: Browser, tmp_path: Path) -> None:
    browser.complaints()
    record = volume_record(actions=[], answer=None, status="ready", met=range(1))
    record["volume"]["key"] = None
    opened(browser, tmp_path, record)
    browser.press("up", "down", "left", "right", " ")
    assert browser.complaints() == [] and browser.text("#question") == "Where is it?"


def test_two_masks_stand_side_by_side_and_the_worst_slice_comes_first(
    browser: Browser, tmp_path: Path
) -> None:
    geometry = slice_geometry(SHAPE, LPS, "axial", 4)
    masks = {n: (truth(n), truth(n)) for n in range(2, 10)}
    masks[6] = truth(6), np.roll(truth(6), 3, axis=1)
    pictures = {row["slice"]: row["picture"] for row in volume_record()["slices"]}
    page = tmp_path / "comparison.html"
    write_comparison(page, (HOSTILE, "reference"), [("Dice", "0.9")], geometry, masks, pictures)
    browser.complaints()
    browser.open(page)
    assert browser.run("return document.body.dataset.slice") == "6"
    assert browser.text("h1") == f"{HOSTILE} – reference"
    inside = _INSIDE.replace(
        'document.getElementById("fill")', "document.querySelectorAll('.sides path')[arguments[4]]"
    )
    drawn = [np.array(browser.run(inside, 16, 20, 1, 1, n), bool).reshape(16, 20) for n in range(5)]
    a, b = masks[6]
    for found, wanted in zip(drawn, (a, b, a & ~b, b & ~a, a & b), strict=True):
        np.testing.assert_array_equal(found, wanted)
    browser.press("right")
    assert browser.text("#slice-text").startswith("7 · Dice 1.000")
    assert browser.complaints() == [] and browser.run("return document.body.dataset.hacked || ''") == ""
