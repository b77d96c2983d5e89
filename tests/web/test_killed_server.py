"""Nothing acknowledged is lost and nothing is stored twice, however often the server is killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from talltree.annotation.store import Store
from talltree.annotation.study import Study, make_tuple
from tests.web.serving import Client, free_port, start

ANNOTATORS, ANSWERS, KILLS = 50, 200, 20


@pytest.fixture
def quick_folder() -> Iterator[Path]:
    """A folder in memory where there is one: a killed process loses nothing that its disk was not told."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    yield folder
    shutil.rmtree(folder)


class Crowd:
    """Annotators who answer at random and write down what was acknowledged."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.acknowledged: dict[str, tuple[str, str, int, int]] = {}
        self.retries = self.seen_before = 0

    async def judge(self, name: str, token: str) -> None:
        client, rng = Client(self.port), random.Random(name)
        shown = await client.ask(f"/a/{token}")
        for number in range(ANSWERS):
            best, worst = rng.sample(range(1, 5), 2)
            request, task = f"{name}-{number}", shown["task"]["task_id"]
            form = {"task": task, "request": request, "best": str(best), "worst": str(worst)}
            shown = await client.ask(f"/a/{token}/answer", form | {"seconds": "3.5"})
            assert shown["saved"] is True and shown["receipt"]["task_id"] == task
            assert request not in self.acknowledged
            self.acknowledged[request] = (name, task, best, worst)
            self.seen_before += shown["receipt"]["seen_before"]
        self.retries += client.retries
        client.close()


async def kill_now_and_then(folder: Path, port: int, crowd: Crowd) -> int:
    """Kills the server at KILLS moments spread over the answers and starts it again; returns how often."""
    rng = random.Random(0)
    total = ANNOTATORS * ANSWERS
    process = await asyncio.to_thread(start, folder, port)
    killed = 0
    try:
        for each in range(KILLS):
            while len(crowd.acknowledged) < total * (each + 1) // (KILLS + 2):
                await asyncio.sleep(0.002)
            await asyncio.sleep(rng.random() * 0.02)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            killed += 1
            assert process.stdout is not None
            process.stdout.close()
            process = await asyncio.to_thread(start, folder, port)
        while len(crowd.acknowledged) < total:
            await asyncio.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    return killed


def test_twenty_kills_lose_and_double_nothing(quick_folder: Path) -> None:
    folder = quick_folder / "study"
    tuples = tuple(make_tuple("Once", [f"text {i} {letter}" for letter in "abcd"]) for i in range(1500))
    with Store.create(folder, Study(kind="bws", tuples=tuples, overlap=7)) as store:
        people = [store.add_annotator(f"person-{number}") for number in range(ANNOTATORS)]
    crowd = Crowd(free_port())

    async def everything() -> int:
        killer = asyncio.create_task(kill_now_and_then(folder, crowd.port, crowd))
        await asyncio.gather(*(crowd.judge(each.name, each.token) for each in people))
        return await killer

    started = time.monotonic()
    assert asyncio.run(everything()) == KILLS
    print(f"{time.monotonic() - started:.1f} s, {crowd.retries} retries, {crowd.seen_before} seen before")
    assert len(crowd.acknowledged) == ANNOTATORS * ANSWERS
    assert crowd.retries >= KILLS

    # What the database holds, read without the store.
    connection = sqlite3.connect(folder / "study.sqlite")
    study_id = connection.execute("SELECT study_id FROM study").fetchone()[0]
    rows = connection.execute(
        "SELECT request_id, name, task, content, shown_order, position, action FROM events "
        "JOIN annotators USING (annotator_id) JOIN assignments ON assignments.number = task"
    ).fetchall()
    assert len(rows) == ANNOTATORS * ANSWERS
    assert len({(name, task) for _, name, task, *_ in rows}) == len(rows)
    assert len({(name, position) for _, name, _, _, _, position, _ in rows}) == len(rows)
    assert max(Counter(position for *_, position, _ in rows).values()) <= 7
    stored = {}
    for request, name, task, content, order, _, action in rows:
        assert action == "answer"
        answer, shown = json.loads(content), json.loads(order)
        best, worst = (shown.index(answer[which]) + 1 for which in ("best", "worst"))
        stored[request] = (name, f"{study_id}.{task}", best, worst)
    assert stored == crowd.acknowledged
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
