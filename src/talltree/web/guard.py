"""Who may ask the page anything: an ASGI layer that checks address, origin and password."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_BODY = 64 * 1024
LOOPBACK = ("127.0.0.1", "localhost", "::1")

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # no-referrer would make the Origin of a plain form "null"
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
"""Sent with every reply, refusals too."""


class Refusal(NamedTuple):
    """A request that goes no further."""

    status: int
    text: str
    headers: tuple[tuple[str, str], ...] = ()


def host_names(bound: str, port: int, further: Iterable[str]) -> frozenset[str]:
    """Every Host header, in lower case, by which the page may be asked for.

    `further` are NAME or NAME:PORT; a bare one stands for itself and for NAME:port.
    """
    names = {bound, *LOOPBACK} if bound in (*LOOPBACK, "0.0.0.0", "::") else {bound}
    hosts = {f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in names}
    for name in further:
        hosts |= {name, f"{name}:{port}"}
    return frozenset(each.lower() for each in hosts)


def refusal(
    method: str, headers: list[tuple[str, str]], hosts: frozenset[str], password: str | None
) -> Refusal | None:
    """Why a request is refused; None where it may pass. `headers` have names in lower case.

    The Host must be known, or a foreign name could be pointed at this machine (DNS rebinding). What changes
    something must come from a page of ours: its Origin must be there and be a known host.
    """

    def all_of(name: str) -> list[str]:
        return [value for key, value in headers if key == name]

    host = all_of("host")
    if len(host) != 1 or host[0].lower() not in hosts:
        return Refusal(
            400, f"This page is not known as {' '.join(host) or 'nothing'!r}; open the link as it was given."
        )
    if password is not None and not _knows(all_of("authorization"), password):
        challenge = ("www-authenticate", 'Basic realm="talltree", charset="UTF-8"')
        return Refusal(401, "A password is needed; any user name will do.", (challenge,))
    if method in ("GET", "HEAD"):
        return None
    if method != "POST":
        return Refusal(405, f"{method} is not answered here.", (("allow", "GET, HEAD, POST"),))
    origin = all_of("origin")
    if len(origin) != 1 or not _is_ours(origin[0], hosts):
        return Refusal(
            403,
            f"Nothing was saved: sent from {' '.join(origin) or 'an unknown page'!r}, not from this page.",
        )
    length = all_of("content-length")
    if length and not (re.fullmatch("[0-9]{1,9}", length[0]) and int(length[0]) <= MAX_BODY):
        return Refusal(413, f"Nothing was saved: more than {MAX_BODY // 1024} KiB were sent.")
    return None


def _is_ours(origin: str, hosts: frozenset[str]) -> bool:
    try:
        parts = urlsplit(origin.lower())
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc in hosts


def _knows(authorization: list[str], password: str) -> bool:
    if len(authorization) != 1 or not authorization[0].lower().startswith("basic "):
        return False
    try:
        given = base64.b64decode(authorization[0][6:], validate=True)
    except (binascii.Error, ValueError):
        return False
    return secrets.compare_digest(given.partition(b":")[2], password.encode())


class Guard:
    """The layer around the app."""

    def __init__(self, app: App, hosts: frozenset[str], password: str | None) -> None:
        self._app = app
        self._hosts = hosts
        self._password = password

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                safe = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *safe]}
            await send(message)

        headers = [
            (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]
        ]
        refused = refusal(scope["method"], headers, self._hosts, self._password)
        if refused is None:
            await self._app(scope, receive, send_safely)
            return
        body = refused.text.encode()
        plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
        further = [(name.encode(), value.encode()) for name, value in refused.headers]
        start = {"type": "http.response.start", "status": refused.status, "headers": [*plain, *further]}
        await send_safely(start)
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
