"""`talltree annotate new` and `serve`: what they make, print and refuse."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from talltree import samples as run_samples
from talltree.annotation.store import Store
from talltree.config import flaws, from_dict
from talltree.errors import TallTreeError
from talltree.stages import annotate
from talltree.web import server
from tests.web.serving import ask, free_port, served, start


def run(**options: Any) -> None:
    annotate.run(from_dict(annotate.Config, options))


def refused(**options: Any) -> str:
    with pytest.raises(TallTreeError) as caught:
        run(**options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def stories(tmp_path: Path) -> str:
    rows = [{"prompt": f"p{i % 2}", "completion": f" story {i}", "model": f"m{i % 3}"} for i in range(16)]
    return write(tmp_path / "stories.jsonl", rows)


def test_every_option_has_a_help() -> None:
    assert flaws(annotate.Config) == []


def test_samples_become_tuples_of_one_prompt(
    tmp_path: Path, stories: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(action="new", folder=str(tmp_path / "s"), samples=stories, annotators=["Anna", "Ben"], overlap=2)
    said = capsys.readouterr().out
    with Store.open(tmp_path / "s") as store:
        links = dict(re.findall(r"^  (\w+): http://127\.0\.0\.1:8420/a/(\S+)$", said, re.MULTILINE))
        assert links == {each.name: each.token for each in store.annotators()} and len(links) == 2
        assert "4 tuples of 4, kind bws, 2 annotators each" in said
        for item in store.study.tuples:
            for text, source in zip(item.candidates, item.sources, strict=True):
                number = int(text.removeprefix(" story "))
                assert (item.prompt, source) == (f"p{number % 2}", f"m{number % 3}")
        shown = [text for item in store.study.tuples for text in item.candidates]
        assert sorted(shown) == sorted(f" story {i}" for i in range(16))  # each once


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "Once", "completions": [f" {i}" for i in range(4)], "source": "m"}],
        [{"prompt": "Once", "text": f"Once {i}", "source": "m"} for i in range(4)],
        [{"prompt": "Once", "candidates": [f" {i}" for i in range(4)], "sources": ["m"] * 4}],
    ],
)
def test_forms_of_rows(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    run(action="new", folder=str(tmp_path / "s"), samples=write(tmp_path / "a.jsonl", rows))
    with Store.open(tmp_path / "s") as store:
        (item,) = store.study.tuples
        assert (item.prompt, sorted(item.candidates)) == ("Once", [" 0", " 1", " 2", " 3"])
        assert item.sources == ("m",) * 4


def test_a_run_folder_and_one_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for step in (1, 2):
        texts = [f" step {step}, {i}" for i in range(4)]
        run_samples.write_shard(folder, step, {"prompt": ["Once"] * 4, "completion": texts})
    run(action="new", folder=str(tmp_path / "last"), samples=[str(folder)])
    run_samples.merge(folder)
    file = str(folder / "samples.parquet")
    run(action="new", folder=str(tmp_path / "first"), samples=[file], step=1)
    for name, step in (("last", 2), ("first", 1)):
        with Store.open(tmp_path / name) as store:
            assert sorted(store.study.tuples[0].candidates) == [f" step {step}, {i}" for i in range(4)]
    line = refused(action="new", folder=str(tmp_path / "x"), samples=[file], step=7)
    assert line == f"samples {file}: no samples of step 7; leave --step out to take the last"


def test_models_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for model in "ab":
        rows = [{"prompt": f"p{i % 2}", "completion": f" {model if i else 'same'} {i}"} for i in range(6)]
        files.append(write(tmp_path / f"{model}.jsonl", rows))
    run(action="new", folder=str(tmp_path / "s"), samples=files, kind="pair", across_sources=True)
    with Store.open(tmp_path / "s") as store:
        assert len(store.study.tuples) == 5
        assert all(sorted(item.sources) == ["a", "b"] for item in store.study.tuples)
        for item in store.study.tuples:  # the n-th of one model meets the n-th of the other
            assert len({text.split()[1] for text in item.candidates}) == 1
    said = capsys.readouterr().out
    assert "left out: 1 samples that repeat another word for word" in said


def test_what_is_left_out_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [" a", " b", " c", " a", " ", ""]
    rows = [{"prompt": "p", "completion": text} for text in texts] + [{"prompt": "q", "completion": " x"}]
    run(action="new", folder=str(tmp_path / "s"), samples=write(tmp_path / "a.jsonl", rows), k=3)
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == [
        "left out: 2 empty samples",
        "left out: 1 samples that repeat another word for word",
        "left out: 1 prompts with fewer than 3 samples",
    ]


def test_some_tuples_of_a_design_and_other_kinds(tmp_path: Path, stories: str) -> None:
    options = {"action": "new", "samples": stories}
    run(folder=str(tmp_path / "a"), kind="pair", appearances=3, tuples=5, ties=False, **options)
    run(folder=str(tmp_path / "b"), kind="rating", criteria=["grammar", "plot"], points=7, **options)
    with Store.open(tmp_path / "a") as a, Store.open(tmp_path / "b") as b:
        assert (len(a.study.tuples), a.study.k, a.study.ties) == (5, 2, False)
        assert (len(b.study.tuples), b.study.k, b.study.points) == (16, 1, 7)
        assert b.study.criteria == ("grammar", "plot")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"prompt": "p", "completion": 3}', "line 1: completion is '3' (int), not a text"),
        ('{"prompt": "p", "candidates": "x"}', "line 1: candidates is str, not a list of texts"),
        ('{"prompt": "p", "story": "x"}', "line 1: no column completion, completions, candidates or text"),
        ('{"prompt": "p", "text": "x"}', "line 1: the text does not start with its prompt 'p'"),
        ('{"prompt": "p"', "line 1: not JSON"),
        ('{"prompt": "p", "completion": " a"}', "no prompt has 4 different samples, the most is 1"),
        ("", "is empty (0 bytes)"),
        (
            '{"prompt": "p", "candidates": [" a", " b", " c"]}\n{"prompt": "p", "completion": " a"}',
            "1 rows have `candidates` and 1 have one completion each; use files of one form",
        ),
        ('{"prompt": "p", "candidates": [" a", " a", " c"]}', "has the same candidate twice; leave one out"),
        ('{"prompt": "p", "candidates": [" a", " b"]}', "has 2 candidates; kind bws takes 3 to 9"),
    ],
)
def test_samples_that_cannot_be_used(tmp_path: Path, content: str, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    assert line in refused(action="new", folder=str(tmp_path / "s"), samples=str(path))
    assert not (tmp_path / "s").exists()


def test_options_that_are_refused(tmp_path: Path, stories: str) -> None:
    new = {"action": "new", "folder": str(tmp_path / "s")}
    assert "new needs --samples" in refused(**new)
    assert "not found; give a run folder" in refused(**new, samples="nowhere")
    (tmp_path / "a.csv").write_text("")
    assert "ending '.csv' is not known" in refused(**new, samples=str(tmp_path / "a.csv"))
    (tmp_path / "a.parquet").write_text("no parquet")
    assert "cannot be read as parquet" in refused(**new, samples=str(tmp_path / "a.parquet"))
    assert "no samples there" in refused(**new, samples=str(tmp_path))
    assert refused(**new, samples=stories, k=2) == "k 2: kind bws shows at least 3 together"
    assert refused(**new, samples=stories, k=3, kind="pair") == "k 3: kind pair shows 2 together"
    assert "criteria belong to kind rating" in refused(**new, samples=stories, criteria=["plot"])
    assert "tuples 9: the samples give 4; raise" in refused(**new, samples=stories, tuples=9)
    assert not (tmp_path / "s").exists()
    run(**new, samples=stories)
    assert "exists and is not empty, and nothing is overwritten" in refused(**new, samples=stories)
    line = refused(action="serve", folder=str(tmp_path / "t"))
    assert line.endswith(
        f"does not exist; make one with talltree annotate new {tmp_path / 't'} --samples FILE"
    )


def test_serving_prints_links_answers_and_stops_cleanly(tmp_path: Path, stories: str) -> None:
    run(action="new", folder=str(tmp_path / "s"), samples=stories)
    with served(tmp_path / "s", "--annotators", "[Anna, Ben]") as url:
        with Store.open(tmp_path / "s") as store:
            tokens = [each.token for each in store.annotators()]
            assert [each.name for each in store.annotators()] == ["Anna", "Ben"]
        assert json.loads(ask(f"{url}/a/{tokens[0]}")[2])["task"]["prompt"] in ("p0", "p1")
    with served(tmp_path / "s", "--annotators", "Anna") as url:  # who is there already is not added again
        assert ask(f"{url}/a/{tokens[0]}")[0] == 200


def test_sigterm_stops_it_too_and_its_port_may_be_taken(tmp_path: Path, stories: str) -> None:
    run(action="new", folder=str(tmp_path / "s"), samples=stories)
    port = free_port()
    process = start(tmp_path / "s", port)
    line = refused(action="serve", folder=str(tmp_path / "s"), serving={"port": port})
    assert line == (
        f"cannot listen on 127.0.0.1 port {port}: Address already in use; choose another --serving.port"
    )
    ask(f"http://127.0.0.1:{port}/")  # until it answers
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and "stopped; 0 judgements are in" in output


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "labels.local"])
def test_other_machines_are_let_in_with_a_password_only(tmp_path: Path, stories: str, host: str) -> None:
    run(action="new", folder=str(tmp_path / "s"), samples=stories)
    options: dict[str, Any] = {"action": "serve", "folder": str(tmp_path / "s")}
    line = refused(**options, serving={"host": host})
    assert line.startswith(
        f"host {host} can be reached from other machines; give --serving.password_file FILE"
    )
    secret = tmp_path / "secret"
    secret.write_text("short\n")
    line = refused(**options, serving={"host": host, "password_file": str(secret)})
    assert line.endswith("the first line has 5 characters; use 12 or more")
    missing = refused(**options, serving={"host": host, "password_file": str(tmp_path / "none")})
    assert "cannot be read" in missing
    secret.write_text("correct horse battery\n")
    if host in ("0.0.0.0", "::"):
        line = refused(**options, serving={"host": host, "password_file": str(secret)})
        assert "is every address of this machine; say by which people reach it" in line


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.9"])
def test_this_machine_needs_none(host: str) -> None:
    server.check_address(host, None, [])


def test_addresses_as_people_type_them() -> None:
    assert server.address("127.0.0.1", 80, []) == "http://127.0.0.1:80"
    assert server.address("::1", 80, []) == "http://[::1]:80"
    assert server.address("0.0.0.0", 80, ["labels.local"]) == "http://labels.local:80"
    assert server.address("0.0.0.0", 80, ["labels.local:99"]) == "http://labels.local:99"


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PACKAGES", ("fastapi", "no_such_package_here"))
    with pytest.raises(TallTreeError, match=r"needs no_such_package_here, not.*'talltree\[annotate\]'"):
        server.require_packages()


def test_a_listening_socket_is_given_back() -> None:
    with server.listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))
