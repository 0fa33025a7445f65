"""The review page: what it holds, that what a policy wrote cannot act, and that it works in a browser."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from hypothesis import given, settings
from hypothesis import strategies as st
from ibis_agent.errors import InputError
from ibis_agent.record.review import review_page, write_review
from ibis_agent.record.review_view import view_of
from recorded_runs import H, W, masks
from recorded_runs import slice_record as record

HOSTILE = (
    '</script><img src=x onerror="document.body.dataset.hacked=1">'
    "<script>document.body.dataset.hacked=2</script>"
    "<!--<script>{{data}}]]>'\"&lt;\u2028\u202e<svg onload=alert(1)><a href=javascript:alert(2)>"
)


class _Elements(html.parser.HTMLParser):
    """Every element of a page with its attributes, and the texts of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.texts:
            self.texts[self._inside][-1] += data


def test_the_page_names_nothing_outside_itself() -> None:
    page = review_page(record())
    for tag, attributes in _Elements(page).found:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "action", "data", "srcset"):
            assert not attributes.get(name), f"<{tag} {name}={attributes[name]}>"
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", page)


def test_only_the_page_s_own_script_and_style_may_act() -> None:
    elements = _Elements(review_page(record()))
    policy = next(a["content"] or "" for tag, a in elements.found if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    allowed = set(re.findall(r"'(sha256-[^']+)'", policy))
    acting = [elements.texts["style"][0], elements.texts["script"][1]]
    assert allowed == {
        "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in acting
    }


@settings(max_examples=60, deadline=None)
@given(st.text(), st.text(), st.text())
def test_any_text_arrives_as_it_was_written_and_never_as_markup(
    question: str, thinking: str, answer: str
) -> None:
    hostile = record(question=question + HOSTILE, answer=answer + HOSTILE)
    hostile["steps"][0]["thinking"] = thinking + HOSTILE
    elements, plain = _Elements(review_page(hostile)), _Elements(review_page(record()))
    assert [tag for tag, _ in elements.found] == [tag for tag, _ in plain.found]
    data = json.loads(elements.texts["script"][0])
    assert data["question"] == question + HOSTILE
    assert data["answer"] == answer + HOSTILE
    assert data["steps"][0]["thinking"] == thinking + HOSTILE
    assert elements.texts["script"][1] == plain.texts["script"][1]


def test_areas_are_in_mm2_where_the_scan_has_millimetres_and_in_pixels_for_a_photograph() -> None:
    data = json.loads(_Elements(review_page(record())).texts["script"][0])
    assert [step["area"] for step in data["steps"]] == [float(m.sum()) * 4.5 for m in [*masks(), masks()[-1]]]
    photograph = record()
    photograph["picture"]["geometry"] = None
    data = json.loads(_Elements(review_page(photograph)).texts["script"][0])
    assert data["picture"]["real_mm"] is False and data["picture"]["edges"] == {}
    assert data["steps"][0]["area"] == masks()[0].sum()


def test_the_sides_of_the_picture_carry_the_patient_s_directions() -> None:
    data = json.loads(_Elements(review_page(record())).texts["script"][0])
    assert data["picture"]["edges"] == {"left": "R", "right": "L", "top": "A", "bottom": "P"}


@pytest.mark.parametrize("key", ["question", "picture", "steps"])
def test_what_is_not_a_trajectory_is_refused_in_plain_words(key: str) -> None:
    broken = record()
    del broken[key]
    with pytest.raises(InputError, match="not a trajectory"):
        review_page(broken)


@pytest.mark.parametrize("png", ["", "PHN2Zy8+", "not base64!", "aGVsbG8="])
def test_only_a_png_is_taken_as_the_picture(png: str) -> None:
    broken = record()
    broken["picture"]["png"] = png
    with pytest.raises(InputError):
        review_page(broken)


def opened(browser: Browser, folder: Path, made: dict[str, Any] | None = None) -> Path:
    page = folder / "review.html"
    write_review(page, made or record())
    browser.resize(1280, 900)
    browser.open(page)
    return page


def shown(browser: Browser) -> tuple[int, str]:
    return int(browser.run("return document.body.dataset.position")), browser.text("#thinking")


def test_the_arrow_keys_home_and_end_step_through_the_run(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    assert shown(browser) == (4, "enough")
    browser.press("left")
    assert shown(browser) == (3, "thought 3")
    browser.press("up", "up")
    assert shown(browser) == (1, "thought 1")
    browser.press("home")
    assert shown(browser) == (0, "Segment the liver")
    browser.press("left")
    assert shown(browser)[0] == 0
    browser.press("right", "down")
    assert shown(browser) == (2, "A click added by the person.")
    assert "by a person" in browser.text("#step-by")
    browser.press("end", "right")
    assert shown(browser)[0] == 4
    assert browser.text("#step-answer") == "That is it."


def test_a_step_can_be_chosen_in_the_list_and_by_the_buttons(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    browser.click("#steps li:nth-child(2) button")
    assert shown(browser) == (1, "thought 1")
    assert browser.run("return document.querySelector('#steps [aria-current]').textContent").startswith("1")
    browser.click("#next")
    assert shown(browser)[0] == 2
    browser.click("#first")
    assert shown(browser)[0] == 0
    assert browser.run("return document.querySelector('#previous').disabled") is True


def test_the_opacity_slider_keeps_the_arrow_keys_to_itself(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    browser.run("document.querySelector('#opacity').focus()")
    browser.press("left", "left")
    assert shown(browser)[0] == 4
    assert browser.run("return document.querySelector('#opacity').value") == "33"
    assert browser.run("return document.querySelector('#fill').getAttribute('fill-opacity')") == "0.33"


_INSIDE = """
const [id, h, w, ux, uy] = arguments, path = document.getElementById(id), inside = [];
for (let r = 0; r < h; r++) for (let c = 0; c < w; c++)
  inside.push(path.isPointInFill(new DOMPoint((c + .5) * ux, (r + .5) * uy)) ? 1 : 0);
return inside;
"""


def inside(browser: Browser, element: str) -> np.ndarray:
    """Which pixel centres the browser finds inside a drawn shape."""
    return np.array(browser.run(_INSIDE, element, H, W, 1, 2), bool).reshape(H, W)


def test_the_drawn_mask_is_the_recorded_mask_pixel_for_pixel(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    for key, mask in zip(["home", *["right"] * 3], [np.zeros((H, W), bool), *masks()], strict=True):
        browser.press(key)
        np.testing.assert_array_equal(inside(browser, "fill"), mask)
        drawn = browser.run("return document.querySelector('#outline').getAttribute('d')")
        assert bool(drawn) == bool(mask.any())


def test_the_change_of_a_step_is_what_it_gained_and_what_it_lost(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    browser.press("home", "right", "right", "c")
    before, after = masks()[:2]
    np.testing.assert_array_equal(inside(browser, "gained"), after & ~before)
    np.testing.assert_array_equal(inside(browser, "lost"), before & ~after)
    assert not inside(browser, "fill").any()
    browser.click("input[value=before]")
    np.testing.assert_array_equal(inside(browser, "fill"), before)
    assert browser.text("#figures").count("−")


def test_pixels_have_their_true_shape_and_marks_stand_on_their_pixels(
    browser: Browser, tmp_path: Path
) -> None:
    opened(browser, tmp_path)
    browser.press("home", "right")
    box = browser.run(
        "const b = document.querySelector('#pixels').getBoundingClientRect();"
        "return [b.x, b.y, b.width, b.height]"
    )
    assert box[2] / box[3] == pytest.approx(W * 1.5 / (H * 3.0), rel=0.01)
    mark = browser.run(
        "const b = document.querySelector('.mark.plus circle.shape').getBoundingClientRect();"
        "return [b.x + b.width / 2, b.y + b.height / 2]"
    )
    row, col = int(0.4 * H), int(0.3 * W)
    assert mark == pytest.approx(
        [box[0] + (col + 0.5) / W * box[2], box[1] + (row + 0.5) / H * box[3]], abs=1
    )


def test_positive_and_negative_clicks_differ_in_shape(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    count = "return document.querySelectorAll(arguments[0]).length"
    assert (
        browser.run(count, "#marks .mark.plus circle") == 4
        and browser.run(count, "#marks .mark.plus path") == 0
    )
    assert (
        browser.run(count, "#marks .mark.minus path") == 2
        and browser.run(count, "#marks .mark.minus circle") == 0
    )
    numbers = "return [...document.querySelectorAll('#marks .mark text')].map((t) => t.textContent)"
    assert browser.run(numbers) == ["1", "2", "3"]
    browser.press("m")
    assert browser.run(count, "#marks .mark") == 0


def test_the_numbers_of_clicks_on_one_spot_stand_apart(browser: Browser, tmp_path: Path) -> None:
    made = record()
    for step in made["steps"][:3]:
        step["action"] |= {"x": 0.5, "y": 0.5}
    opened(browser, tmp_path, made)
    boxes = browser.run(
        "return [...document.querySelectorAll('#marks .mark text')].map((t) => t.getBoundingClientRect())"
        ".map((b) => [b.left, b.right, b.top, b.bottom])"
    )
    assert len(boxes) == 3
    for n, one in enumerate(boxes):
        for other in boxes[:n]:
            beside = one[1] <= other[0] or other[1] <= one[0]
            assert beside or one[3] <= other[2] + 4 or other[3] <= one[2] + 4


def test_zoom_keeps_the_marks_size_and_fit_goes_back(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    size = "return document.querySelector('.mark.plus circle.shape').getBoundingClientRect().width"
    before = browser.run(size)
    picture = "return document.querySelector('#pixels').getBoundingClientRect().width"
    small = browser.run(picture)
    browser.press("+", "+")
    assert browser.run(picture) == pytest.approx(small * 2.25, rel=0.01)
    assert browser.run(size) == pytest.approx(before, rel=0.05)
    browser.press("0")
    assert browser.run(picture) == pytest.approx(small, rel=0.001)


def test_play_runs_to_the_end_and_stops(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    browser.press("home", " ")
    assert browser.run("return document.querySelector('#play').getAttribute('aria-pressed')") == "true"
    browser.press(" ")
    assert browser.run("return document.querySelector('#play').getAttribute('aria-pressed')") == "false"


def test_hostile_text_does_nothing_and_is_shown_as_text(browser: Browser, tmp_path: Path) -> None:
    hostile = record(question=HOSTILE, answer=HOSTILE, reason=HOSTILE, status=HOSTILE, note=HOSTILE)
    hostile["models"]["policy"]["name"] = HOSTILE
    hostile["picture"]["source"] = HOSTILE
    for step in hostile["steps"]:
        step |= {"thinking": HOSTILE, "reply": HOSTILE, "unreadable": HOSTILE}
    hostile["steps"][-1]["action"]["answer"] = HOSTILE
    browser.requests()
    page = opened(browser, tmp_path, hostile)
    for key in ("home", "right", "right", "end"):
        browser.press(key)
        assert browser.dialog() is None
    assert browser.run("return document.body.dataset.hacked || ''") == ""
    assert browser.run("return document.images.length") == 0
    assert browser.text("#thinking") == HOSTILE
    assert browser.text("#step-answer") == HOSTILE
    assert browser.text("h1") == HOSTILE
    assert browser.text("#reply").startswith(HOSTILE) and browser.text("#reply").endswith(HOSTILE)
    assert addresses(browser) == [page.resolve().as_uri()]


def addresses(browser: Browser) -> list[str]:
    """What was asked for since the last call, but for the picture that the page itself holds."""
    return [each for each in browser.requests() if not each.startswith("data:image/png")]


def test_the_page_asks_for_nothing_and_the_console_stays_silent(browser: Browser, tmp_path: Path) -> None:
    browser.requests(), browser.complaints()
    page = opened(browser, tmp_path)
    browser.press("home", "right", "c", "s", "f", "o", "+", "end")
    assert addresses(browser) == [page.resolve().as_uri()]
    assert browser.complaints() == []


def test_a_script_put_into_the_finished_page_is_refused_by_its_policy(
    browser: Browser, tmp_path: Path
) -> None:
    page = opened(browser, tmp_path)
    added = "<script>document.body.dataset.hacked = 1</script></main>"
    page.write_text(page.read_text("utf-8").replace("</main>", added), "utf-8")
    browser.open(page)
    assert browser.run("return document.body.dataset.hacked || ''") == ""
    assert any("Content Security Policy" in line for line in browser.complaints())


def test_on_a_phone_nothing_has_to_be_scrolled_sideways(browser: Browser, tmp_path: Path) -> None:
    long = record(question="Segment " + "averylongwordwithoutanyspace" * 9)
    opened(browser, tmp_path, long)
    browser.resize(360, 740, phone=True)
    assert browser.run("return document.documentElement.scrollWidth") <= 360
    assert browser.run("return document.querySelector('.stage').getBoundingClientRect().width") > 300
    browser.resize(1280, 900)


def test_on_paper_every_step_has_its_figure(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.text("#sheet figcaption").startswith("1.")
    assert browser.run("return document.querySelectorAll('#sheet figure').length") == 4
    assert browser.pdf().startswith(b"%PDF")


def test_the_reply_as_it_came_is_there_for_those_who_want_it(browser: Browser, tmp_path: Path) -> None:
    made = record()
    made["steps"][0] |= {"reply": "<think>thought 1</think>", "unreadable": "no idea"}
    opened(browser, tmp_path, made)
    hidden = "return document.querySelector('#raw').hidden"
    assert browser.run(hidden) is True
    browser.press("home", "right")
    assert browser.run(hidden) is False
    assert browser.text("#reply").startswith("no idea") and browser.text("#reply").endswith("1</think>")


def test_a_run_without_steps_still_opens(browser: Browser, tmp_path: Path) -> None:
    browser.complaints()
    opened(browser, tmp_path, record(steps=[], answer=None, status="ready"))
    assert shown(browser) == (0, "Segment the liver")
    browser.press("right", "end", "c", " ")
    assert shown(browser)[0] == 0
    assert browser.complaints() == []


def test_what_the_models_saw_of_the_picture_is_drawn_and_told() -> None:
    framed = record()
    framed["picture"]["frame"] = {"top": 1, "left": 2, "bottom": 5, "right": 9, "height": H, "width": W}
    view = view_of(framed)
    assert view["picture"]["frame"] == [2, 1, 7, 4]
    assert ("Seen by the models", f"7 × 4 of {W} × {H} pixels") in view["facts"]
    whole = view_of(record())
    assert whole["picture"]["frame"] is None
    assert not [term for term, _ in whole["facts"] if term == "Seen by the models"]
    assert '<rect id="frame">' in review_page(framed)
