"""Channels as people have them: a web server that is posted to, and a mail server, real ones on free ports."""

from __future__ import annotations

import email
import email.policy
import http.server
import json
import socketserver
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

PATIENCE = 60.0


class _Channel:
    server: socketserver.BaseServer

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []  # title, message, type
        self.news = threading.Condition()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.server.serve_forever, args=[0.02])
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        address: Any = self.server.server_address
        return int(address[1])

    @property
    def titles(self) -> list[str]:
        with self.news:
            return [one["title"] for one in self.told]

    def add(self, message: dict[str, Any]) -> None:
        with self.news:
            self.told.append(message)
            self.news.notify_all()

    def wait_for(self, count: int) -> list[str]:
        """The titles, once so many messages came."""
        with self.news:
            assert self.news.wait_for(lambda: len(self.told) >= count, PATIENCE), self.told
        return self.titles


class Webhook(_Channel):
    """`json://127.0.0.1:PORT/PATH`. `answer` says which status a request gets, by its path; 0: none, it hangs."""

    def __init__(self, answer: Callable[[str], int] = lambda path: 200) -> None:
        super().__init__()
        self.asked: list[str] = []  # every path, also those that were refused
        self.let_go = threading.Event()  # of those that hang
        channel = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                with channel.news:
                    channel.asked.append(self.path)
                    channel.news.notify_all()
                status = answer(self.path)
                if not status:
                    channel.let_go.wait(PATIENCE)
                    return
                if status < 300:
                    channel.add(json.loads(body))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __exit__(self, *end: Any) -> None:
        self.let_go.set()
        super().__exit__(*end)

    def address(self, path: str = "/hook/s3cr3t-t0ken") -> str:
        return f"json://127.0.0.1:{self.port}{path}"

    def wait_until_asked(self, count: int) -> None:
        with self.news:
            assert self.news.wait_for(lambda: len(self.asked) >= count, PATIENCE), self.asked


class MailServer(_Channel):
    """Takes every e-mail, as far as SMTP goes (RFC 5321); `mailto://127.0.0.1:PORT?from=…&to=…`."""

    def __init__(self) -> None:
        super().__init__()
        channel = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(b"220 mail.example ESMTP\r\n")
                recipients: list[str] = []
                while line := self.rfile.readline():
                    command = line[:4].upper().strip()
                    if command == b"DATA":
                        self.wfile.write(b"354 go on\r\n")
                        content = b""
                        while (line := self.rfile.readline()) != b".\r\n":
                            content += line.removeprefix(b".")
                        channel.add(_read(content) | {"to": recipients})
                    elif command == b"RCPT":
                        recipients.append(line.decode().strip())
                    self.wfile.write(b"221 bye\r\n" if command == b"QUIT" else b"250 ok\r\n")
                    if command == b"QUIT":
                        return

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self.server = Server(("127.0.0.1", 0), Handler)

    def address(self) -> str:
        return f"mailto://127.0.0.1:{self.port}?from=sereno@example.com&to=people@example.com&mode=insecure"


def _read(content: bytes) -> dict[str, Any]:
    message = email.message_from_bytes(content, policy=email.policy.default)
    body = message.get_body(("plain", "html"))
    assert body is not None
    return {"title": str(message["subject"]), "message": body.get_content(), "from": str(message["from"])}
