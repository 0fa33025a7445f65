"""Reading and writing the policy's text."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ibis_agent.actions import Click, Reply, Terminate, format_reply, parse_reply, reply_is_complete
from ibis_agent.errors import InputError, ReplyError

FRACTIONS = st.floats(0, 1)
# Words without angle brackets: thinking that holds a tag is refused by the formatter, which has its own test.
WORDS = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=200)
ACTIONS = st.one_of(
    st.builds(Click, FRACTIONS, FRACTIONS, st.booleans()),
    st.builds(Terminate, WORDS),
)
# Pieces that replies are made of, whole and broken, to fuzz with texts that come close to the grammar.
PIECES = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<action>",
        "</action>",
        "<answer>",
        "</answer>",
        "< / Action >",
        "<ACTION>",
        "Positive Point (0.5, 0.25)",
        "Negative Point (1, 0)",
        "Positive Point (0.5, ",
        "Positive Point (50%, 20%)",
        "Positive Point (512, 20)",
        "Terminate",
        "termination.",
        "the liver",
        "<",
        "</",
        ">",
        "\n",
        " ",
        "（０．５，０．５）",
        "🫀",
        "\u202e",
        "\x00",
        "\ud800",
    ]
)
HOSTILE = st.one_of(
    st.text(), st.lists(PIECES, max_size=20).map("".join), st.lists(st.one_of(PIECES, st.text())).map("".join)
)


def action_of(text: str) -> object:
    return parse_reply(text).action


@given(st.builds(Reply, WORDS, ACTIONS))
def test_what_is_written_is_read_back_up_to_four_decimals_and_outer_white_space(reply: Reply) -> None:
    text = format_reply(reply)
    read = parse_reply(text)
    assert read.thinking == reply.thinking.strip()
    if isinstance(reply.action, Terminate):
        assert read.action == Terminate(reply.action.answer.strip())
    else:
        assert isinstance(read.action, Click)
        assert read.action.positive == reply.action.positive
        assert read.action.x == pytest.approx(reply.action.x, abs=5e-5)
        assert read.action.y == pytest.approx(reply.action.y, abs=5e-5)
    assert format_reply(read) == text, "writing again changes nothing"
    assert reply_is_complete(text)


@given(HOSTILE)
def test_no_text_raises_anything_but_a_reply_error(text: str) -> None:
    try:
        reply = parse_reply(text)
    except ReplyError as error:
        assert str(error)
    else:
        assert isinstance(reply.action, (Click, Terminate))
    assert reply_is_complete(text) in (True, False)


@given(HOSTILE, HOSTILE)
def test_what_follows_a_complete_reply_changes_nothing(text: str, more: str) -> None:
    if reply_is_complete(text):
        assert parse_reply(text + more).action == parse_reply(text).action
        assert reply_is_complete(text + more)


@given(st.builds(Reply, WORDS, ACTIONS))
def test_a_reply_that_streams_in_is_complete_exactly_at_its_end(reply: Reply) -> None:
    text = format_reply(reply)
    assert [n for n in range(len(text) + 1) if reply_is_complete(text[:n])] == [len(text)]


@pytest.mark.parametrize(
    "hostile",
    [
        "<" * 1_000,
        "<action>" * 1_000,
        "<think>" * 1_000,
        "</think>" * 1_000,
        "<action></think>" * 1_000,
        "<answer>" * 1_000,
        "Positive " * 1_000,
        "Positive Point (0." + "1" * 5_000,
        "<action>Positive Point (" + " " * 5_000,
        "<action>" + "\t" * 5_000 + "</action>",
        "< " * 3_000,
        "（" * 5_000,
        "<think>" + "<action>Positive Point (0.5, 0.5" * 500,
        "<action>Positive Point (2, 2)</action>" * 500,
    ],
)
def test_reading_takes_work_that_grows_with_the_length_and_no_faster(hostile: str) -> None:
    # Lines and calls are counted, not seconds, which depend on the machine. What the counts cannot see,
    # a pattern that backtracks, would take hours for the last text, which is a megabyte long.
    few, many = (work(lambda text=hostile * times: attempt(text)) for times in (4, 32))
    assert many <= 8 * few + 500
    attempt(hostile * (1_000_000 // len(hostile) + 1))


def attempt(text: str) -> None:
    reply_is_complete(text)
    with contextlib.suppress(ReplyError):
        parse_reply(text)


def work(task) -> int:  # type: ignore[no-untyped-def]
    """How many calls and lines of Python `task` takes."""
    count = 0

    def trace(frame, event, argument):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        task()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think><action>Positive Point (0.5, 0.25)</action>", Click(0.5, 0.25)),
        ("<think>a</think>\n\n<action>\nNegative Point (0.5, 0.25)\n</action>\n", Click(0.5, 0.25, False)),
        ("<THINK>a</THINK><Action>positive point(0.5,0.25)</ACTION>", Click(0.5, 0.25)),
        ("< think >a</ think>< action >Positive  Point ( 0.5 , 0.25 )</ action >", Click(0.5, 0.25)),
        ("<action>Positive Point (1, 0)</action>", Click(1, 0)),
        ("<action>Positive Point (.5, 1.)</action>", Click(0.5, 1)),
        ("<action>Positive Point (5e-1, 2.5E-1)</action>", Click(0.5, 0.25)),
        ("<action>Positive Point (-0.0, 0.25)</action>", Click(0, 0.25)),
        ("<action>Positive Point [0.5, 0.25]</action>", Click(0.5, 0.25)),
        ("<action>Positive Point: 0.5, 0.25</action>", Click(0.5, 0.25)),
        ("<action>Positive Point (0.5 0.25)</action>", Click(0.5, 0.25)),
        ("<action>Positive_Point (x=0.5, y=0.25)</action>", Click(0.5, 0.25)),
        ("<action>**Positive Point (0.5, 0.25)**.</action>", Click(0.5, 0.25)),
        ("<action>Positive Point （０．５，０．２５）</action>", Click(0.5, 0.25)),
        ("<action>Terminate</action><answer>A liver.</answer>", Terminate("A liver.")),
        ("<action>Termination</action>\n<answer>\nA liver.\n</answer>", Terminate("A liver.")),
        ("<action> TERMINATE. </action>", Terminate("")),
        ("<action>Terminate()</action>", Terminate("")),
        ("<answer>yes</answer><action>terminated</action>", Terminate("yes")),
    ],
)
def test_every_usual_way_of_writing_an_action_is_read(text: str, expected: object) -> None:
    assert action_of(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think><action>Positive Point (0.5, 0.25)", Click(0.5, 0.25)),
        ("<think>a<action>Positive Point (0.5, 0.25)</action>", Click(0.5, 0.25)),
        ("a</think><action>Positive Point (0.5, 0.25)</action>", Click(0.5, 0.25)),
        ("<think>a</think>Positive Point (0.5, 0.25)", Click(0.5, 0.25)),
        ("Positive Point (0.5, 0.25)", Click(0.5, 0.25)),
        ("Positive Point (0.5, 0.25)</action>", Click(0.5, 0.25)),
        ("<think>a</think><action>Terminate<answer>yes", Terminate("yes")),
        ("<think>a</think>Terminate<answer>yes</answer>", Terminate("yes")),
    ],
)
def test_a_missing_tag_is_forgiven_where_the_action_is_plain(text: str, expected: object) -> None:
    assert action_of(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "<action>Negative Point (0.1, 0.2)</action><action>Positive Point (0.5, 0.5)</action>",
            Click(0.1, 0.2, False),
        ),
        ("<action>Positive Point (0.1, 0.2) Positive Point (0.5, 0.5)</action>", Click(0.1, 0.2)),
        ("<action>zoom in</action><action>Positive Point (0.1, 0.2)</action>", Click(0.1, 0.2)),
        (
            "<action>Positive Point (7, 9)</action><action>Terminate</action><answer>a</answer>",
            Terminate("a"),
        ),
        ("<action>Terminate</action><action>Positive Point (0.1, 0.2)</action>", Terminate()),
    ],
)
def test_of_several_actions_the_first_well_formed_one_counts(text: str, expected: object) -> None:
    assert action_of(text) == expected


def test_an_action_within_the_thinking_is_only_a_thought() -> None:
    text = "<think>not <action>Positive Point (0.1, 0.1)</action> but</think>"
    text += "<action>Negative Point (0.9, 0.9)</action>"
    assert parse_reply(text) == Reply(
        "not <action>Positive Point (0.1, 0.1)</action> but", Click(0.9, 0.9, False)
    )
    assert not reply_is_complete(text[: text.index(" but")])


def test_all_thinking_before_the_action_is_kept() -> None:
    assert parse_reply("<think>a</think> <think>b</think><action>Terminate</action>").thinking == "a\nb"
    assert parse_reply("First I look. <action>Terminate</action>").thinking == "First I look."
    assert parse_reply("<think>深い\n思考 <b></think><action>Terminate</action>").thinking == "深い\n思考 <b>"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<action>Positive Point (50%, 25%)</action>", "percent"),
        ("<action>Positive Point (1.01, 0.25)</action>", "between 0 and 1"),
        ("<action>Positive Point (0.5, -0.25)</action>", "between 0 and 1"),
        ("<action>Positive Point (241, 130)</action>", "between 0 and 1"),
        ("<action>Positive Point (1e999, 0)</action>", "between 0 and 1"),
        ("<action>Positive Point (nan, 0.5)</action>", "two numbers"),
        ("<action>Positive Point (0,5, 0,25)</action>", "two numbers"),
        ("<action>Positive Point (0.5)</action>", "two numbers"),
        ("<action>Positive Point (0.5, 0.25, 0.75)</action>", "two numbers"),
        ("<action>Positive Point (0.5, 0.25]</action>", "two numbers"),
        ("<action>Positive Point</action>", "two numbers"),
        ("<action>Click (0.5, 0.25)</action>", "not an action"),
        ("<action>Terminate the search at (0.5, 0.5)</action>", "not an action"),
        ("<action></action>", "not an action"),
        ("<think>I see a liver.</think>", "no action"),
        ("<answer>A liver.</answer>", "no action"),
        ("", "no action"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ReplyError, match=reason):
        parse_reply(text)


@pytest.mark.parametrize(
    "cut", ["Positive Point (0.", "Positive Point (0.5, 0.2", "Positive Point 0.5, 0.25"]
)
def test_a_click_that_was_cut_off_is_never_guessed(cut: str) -> None:
    with pytest.raises(ReplyError, match=r"cut off|two numbers"):
        parse_reply(f"<think>a</think><action>{cut}")
    with pytest.raises(ReplyError):
        parse_reply(f"<think>a</think>{cut}")


CLICK_TEXT = "Positive Point (0.3125, 0.4375)"


@pytest.mark.parametrize("after", ["", "</think>", "<answer>", "</answer>", "<action>", "<think>"])
@pytest.mark.parametrize("where", ["<action>", ""])
@pytest.mark.parametrize("length", range(1, len(CLICK_TEXT)))
def test_a_number_that_stops_in_its_middle_is_never_an_action(length: int, where: str, after: str) -> None:
    """Wherever a reply breaks off, and whatever tag comes then."""
    with pytest.raises(ReplyError):
        parse_reply(f"<think>a</think>{where}{CLICK_TEXT[:length]}{after}")


@pytest.mark.parametrize("text", ["(0.3, 0.", "(0., 0.3", "0.3, 0.", "(0.3, 0"])
def test_an_open_click_needs_its_closing_tag_and_whole_numbers(text: str) -> None:
    for after in ("</think>", "</answer>", "<answer>"):
        with pytest.raises(ReplyError, match="cut off"):
            parse_reply(f"<think>a</think><action>Positive Point {text}{after}")
    if text.endswith(".") or "0.," in text:
        with pytest.raises(ReplyError, match="cut off"):
            parse_reply(f"<action>Positive Point {text}</action>")


def test_a_number_that_ends_in_its_point_is_whole_within_brackets() -> None:
    assert parse_reply("<action>Positive Point (0., 1.)</action>").action == Click(0, 1)


def test_completion_needs_the_answer_at_the_end_and_only_the_action_before() -> None:
    assert reply_is_complete("<think>a</think><action>Positive Point (0.5, 0.5)</action>")
    assert not reply_is_complete("<think>a</think><action>Positive Point (0.5, 0.5)")
    assert not reply_is_complete("<think>a</think><action>Terminate</action>")
    assert not reply_is_complete("<think>a</think><action>Terminate</action><answer>liver")
    assert reply_is_complete("<think>a</think><action>Terminate</action><answer>liver</answer>")
    assert not reply_is_complete("<think>a</think><action>look closer</action>")
    assert not reply_is_complete("<think>a<action>Positive Point (0.5, 0.5)</action>"), (
        "the thinking is still open"
    )


@pytest.mark.parametrize("tag", ["</think>", "<action>", "< /Answer >"])
def test_tags_inside_the_texts_are_not_written(tag: str) -> None:
    with pytest.raises(InputError, match="tag"):
        format_reply(Reply(f"a {tag} b", Click(0.5, 0.5)))
    with pytest.raises(InputError, match="tag"):
        format_reply(Reply("", Terminate(tag)))


def test_the_written_form_is_the_one_that_policies_are_trained_on() -> None:
    assert format_reply(Reply(" a ", Click(0.12344, 1, False))) == (
        "<think>a</think>\n<action>Negative Point (0.1234, 1.0000)</action>"
    )
    assert format_reply(Reply("a", Terminate("b"))) == (
        "<think>a</think>\n<action>Terminate</action>\n<answer>b</answer>"
    )


def test_a_click_takes_the_numbers_of_numpy_too() -> None:
    assert Click(np.float32(0.5), np.int64(1)) == Click(0.5, 1.0)  # type: ignore[arg-type]
    assert type(Click(np.float32(0.5), 0).x) is float  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf"), 10**400, "0.5", None, 1j])
def test_a_click_outside_the_picture_cannot_be_made(value: object) -> None:
    with pytest.raises(InputError, match="0 to 1"):
        Click(value, 0.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="0 to 1"):
        Click(0.5, value)  # type: ignore[arg-type]


def test_every_action_that_the_published_scoring_accepts_is_read(parity: Path) -> None:
    records = json.loads((parity / "rewards.json").read_text())
    accepted = {record["reply"] for record in records if record["score"]["point_format_score"] == 1}
    assert len(accepted) > 5
    for reply in accepted:
        action = action_of(reply)
        said = [
            float(number)
            for number in re.findall(r"[\d.]+", reply.split("<action>")[1].split("</action>")[0])
        ]
        if said:
            assert action == Click(*said, positive="Positive" in reply)
        else:
            assert isinstance(action, Terminate)
