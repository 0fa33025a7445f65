"""The protocol between the worker process and its client: JSON lines, one message per line.

Needs only the standard library, because Slicer imports it.

Requests (to the worker's stdin), each with an integer `id`:

| request  | fields | ends with |
|----------|--------|-----------|
| load     | policy, segmenter, segmenter_config, device, precision; of servers, see below | `ready` |
| ask      | session, question, scope, limits; image, start, exclude; or head and known to resume | `done` with `head` |
| step     | session, after (uids of the steps to continue from), rejected | `step`, `done` |
| add      | session, after, click; for a volume slice, replace | `step`, `done` |
| spread   | session, after, slice: propagate a corrected slice again | `step`, `done` |
| info     | policy, device, precision: do they fit into memory? | `done` with `info` |
| models   | policy, send_pictures_to: the models that a server offers | `done` with `models` |
| close    | session | `done` |
| unload   | | `done` |
| cancel   | target (the id of a request) | the target ends with `error`, kind `cancelled` |
| shutdown | | the process ends |

`policy` may be a server's address. `model` is then the model's name there, `card` the path of its card, and
`send_pictures_to` the host that the user agreed to send pictures to. `segmenter` may be the address of an nnInteractive
server, and `send_slices_to` the host that may receive slices.

`image` is described at question.cut_picture, the masks `start` and `exclude` at question.given_masks. The masks are
part of the returned head, so that a resumed run needs neither. `head` is a trajectory without its steps, `known` its
steps by uid. Going back, undo and redo need no request: `after` lists the steps that a request builds on.

A question of scope "volume" is about a volume or a range of slices. Its steps are the actions of a volume run (see
run_record), and it needs the image also to be resumed. Propagation sends a `slice` event per slice (slice, known, done,
total, seconds_left); a cancelled one ends with `step` and `done` with `stopped` true, and keeps the slices it has done.

Events (from the worker): `hello` (once, with the real process id), `loading`, `ready`, `text` (a piece of the reply),
`slice`, `retry` (the reply could not be parsed, and the policy is asked again), `step`, `done`, `error` (kind, text,
remedy), `log`. All but hello and log have the `id` of their request, and those of a session its `session`, so that late
events can be recognised and dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

PROTOCOL = 1
MAX_LINE = 64 * 1024 * 1024  # longer lines are dropped


# The kinds of `error` events. The client acts on the kind and shows the text.
CANCELLED, MEMORY, INPUT, MODEL, REPLY, INTERNAL = (
    "cancelled",
    "memory",
    "input",
    "model",
    "reply",
    "internal",
)

Message = dict[str, Any]


def encode(message: Mapping[str, Any]) -> bytes:
    """A message as a line of ASCII JSON with its newline. Raises ValueError for NaN and infinity."""
    return (
        json.dumps(message, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"
    )


def decode(line: bytes, key: str) -> Message | None:
    """The message in a line; None if it is not a JSON object with a string under `key`."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or not isinstance(message.get(key), str):
        return None
    return message


class Framer:
    """Splits a stream of bytes into messages and other lines.

    >>> framer = Framer("event")
    >>> list(framer.feed(b'{"event":"hel'))
    []
    >>> list(framer.feed(b'lo"}\\nprinted by a library\\n'))
    [{'event': 'hello'}, 'printed by a library']
    """

    def __init__(self, key: str):
        """key: "event" to read a worker's events, "request" to read requests."""
        self._key = key
        self._tail = bytearray()
        self._skipping = False

    def feed(self, chunk: bytes) -> Iterator[Message | str]:
        """Yield a dict for each message and a str for every other line, for the log."""
        self._tail += chunk
        if b"\n" in chunk:
            *lines, rest = bytes(self._tail).split(b"\n")
            self._tail = bytearray(rest)
        else:
            lines = []
        for line in lines:
            if self._skipping:
                self._skipping = False
                continue
            text = line.strip()
            if not text:
                continue
            message = decode(text, self._key)
            yield message if message is not None else text[:500].decode("utf-8", "replace")
        if len(self._tail) > MAX_LINE:
            self._tail.clear()
            self._skipping = True
            yield f"a line of more than {MAX_LINE} bytes was dropped"
