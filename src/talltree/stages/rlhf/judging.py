"""One round's study: made once, answered by people or simulated annotators, waited for without a loss."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from talltree.annotation import database
from talltree.annotation.store import Store
from talltree.annotation.study import Study
from talltree.errors import RunError
from talltree.interrupt import Interrupts
from talltree.stages.process import StageProcess, run_stage, start
from talltree.stages.rlhf.config import Config
from talltree.stages.rlhf.rounds import Round, load_asked
from talltree.stages.rlhf.running import Echo, Stopped

Say = Callable[[str], None]
LOOK_EVERY = 1.0
"""Seconds between two looks at a study that people are judging."""
SAY_EVERY = 60.0
"""Seconds between two lines about it."""


class Standing(NamedTuple):
    """How far a study is: tuples with all judgements, all tuples, whether anything is left to give."""

    judged: int
    tuples: int
    is_over: bool


def make_study(config: Config, this: Round) -> None:
    """Puts the round's tuples before its judges, training and validation mixed; once."""
    if (this.study / database.FILE).is_file():  # the folder alone may be what a kill left
        return
    asked, judges = load_asked(this.asked), config.judges
    study = Study(
        kind=judges.kind,
        tuples=tuple(asked.training + asked.validation),
        question=judges.question,
        overlap=judges.overlap,
        seed=config.seed_of(this.number),
    )
    with Store.create(this.study, study):
        pass


def judge(config: Config, this: Round, say: Say) -> None:
    """Waits until everything is judged. Raises Stopped for a signal; every answer until then is stored."""
    if standing(this.study).is_over:
        return
    if config.is_simulated:
        _simulate(config, this, say)
    else:
        _wait_for_people(config, this, say)


def standing(folder: Path) -> Standing:
    """Where a study stands. It is over when every tuple has its judges, or nobody can judge what is left."""
    with Store.open(folder) as store:
        coverage = store.coverage()
        judged = sum(count >= store.study.overlap for count in coverage.values())
        people = store.annotators()
        nobody_can = bool(people) and all(store.progress(each.token).left == 0 for each in people)
        return Standing(judged, len(coverage), judged == len(coverage) or nobody_can)


def _simulate(config: Config, this: Round, say: Say) -> None:
    from talltree import checkpoint, yaml_text

    options, log = this.folder / "annotate.yaml", this.folder / "annotate.log"
    mapping = config.mapping("annotate", folder=str(this.study))
    mapping["simulate"] = {
        "annotators": config.judges.overlap, **mapping["simulate"], "seed": config.seed_of(this.number)
    }  # fmt: skip
    checkpoint.write_file(options, yaml_text.dump(mapping).encode())
    echo = Echo(log, "  annotate | ", say)
    ended = run_stage("annotate", options, log, watch=echo)
    echo()
    if ended.signal is not None:
        raise Stopped(ended.signal, f"round {this.number}")
    if ended.status != 0:
        raise RunError(f"round {this.number}: talltree annotate simulate failed: {ended.error}; see {log}")
    if not standing(this.study).is_over:
        raise RunError(
            f"round {this.number}: the simulated annotators left tuples of {this.study} unjudged; see {log}"
        )


def _wait_for_people(config: Config, this: Round, say: Say) -> None:
    with Store.open(this.study) as store:
        store.add_missing(config.judges.names)
    log = this.folder / "serve.log"
    echo = Echo(log, "  annotate | ", say)
    with Interrupts() as interrupts:
        server = _serve(config, this, log) if config.judges.serve else None
        if server is None:
            say(f"round {this.number}: waiting for judgements; run talltree annotate serve {this.study}")
        try:
            told = 0.0
            while not (now := standing(this.study)).is_over:
                if interrupts.requested is not None:
                    raise Stopped(
                        interrupts.requested,
                        f"round {this.number}, {now.judged} of {now.tuples} tuples judged,",
                    )
                if time.monotonic() - told > SAY_EVERY:
                    say(f"round {this.number}: {now.judged} of {now.tuples} tuples judged")
                    told = time.monotonic()
                if server is not None and (ended := server.wait(0)) is not None:
                    raise RunError(
                        f"round {this.number}: the page ended: {ended.error}; see {log}; continue with "
                        "--resume, where the port is taken with --judges.port 0 for a free one as well"
                    )
                echo()
                time.sleep(LOOK_EVERY)
        finally:
            if server is not None:
                server.kill()


def _serve(config: Config, this: Round, log: Path) -> StageProcess:
    arguments = ["serve", str(this.study), "--serving.port", str(config.judges.port)]
    return start("annotate", None, log, arguments=arguments)
