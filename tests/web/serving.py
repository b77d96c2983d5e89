"""A real server process of a study for tests, and what asks it: a client that retries."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from talltree.annotation.store import Store
from talltree.annotation.study import Study
from talltree.web import server

START = (
    "import sys; from talltree.stages import annotate; from talltree.config import parse; "
    "annotate.run(parse(annotate.Config, sys.argv[1:], 'talltree annotate', annotate.POSITIONAL))"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(folder: Path, port: int, *arguments: str) -> subprocess.Popen[str]:
    """The process of `talltree annotate serve`, once it listens."""
    command = [sys.executable, "-c", START, "serve", str(folder), "--serving.port", str(port), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    assert f":{port};" in first, first + process.stdout.read()
    return process


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[str]:
    """The address of a study that is served while the block runs; it must end cleanly."""
    port = free_port()
    process = start(folder, port, *arguments)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    assert re.search(r"^stopped; [\d,]+ judgements are in ", output, re.MULTILINE), output


def ask(
    url: str, form: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, str], str]:
    """(status, headers with small names, body) of one request, a form posted as the page would."""
    given = {"Accept": "application/json", **(headers or {})}
    if form is not None:
        given.setdefault("Origin", url.partition("/a/")[0])
    body = None if form is None else urlencode(form).encode()
    request = urllib.request.Request(url, body, given)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, {k.lower(): v for k, v in reply.headers.items()}, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read().decode()


class Client:
    """A keep-alive connection that repeats a request, unchanged, until it has a whole reply."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.retries = 0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str, form: Mapping[str, str] | None = None) -> Any:
        host = f"127.0.0.1:{self.port}"
        body = b"" if form is None else urlencode(form).encode()
        lines = [f"{'GET' if form is None else 'POST'} {path} HTTP/1.1", f"Host: {host}"]
        lines += ["Accept: application/json", f"Origin: http://{host}", f"Content-Length: {len(body)}"]
        message = "\r\n".join([*lines, "", ""]).encode() + body
        while True:
            try:
                return await asyncio.wait_for(self._once(message), 10)
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                self.close()
                self.retries += 1
                await asyncio.sleep(0.25)

    async def _once(self, message: bytes) -> Any:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        writer.write(message)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        size = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        assert size is not None, head
        content = json.loads(await reader.readexactly(int(size[1])))
        assert head.startswith("HTTP/1.1 200"), (head, content)
        return content

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Live:
    """A page served from this process, for tests that reach into its store, stop it, start it again."""

    def __init__(self, store: Store, port: int = 0, password: str | None = None) -> None:
        self.store = store
        self.port = port
        self.password = password
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def link(self, name: str) -> str:
        """The private link of an annotator, who is added if need be."""
        tokens = {each.name: each.token for each in self.store.annotators()}
        return f"{self.url}/a/{tokens.get(name) or self.store.add_annotator(name).token}"

    def start(self) -> None:
        self._listening = ExitStack()
        listener = self._listening.enter_context(server.listen("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._server = server.make_server(self.store, listener, "127.0.0.1", [], self.password)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True  # the browser's idle connections are nothing to wait for
        self._thread.join(20)
        self._listening.close()


@contextmanager
def live(folder: Path, study: Study, password: str | None = None) -> Iterator[Live]:
    """A new study and its page."""
    with Store.create(folder, study) as store:
        page = Live(store, password=password)
        try:
            yield page
        finally:
            page.stop()
