"""Who is let in: Host, Origin, method, size, password; and what every reply carries."""

from __future__ import annotations

import base64
import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from talltree.annotation.study import Study, make_tuple
from talltree.web import guard
from tests.web.serving import Live, ask, live

HOSTS = guard.host_names("127.0.0.1", 8420, ())
GOOD = [("host", "127.0.0.1:8420"), ("origin", "http://127.0.0.1:8420")]


def replaced(**headers: str | None) -> list[tuple[str, str]]:
    kept = {**dict(GOOD), **headers}
    return [(name, value) for name, value in kept.items() if value is not None]


@pytest.mark.parametrize("host", ["127.0.0.1:8420", "localhost:8420", "LOCALHOST:8420", "[::1]:8420"])
def test_this_machines_names_are_let_in(host: str) -> None:
    assert guard.refusal("GET", [("host", host)], HOSTS, None) is None
    assert guard.refusal("POST", [("host", host), ("origin", f"http://{host}")], HOSTS, None) is None


@pytest.mark.parametrize(
    "headers",
    [
        replaced(host="evil.invalid:8420"),  # a name that was pointed at this machine
        replaced(host="127.0.0.1"),
        replaced(host="127.0.0.1:8421"),
        replaced(host="127.0.0.1:8420.evil.invalid"),
        replaced(host=""),
        replaced(host=None),
        [*GOOD, ("host", "evil.invalid")],
    ],
)
def test_other_hosts_are_not(headers: list[tuple[str, str]]) -> None:
    for method in ("GET", "POST"):
        refused = guard.refusal(method, headers, HOSTS, None)
        assert refused is not None and refused.status == 400 and "\n" not in refused.text


@pytest.mark.parametrize(
    "origin",
    [
        *(None, "", "null", "http://evil.invalid", "https://evil.invalid:8420", "http://127.0.0.1:9"),
        *(
            "http://127.0.0.1:8420.evil.invalid",
            "http://user@127.0.0.1:8420",
            "file://127.0.0.1:8420",
            "http://[",
        ),
    ],
)
def test_what_changes_something_comes_from_the_page_itself(origin: str | None) -> None:
    refused = guard.refusal("POST", replaced(origin=origin), HOSTS, None)
    assert refused is not None and refused.status == 403 and refused.text.startswith("Nothing was saved: ")
    assert guard.refusal("GET", replaced(origin=origin), HOSTS, None) is None


def test_methods_and_sizes() -> None:
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        refused = guard.refusal(method, GOOD, HOSTS, None)
        assert refused is not None and refused.status == 405
    refusable = ("65537", "-1", "1e9", "\u0663", "9" * 5000)
    for length, status in (("65536", None), *((each, 413) for each in refusable)):
        refused = guard.refusal("POST", [*GOOD, ("content-length", length)], HOSTS, None)
        assert (refused.status if refused else None) == status


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("anna:correct horse", None),
        (":correct horse", None),
        ("anna:correct:horse", 401),
        ("correct horse", 401),
        ("anna:", 401),
        (None, 401),
    ],
)
def test_a_password(given: str | None, status: int | None) -> None:
    headers = list(GOOD)
    if given is not None:
        headers.append(("authorization", "Basic " + base64.b64encode(given.encode()).decode()))
    for method in ("GET", "POST"):
        refused = guard.refusal(method, headers, HOSTS, "correct horse")
        assert (refused.status if refused else None) == status


def test_odd_passwords_are_refused_too() -> None:
    for value in ("Basic !!!", "Basic ä", "Bearer x", "Basic", ""):
        refused = guard.refusal("GET", [*GOOD, ("authorization", value)], HOSTS, "correct horse")
        assert refused is not None and refused.status == 401


def test_names_of_other_addresses() -> None:
    assert guard.host_names("10.0.0.5", 80, ("labels.local", "Door:99")) == {
        *("10.0.0.5:80", "labels.local", "labels.local:80", "door:99", "door:99:80")
    }
    assert "127.0.0.1:80" in guard.host_names("0.0.0.0", 80, ("labels.local",))


# --- the same, on a real connection ---


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    study = Study(kind="pair", tuples=tuple(make_tuple("Once", [f"a{i}", f"b{i}"]) for i in range(9)))
    with live(tmp_path_factory.mktemp("guard") / "s", study) as made:
        yield made


def test_every_reply_is_safe(site: Live) -> None:
    link = site.link("Anna")
    foreign = {"Host": "evil.invalid"}
    for url, headers, expected in (
        (link, {}, 200),
        (link, {"Accept": "text/html"}, 200),
        (site.url, {}, 200),
        (site.url + "/static/judge.js", {}, 200),
        (site.url + "/static/palette.css", {}, 200),
        (site.url + "/static/..%2fapp.py", {}, 404),
        (site.url + "/docs", {}, 404),
        (site.url + "/openapi.json", {}, 404),
        (site.url + "/a/nobody", {"Accept": "text/html"}, 404),
        (link, foreign, 400),
    ):
        status, found, body = ask(url, headers=headers)
        assert status == expected, url
        for name, value in guard.HEADERS.items():
            assert found[name] == value
        assert "server" not in found and "Traceback" not in body
        policy = dict(part.strip().split(" ", 1) for part in found["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
        assert "unsafe" not in found["content-security-policy"]


def test_pages_hold_no_script_or_style_of_their_own(site: Live) -> None:
    _, _, page = ask(site.link("Anna"), headers={"Accept": "text/html"})
    assert '<script src="/static/judge.js" defer></script>' in page
    assert page.count("<script") == 1 and "<style" not in page
    assert " style=" not in page and " on" not in page.replace(" on ", "").split("<main>")[0]


def test_refusals_store_nothing(site: Live) -> None:
    link = site.link("Anna")
    token = link.split("/a/")[1]
    task = site.store.next_task(token)
    assert task is not None
    form = {"task": task.task_id, "request": "one", "best": "1"}
    before = site.store.history()
    assert ask(link + "/answer", form, {"Origin": "http://evil.invalid"})[0] == 403
    assert ask(link + "/answer", form, {"Host": "evil.invalid"})[0] == 400
    assert ask(link + "/answer", {**form, "filler": "x" * 70_000})[0] == 413
    assert site.store.history() == before
    assert ask(link + "/answer", form)[0] == 200
    assert len(site.store.history()) == len(before) + 1


def test_a_body_without_a_length_is_limited_too(site: Live) -> None:
    link = site.link("Anna")
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=20)
    pieces = (b"x" * 10_000 for _ in range(20))
    headers = {"Origin": site.url, "Transfer-Encoding": "chunked", "Accept": "application/json"}
    before = site.store.history()
    connection.request("POST", link.removeprefix(site.url) + "/answer", pieces, headers, encode_chunked=True)
    reply = connection.getresponse()
    assert (reply.status, b"not a form" in reply.read()) == (422, True)
    connection.close()
    assert site.store.history() == before


def test_a_password_is_asked_for(tmp_path: Path) -> None:
    study = Study(kind="pair", tuples=(make_tuple("Once", ["a", "b"]),))
    with live(tmp_path / "s", study, "correct horse") as site:
        status, headers, _ = ask(site.link("Anna"))
        assert status == 401 and headers["www-authenticate"].startswith("Basic ")
        given = "Basic " + base64.b64encode(b"anna:correct horse").decode()
        assert ask(site.link("Anna"), headers={"Authorization": given})[0] == 200
