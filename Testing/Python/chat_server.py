"""A small chat server over a policy of this package, and servers that go wrong in every way that was thought of."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from ibis_agent.policy.card import ModelCard
from ibis_agent.policy.messages import Message
from ibis_agent.policy.qwen25.chat import Chat
from PIL import Image

Respond = Callable[[dict[str, Any], Callable[[str], None]], "tuple[int, int]"]


class ChatServer:
    """Serves what `respond` writes, streamed, one event a piece.

    respond: gets the request's body and a function that sends a piece of text; gives (prompt, completion) tokens.

    Attributes:
        url: its address.
        bodies: of all chat requests.
        gone: how many clients closed the connection before the end.
        busy, most_busy: chats under way at once, now and at most.
    """

    def __init__(self, respond: Respond, models: Sequence[str] = ("demo",), key: str = "") -> None:
        self.bodies: list[dict[str, Any]] = []
        self.gone = self.busy = self.most_busy = 0
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._json({"data": [{"id": name} for name in models]} if self.path == "/v1/models" else {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if key and self.headers.get("Authorization") != f"Bearer {key}":
                    return self._json({"error": {"message": "wrong key"}}, 401)
                with lock:
                    server.bodies.append(body)
                    server.busy += 1
                    server.most_busy = max(server.busy, server.most_busy)
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                try:
                    self._event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
                    usage = respond(
                        body, lambda text: self._event({"choices": [{"delta": {"content": text}}]})
                    )
                    self._event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
                    counted = dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))
                    self._event({"choices": [], "usage": counted, "model": models[0]})
                    self._chunk(b"data: [DONE]\n\n")
                    self._chunk(b"")
                except OSError:
                    self.close_connection = True
                    with lock:
                        server.gone += 1
                finally:
                    with lock:
                        server.busy -= 1
                return None

            def _event(self, values: Any) -> None:
                self._chunk(f"data: {json.dumps(values)}\n\n".encode())

            def _chunk(self, data: bytes) -> None:
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()

            def _json(self, values: Any, status: int = 200) -> None:
                held = json.dumps(values).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(held)))
                self.end_headers()
                self.wfile.write(held)

            def log_message(self, *arguments: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *arguments: Any) -> None:
                pass

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def serving(respond: Respond, **options: Any) -> Iterator[ChatServer]:
    server = ChatServer(respond, **options)
    try:
        yield server
    finally:
        server.close()


def served(policy: Any, folder: Path) -> Respond:
    """A LocalPolicy's network as a server that knows nothing of actions: text until a stop token or the limit.

    It leaves pictures as they come: their sides are whole cells already.
    """
    lock, chat = threading.Lock(), Chat.load(folder, ModelCard(min_pixels=784, max_pixels=2**22))

    def respond(body: dict[str, Any], send: Callable[[str], None]) -> tuple[int, int]:
        messages, pictures = conversation(body)
        with lock:
            request = chat.encode(messages, pictures)
            done = policy._decoder.run(request, int(body["max_tokens"]), send)
        return len(request.ids), len(done.ids)

    return respond


def seeing(answer: Callable[[np.ndarray, str], str], scale: float = 1.0) -> Respond:
    """A server whose model gives `answer(picture, question)`; pictures are scaled before, as some servers do."""

    def respond(body: dict[str, Any], send: Callable[[str], None]) -> tuple[int, int]:
        messages, pictures = conversation(body)
        height, width = (round(side * scale / 28) for side in pictures[-1].shape[:2])
        text = answer(pictures[-1], messages[-1].text)
        for start in range(0, len(text), 7):
            send(text[start : start + 7])
        return 20 + height * width, len(text)

    return respond


def conversation(body: dict[str, Any]) -> tuple[list[Message], list[np.ndarray]]:
    """Messages and pictures of a request's body."""
    messages, pictures = [], []
    for message in body["messages"]:
        if isinstance(message["content"], str):
            messages.append(Message(message["role"], message["content"]))
            continue
        image, text = message["content"]
        data = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
        messages.append(Message(message["role"], text["text"], len(pictures)))
        pictures.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    return messages, pictures


@contextlib.contextmanager
def hostile(behave: Callable[[socket.socket], object]) -> Iterator[str]:
    """The address of a server that reads a request and then does what it likes with the connection."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.05)
    closed = threading.Event()

    def serve() -> None:
        while not closed.is_set():
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError):
            connection.settimeout(20)
            held = b""
            while b"\r\n\r\n" not in held:
                held += connection.recv(2**16)
            head, _, rest = held.partition(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            while length and len(rest) < int(length[0].split(b":")[1]):
                rest += connection.recv(2**16)
            behave(connection)
            while not closed.is_set() and connection.fileno() >= 0 and connection.recv(2**16):
                time.sleep(0.01)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        closed.set()
        listening.close()
