"""The page's server: an address that is safe to listen on, and uvicorn on it until it is stopped."""

from __future__ import annotations

import importlib.util
import ipaddress
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from talltree.annotation.store import Store
from talltree.errors import ConfigError, RunError
from talltree.web import guard

if TYPE_CHECKING:
    import uvicorn

PACKAGES = ("fastapi", "uvicorn", "jinja2")
SHORTEST_PASSWORD = 12
EVERYWHERE = ("0.0.0.0", "::")


def require_packages() -> None:
    """Raises ConfigError where what the page is made with is not installed."""
    lacking = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        raise ConfigError(
            f"the page needs {', '.join(lacking)}, not installed here; pip install 'talltree[annotate]'"
        )


def read_password(path: str | None) -> str | None:
    """The first line of a file. Raises ConfigError for a missing file or a short password."""
    if path is None:
        return None
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"password_file {path} cannot be read ({error}); name a text file") from None
    password = lines[0].strip() if lines else ""
    if len(password) < SHORTEST_PASSWORD:
        raise ConfigError(
            f"password_file {path}: the first line has {len(password)} characters; "
            f"use {SHORTEST_PASSWORD} or more"
        )
    return password


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(host: str, password: str | None, allowed_hosts: Sequence[str]) -> None:
    """Raises ConfigError for an address that others can reach, without a password or a name for it."""
    if is_loopback(host):
        return
    if password is None:
        raise ConfigError(
            f"host {host} can be reached from other machines; give --serving.password_file FILE, or leave "
            "host at 127.0.0.1 and let people in through an SSH tunnel"
        )
    if host in EVERYWHERE and not allowed_hosts:
        raise ConfigError(
            f"host {host} is every address of this machine; say by which people reach it, as in "
            "--serving.allowed_hosts '[labels.local]'"
        )


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket. Raises RunError where the port is taken or the address is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(128)
        except OSError as error:
            raise RunError(
                f"cannot listen on {host} port {port}: {error.strerror}; choose another --serving.port"
            ) from error
        yield listener
    finally:
        listener.close()


def address(host: str, port: int, allowed_hosts: Sequence[str]) -> str:
    """The address that people type; where every address is listened on, the first allowed name."""
    if host in EVERYWHERE:
        name = allowed_hosts[0]
        return f"http://{name}" if ":" in name else f"http://{name}:{port}"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(
    store: Store, listener: socket.socket, host: str, allowed_hosts: Sequence[str], password: str | None
) -> uvicorn.Server:
    """The server of a study on a listening socket; `run(sockets=[listener])` answers until told to stop.

    SIGINT and SIGTERM stop it after the requests under way.
    """
    import uvicorn

    from talltree.web.app import create_app

    hosts = guard.host_names(host, listener.getsockname()[1], allowed_hosts)
    config = uvicorn.Config(
        create_app(store, hosts, password),
        log_level="warning",
        access_log=False,  # addresses hold tokens
        server_header=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        timeout_graceful_shutdown=10,
        h11_max_incomplete_event_size=32 * 1024,
    )
    return uvicorn.Server(config)
