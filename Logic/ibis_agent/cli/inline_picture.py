"""Inline pictures for terminals that can show them: kitty, Ghostty, iTerm2, WezTerm.

Uses kitty's graphics protocol (https://sw.kovidgoyal.net/kitty/graphics-protocol/) and iTerm2's inline images
(https://iterm2.com/documentation-images.html). Other terminals show no picture; use the live page.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from typing import Literal

import numpy as np

Protocol = Literal["kitty", "iterm2"]
_COLUMNS = 44
_PIECE = 4096  # maximum bytes of base64 in one escape sequence of kitty's protocol


def protocol(environment: Mapping[str, str] = os.environ) -> Protocol | None:
    """The protocol that the terminal supports, from its environment variables; None in tmux and screen."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if term.startswith(("tmux", "screen")) or "TMUX" in environment:
        return None
    if term in ("xterm-kitty", "xterm-ghostty") or "KITTY_WINDOW_ID" in environment:
        return "kitty"
    return "iterm2" if program in ("iTerm.app", "WezTerm") else None


def escapes(rgb: np.ndarray, by: Protocol) -> str:
    """The escape sequences that show a (H, W, 3) uint8 picture, `_COLUMNS` wide, with its aspect ratio."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    if by == "iterm2":
        size = len(buffer.getvalue())
        return f"\033]1337;File=inline=1;size={size};width={_COLUMNS};preserveAspectRatio=1:{text}\a\n"
    pieces = [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)]
    shown = []
    for number, piece in enumerate(pieces):
        # q=2: the terminal must not answer; its answer would be read as the person's next line.
        keys = f"a=T,f=100,q=2,c={_COLUMNS}," if number == 0 else ""
        shown.append(f"\033_G{keys}m={int(number + 1 < len(pieces))};{piece}\033\\")
    return "".join(shown) + "\n"
