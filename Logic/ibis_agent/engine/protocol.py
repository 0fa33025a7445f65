"""The language between the worker process and whoever started it: JSON lines, one message a line.

Here: the words, the framing, and how a step travels. Not here: who speaks (process.py) and who listens
(client.py). Needs nothing but the standard library and numpy, since it is imported into Slicer.

Requests (to the worker's stdin), each with an integer `id`:

| request  | fields | ends with |
|----------|--------|-----------|
| load     | policy, segmenter, segmenter_config, device, precision; of servers, see below | `ready` |
| ask      | session, question, scope, limits; image, start, exclude; or head and known to resume | `done` with `head` |
| step     | session, after (uids of the steps to go on from), rejected | `step`, `done` |
| add      | session, after, click; for a volume slice, replace | `step`, `done` |
| spread   | session, after, slice: the neighbours of a clicked slice again | `step`, `done` |
| info     | policy, device, precision: is there room for them? | `done` with `info` |
| models   | policy, send_pictures_to: what a server offers | `done` with `models` |
| close    | session | `done` |
| unload   | | `done` |
| cancel   | target (the id of a request) | the target ends with `error`, kind `cancelled` |
| shutdown | | the process ends |

`policy` may be the address of a server: then `model` is its name there, `card` the path of its card, and
`send_pictures_to` the host that the person agreed to send pictures to. `segmenter` may be the address of a server of
nnInteractive, and `send_slices_to` the host that slices may go to.

`image` is described at question.cut_picture; `start` and `exclude`, masks to begin from and to keep out of, at
question.given_masks: they stand in the head that comes back, so that a resumed run needs neither. `head` is a
trajectory without its steps, `known` its steps by uid. Going back, undoing and redoing need no request: `after` says
which steps a request builds on.

A question of scope "volume" is about a whole volume or a range: its steps are the actions of a volume run (see
run_record), it needs the image to be resumed as well, and while it grows there is a `slice` event for every
slice (slice, known, done, total, seconds_left). A growth that is cancelled ends with `step` and `done`, `stopped`
true: the slices done count.

Events (from the worker): `hello` (once, with the real process id), `loading`, `ready`, `text` (a piece of the
reply being written), `slice`, `retry` (the reply could not be read, the policy is asked once more), `step`, `done`,
`error` (kind, text, remedy), `log`. All but hello and log carry the `id` of their request, and those of a
session its `session`, so that a late one can be told and dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

PROTOCOL = 1
MAX_LINE = 64 * 1024 * 1024  # a longer line is not ours: stop collecting it


# What an `error` event can be about. The client acts on the kind and shows the text.
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
    """One message as one line of ASCII JSON, newline included. Raises ValueError for NaN and infinities."""
    return (
        json.dumps(message, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"
    )


def decode(line: bytes, key: str) -> Message | None:
    """The message in one line, or None where the line is not a JSON object with a text under `key`."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or not isinstance(message.get(key), str):
        return None
    return message


class Framer:
    """Cuts a stream of bytes, arriving in any pieces, into messages and noise.

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
        """Yields a dict for each message and a str for every other line (noise, for the log)."""
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
