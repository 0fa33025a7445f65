"""A small server that speaks nnInteractive's protocol over HTTP: balls about clicks, bricks for boxes, no network.

The published server needs nnU-Net and an environment of its own; this one keeps what the client relies on: leases, the
image, one level of undo, and answers that say which part has changed.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

RADIUS = 4.0


class Balls(ThreadingHTTPServer):
    """What the server knows; `calls` are the paths that were asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls: list[str] = []
        self.lease, self.leases, self.free = "", 0, True
        self.shape: tuple[int, ...] = ()
        self.marks: list[tuple[str, Any]] = []
        self.before: list[tuple[str, Any]] | None = None
        self.shown = np.zeros(0, np.uint8)

    @property
    def address(self) -> str:
        return f"nninteractive:http://127.0.0.1:{self.server_address[1]}"

    def mask(self) -> np.ndarray:
        made = np.zeros(self.shape, bool)
        places = np.indices(self.shape)
        for kind, mark in self.marks:
            if kind == "seg":
                made = mark.copy()
            elif kind == "point":
                place, inside = mark
                near = ((places - np.reshape(place, (3, 1, 1, 1))) ** 2).sum(0) < RADIUS**2
                made = made | near if inside else made & ~near
            else:
                made[
                    tuple(slice(max(0, a - (axis == 0)), b + (axis == 0)) for axis, (a, b) in enumerate(mark))
                ] = True
        return made

    def capabilities(self) -> dict[str, Any]:
        kinds = {"points": True, "bbox2d": True, "bbox3d": False, "lasso": True, "scribble": True}
        return {
            "supported_interactions": kinds, "channel_mapping": {}, "num_interaction_channels": 7,
            "supports_initial_label": True, "supports_zero_shot_label_refinement": True,
            "preferred_scribble_thickness": [2, 2, 2], "interaction_decay": 0.9, "inference_session_version": "2.0",
            "license": "CC BY-NC-SA 4.0", "supports_undo": True, "do_autozoom": True,
        }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    server: Balls

    def log_message(self, *_: Any) -> None:
        return None

    def do_GET(self) -> None:
        self._say(200, self.server.capabilities())

    def do_POST(self) -> None:
        from nnInteractive.inference.remote.serialization import pack_array, unpack_array

        own, path = self.server, self.path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        own.calls.append(path)
        if path == "/claim":
            if not own.free:
                return self._say(503, {"detail": "full"})
            own.leases += 1
            own.lease = f"lease {own.leases}"
            self._say(
                200, {"lease_token": own.lease, "idle_timeout_seconds": 600, "liveness_timeout_seconds": 60}
            )
            return None
        if self.headers.get("X-Lease-Token") != own.lease:
            return self._say(410, {"detail": "lease expired"})
        meta = json.loads(self.headers.get("X-Meta") or "{}")
        if path == "/set_image":
            own.shape, own.marks = unpack_array(body).shape[1:], []
            return self._say(200, {"original_image_shape": [1, *own.shape]})
        said = json.loads(body) if body[:1] == b"{" else {}
        if path in ("/set_target_buffer", "/reset_interactions", "/release"):
            own.marks, own.before = [], None
            own.shown = np.zeros(own.shape, np.uint8)
            return self._say(200, {})
        done = True
        if path == "/undo":
            done = own.before is not None
            own.marks, own.before = (own.before or own.marks), None
        else:
            own.before = list(own.marks)
            if path == "/add_point_interaction":
                own.marks.append(("point", (said["coordinates"], said["include_interaction"])))
            elif path == "/add_bbox_interaction":
                own.marks.append(("box", said["bbox_coords"]))
            elif path == "/add_lasso_interaction":
                own.marks.append(("box", meta["interaction_bbox"]))
            else:
                own.marks = [("seg", unpack_array(body) != 0)]
        shown = own.mask().astype(np.uint8)
        own.shown = shown
        answer = {"ran_prediction": done, "bbox": [[0, side] for side in own.shape]}
        packed = pack_array(shown)
        self.send_response(200)
        self.send_header("X-Meta", json.dumps(answer))
        self.send_header("Content-Length", str(len(packed)))
        self.end_headers()
        self.wfile.write(packed)
        return None

    def _say(self, code: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def balls() -> Iterator[Balls]:
    server = Balls()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
