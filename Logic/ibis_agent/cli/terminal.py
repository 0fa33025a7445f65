"""Terminal output, and parsing the commands that the person types between steps.

Text from a policy or a file name is cleaned before it is printed, because it could contain escape sequences. This
module knows nothing about models or files.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TextIO

import numpy as np

from ibis_agent.actions import Box, Click, Prompt
from ibis_agent.cli import inline_picture
from ibis_agent.errors import InputError

_BOLD, _DIM, _GREEN, _RED, _YELLOW, _CYAN = "1", "2", "32", "31", "33", "36"
_WIDEST = 100
_INDENT = 5
# An incomplete tag is held back, so that half a tag is never shown.
_UNFINISHED_TAG = re.compile(r"<\s{0,4}/?\s{0,4}[a-z]{0,8}\s{0,4}$", re.IGNORECASE)
_OPENING = re.compile(r"^\s*<\s{0,4}think\s{0,4}>\s*", re.IGNORECASE)
_ENDING = re.compile(r"<\s{0,4}(?:/\s{0,4}think|action|answer)\s{0,4}>", re.IGNORECASE)


def clean(text: str) -> str:
    """`text` without escape sequences, control characters and bidirectional marks, which could control a terminal.

    Line ends and tabs are kept; other such characters become U+FFFD.
    """
    return "".join(
        "\ufffd"
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs") and letter not in "\n\t\u200d\u200c"
        else letter
        for letter in text
    )


def one_line(text: object) -> str:
    """`clean` text with every run of white space as one space."""
    return " ".join(clean(str(text)).split())


class ThinkingStream:
    """Extracts the thinking from a streamed reply.

    `feed(piece)` returns the new part of the thinking that can be shown.
    """

    def __init__(self) -> None:
        self._text = ""
        self._shown = 0
        self.ended = False

    def feed(self, piece: str) -> str:
        if self.ended:
            return ""
        self._text += piece
        start = _OPENING.match(self._text)
        begin = start.end() if start else 0
        ending = _ENDING.search(self._text, begin)
        if ending:
            self.ended = True
            thinking = self._text[begin : ending.start()].rstrip()
        else:
            unfinished = _UNFINISHED_TAG.search(self._text)
            thinking = self._text[begin : unfinished.start() if unfinished else len(self._text)]
            # White space at the end may be the last before the tag.
            thinking = thinking.rstrip()
        new, self._shown = thinking[self._shown :], max(self._shown, len(thinking))
        return new


class Screen:
    """Writes to a terminal, a pipe or a file; uses colours and the width only on a terminal."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self.stream = stream or sys.stdout
        self.quiet = quiet
        self.coloured = (
            self.stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        )
        self.width = (
            min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns) if self.stream.isatty() else _WIDEST
        )
        self.pictures = inline_picture.protocol() if self.stream.isatty() else None
        self._column = 0
        self._word = self._space = ""

    def line(self, text: str = "") -> None:
        """Print one line."""
        if not self.quiet:
            self.end_flow()
            self._write(text + "\n")

    def ask(self, prompt: str) -> None:
        """Print a prompt for the person's input."""
        if not self.quiet:
            self.end_flow()
            self._write(prompt)

    def picture(self, rgb: np.ndarray) -> None:
        """Show a (H, W, 3) uint8 picture, if the terminal can."""
        if self.pictures and not self.quiet:
            self.end_flow()
            self._write(inline_picture.escapes(rgb, self.pictures))

    @contextlib.contextmanager
    def passing(self, text: str) -> Iterator[None]:
        """Show a line while the block runs, on a terminal only, and erase it afterwards."""
        shown = self.stream.isatty() and not self.quiet
        if shown:
            self._write(text + "\r")
        try:
            yield
        finally:
            if shown:
                self._write("\033[K")

    def flow(self, text: str) -> None:
        """Print streamed text, indented and wrapped at the width of the screen."""
        if self.quiet:
            return
        for letter in clean(text):
            if letter in " \t\n":
                self._place_word()
                if letter == "\n":
                    self._break()
                elif self._column > _INDENT:
                    self._space = " "
            else:
                self._word += letter
                if len(self._word) > self.width - _INDENT - 1:
                    self._place_word()
        self.stream.flush()

    def end_flow(self) -> None:
        """End the text printed by `flow` with a line end."""
        self._place_word()
        if self._column:
            self._break()

    def paint(self, text: str, colour: str) -> str:
        return f"\033[{colour}m{text}\033[0m" if self.coloured else text

    def bold(self, text: str) -> str:
        return self.paint(text, _BOLD)

    def dim(self, text: str) -> str:
        return self.paint(text, _DIM)

    def good(self, text: str) -> str:
        return self.paint(text, _GREEN)

    def bad(self, text: str) -> str:
        return self.paint(text, _RED)

    def warn(self, text: str) -> str:
        return self.paint(text, _YELLOW)

    def mark(self, text: str) -> str:
        return self.paint(text, _CYAN)

    def _place_word(self) -> None:
        if not self._word:
            return
        if self._column and self._column + len(self._space + self._word) > self.width:
            self._break()
        before = self._space if self._column else " " * _INDENT
        self._write(before + self._word)
        self._column += len(before + self._word)
        self._word = self._space = ""

    def _break(self) -> None:
        self._write("\n")
        self._column = 0
        self._space = ""

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


Word = Literal["continue", "all", "undo", "redo", "reject", "accept", "discard", "quit", "help"]


@dataclass(frozen=True)
class Do:
    """A command without arguments."""

    word: Word


@dataclass(frozen=True)
class Back:
    """Go back by `count` steps."""

    steps: int


@dataclass(frozen=True)
class Add:
    """The person's own click; in a volume on slice `index`, None for the slice of the last action.

    moved: which of the slice's clicks it replaces.
    """

    click: Prompt
    index: int | None = None
    moved: int | None = None


@dataclass(frozen=True)
class Replace:
    """The person's own click, which replaces step `number` and all later ones."""

    number: int
    click: Prompt


@dataclass(frozen=True)
class Spread:
    """Propagate again from a slice, None for the slice of the last action."""

    index: int | None


Command = Do | Back | Add | Replace | Spread

HELP = """\
     Enter       continue with the agent       b [n]       go back one step, or n steps
     + x y       add a positive click          u / r       undo / redo the last change
     - x y       add a negative click          x           reject: undo the step and tell the agent
     [ x0 y0 x1 y1   add a box: its left, upper, right and lower edge
     3 + x y     replace step 3 by a click     a / d       accept / discard the mask and end
     q           stop here, keep everything    ?           this help
     x to the right and y down, from 0 to 1; or in pixels, column then row:  + 91 48 px"""

HELP_IN_A_VOLUME = """\
     Enter       continue with the agent       b [n]       go back one action, or n actions
     57 + x y    add a positive click on slice 57; without the number, on the slice of the last action
     57 - x y    add a negative click there    u / r       undo / redo the last change of masks
     57.2 + x y  move the second click of slice 57; the later ones there are removed
     57 [ x0 y0 x1 y1   add a box there: its left, upper, right and lower edge
     57 g        propagate again from slice 57, until the slices no longer change
     all         let the agent continue to the end         a / q       accept, or stop here: keep everything
     x           reject: undo and tell the agent           d           discard and end, ? this help
     x to the right and y down, from 0 to 1; or in pixels, column then row:  57 + 91 48 px"""

_WORDS: dict[str, Word] = {
    "": "continue", "c": "continue", "continue": "continue", "u": "undo", "undo": "undo", "r": "redo",
    "redo": "redo", "x": "reject", "reject": "reject", "a": "accept", "accept": "accept", "d": "discard",
    "discard": "discard", "q": "quit", "quit": "quit", "exit": "quit", "?": "help", "h": "help",
    "help": "help",
}  # fmt: skip
_BACK = re.compile(r"b(?:ack)?\s*(\d{1,9})?", re.ASCII)
_SPREAD = re.compile(r"(\d{1,9})?\s*g(?:row)?", re.ASCII)
_BOX = re.compile(r"(?:(\d{1,9})(?:\.(\d{1,9}))?\s*)?\[\s*((?:[^\s,\]]{1,40}[\s,]*){4})\]?\s*(px)?", re.ASCII)
_CLICK = re.compile(
    r"(?:(\d{1,9})(?:\.(\d{1,9}))?\s*)?([+-])\s*(\S{1,40})[\s,]+(\S{1,40}?)\s*(px)?", re.ASCII
)


def read_command(text: str, height: int, width: int, volume: bool = False) -> Command:
    """Parse what the person typed, for pictures of `height` × `width` pixels.

    Raises InputError, with a hint about the expected input.
    """
    typed = text.strip().lower()
    if typed in _WORDS:
        return Do(_WORDS[typed])
    if back := _BACK.fullmatch(typed):
        return Back(int(back.group(1) or 1))
    if volume and typed == "all":
        return Do("all")
    if volume and (spread := _SPREAD.fullmatch(typed)):
        return Spread(int(spread.group(1)) if spread.group(1) else None)
    box = _BOX.fullmatch(typed)
    if box and (volume or not box.group(2)):
        number, which, edges, pixels = box.groups()
        return _placed(_box(edges, (height, width) if pixels else None), number, which, volume)
    click = _CLICK.fullmatch(typed)
    if click and (volume or not click.group(2)):
        number, which, sign, x, y, pixels = click.groups()
        chosen = _click(x.rstrip(","), y, sign == "+", (height, width) if pixels else None)
        return _placed(chosen, number, which, volume)
    raise InputError("unknown command", value=one_line(text)[:60], remedy="Type ? for the list of commands.")


def _placed(prompt: Prompt, number: str | None, which: str | None, volume: bool) -> Command:
    if volume or number is None:
        return Add(prompt, int(number) if number else None, int(which) if which else None)
    return Replace(int(number), prompt)


def _box(edges: str, pixels: tuple[int, int] | None) -> Box:
    """px: in pixels; the given pixels are inside the box."""
    remedy = "For example: [ 0.21 0.30 0.55 0.60, or [ 91 48 140 96 px."
    try:
        left, top, right, bottom = (float(each) for each in edges.replace(",", " ").split())
    except ValueError as error:
        raise InputError("a box needs four numbers", value=edges.strip(), remedy=remedy) from error
    if pixels is None:
        return Box(left, top, right, bottom)
    height, width = pixels
    if not (0 <= left <= right < width and 0 <= top <= bottom < height):
        raise InputError("the box lies outside the picture", value=edges.strip(), remedy=remedy)
    return Box(left / width, top / height, (right + 1) / width, (bottom + 1) / height)


def _click(x: str, y: str, positive: bool, pixels: tuple[int, int] | None) -> Click:
    try:
        across, down = float(x), float(y)
    except ValueError as error:
        remedy = "For example: + 0.42 0.55, or + 91 48 px."
        raise InputError("a click needs two numbers", value=f"{x} {y}", remedy=remedy) from error
    if pixels is None:
        return Click(across, down, positive)
    height, width = pixels
    if not (across.is_integer() and down.is_integer() and 0 <= across < width and 0 <= down < height):
        raise InputError(
            "the pixel lies outside the picture",
            value=f"column {x}, row {y}",
            remedy=f"Columns run from 0 to {width - 1}, rows from 0 to {height - 1}.",
        )
    # The middle of the pixel, so that the published int() rule gives the same pixel.
    return Click((across + 0.5) / width, (down + 0.5) / height, positive)
