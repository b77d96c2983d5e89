"""The command line: what it prints, what it exits with, and that it starts quickly."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import talltree
from talltree import cli

STAGE = """
from dataclasses import dataclass
from talltree.config import option
from talltree.errors import ContractError

POSITIONAL = "what"

@dataclass(frozen=True)
class Config:
    what: str = option("nothing", "What happens.")
    times: int = option(1, "How often.", low=1)

def run(config):
    if config.what == "breach":
        raise ContractError("the ratio is 1.3 at step 1;\\n switch dropout off")
    if config.what == "defect":
        raise KeyError("a defect")
    if config.what == "interrupt":
        raise KeyboardInterrupt
    if config.what == "flood":
        for _ in range(100_000):
            print("x" * 100)
    print(config.what * config.times)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A stage of our own, called toy."""
    (tmp_path / "toy_stage.py").write_text(STAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(cli.STAGES, "toy", ("toy_stage", "a toy"))
    monkeypatch.delitem(sys.modules, "toy_stage", raising=False)
    return "toy"


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_help_lists_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for stage, (_, what) in cli.STAGES.items():
        assert any(line.split() == [stage, *what.split()] for line in text.splitlines())


def test_no_argument_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert capsys.readouterr().out.startswith("usage: talltree STAGE")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"talltree {talltree.__version__}\n"


def test_an_unknown_stage_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrian", "--steps", "3"]) == 2
    captured = capsys.readouterr()
    stages = ", ".join(cli.STAGES)
    assert captured.err == f"talltree: error: no stage 'pretrian'; nearest: pretrain; stages: {stages}\n"
    assert captured.out == ""


def test_a_stage_gets_its_config_and_its_bare_argument(toy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([toy, "tall", "--times=2"]) == 0
    assert capsys.readouterr().out == "talltall\n"


def test_a_refused_option_is_one_line_and_status_2(toy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([toy, "--tims", "2"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "talltree toy: error: --tims: unknown option (value '2'); nearest known: --times\n"


def test_a_stage_error_is_one_line_and_status_2(toy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([toy, "breach"]) == 2
    expected = "talltree toy: error: the ratio is 1.3 at step 1; switch dropout off\n"
    assert capsys.readouterr().err == expected


def test_an_interrupt_is_one_line_and_status_130(toy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([toy, "interrupt"]) == 130
    assert capsys.readouterr().err == "talltree toy: interrupted\n"


def test_a_defect_keeps_its_traceback(toy: str) -> None:
    with pytest.raises(KeyError, match="a defect"):
        cli.main([toy, "defect"])


def test_stage_help_exits_with_0(toy: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([toy, "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: talltree toy [WHAT] [--config FILE.yaml] [--key value ...]")
    assert "--times VALUE How often. [int, at least 1; default: 1]" in text


@pytest.mark.skipif(os.name != "posix", reason="pipes close differently elsewhere")
def test_a_closed_pipe_is_quiet(toy: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from talltree import cli;"
        "cli.STAGES['toy'] = ('toy_stage', 'a toy'); sys.exit(cli.main(['toy', 'flood']))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.readline()
    child.stdout.close()
    assert child.stderr.read() == b""
    assert child.wait() == 141
    child.stderr.close()


def test_help_takes_less_than_300_ms() -> None:
    # The best of ten, so that a busy machine does not decide; an import of torch alone takes over a second.
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        done = python("-m", "talltree", "--help")
        best = min(best, time.perf_counter() - start)
        assert done.returncode == 0
        if best < 0.3:
            break
    assert best < 0.3


HEAVY = ("torch", "transformers", "datasets", "pyarrow", "matplotlib", "jsonargparse", "rich", "yaml")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from talltree import cli; cli.main(['--help']);"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    assert python("-c", code).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("stage", cli.STAGES)
def test_stage_help_does_not_import_torch(stage: str) -> None:
    code = (
        "import sys\nfrom talltree import cli\n"
        f"try: cli.main([{stage!r}, '--help'])\n"
        "except SystemExit as stop: print(stop.code, 'torch' in sys.modules)"
    )
    done = python("-c", code)
    assert done.stdout.splitlines()[-1:] == ["0 False"], done.stderr


def test_the_module_runs_like_the_command() -> None:
    done = python("-m", "talltree", "samble")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("talltree: error: no stage 'samble'; nearest: sample;")


def test_a_missing_shared_folder_skips_here_and_fails_in_ci(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("our_conftest", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    reason = re.escape(f"the shared folder {tmp_path / 'shared'} is missing; set TALLTREE_SHARED")
    with pytest.raises(pytest.skip.Exception, match=reason):
        conftest.find_shared({}, tmp_path)
    with pytest.raises(pytest.fail.Exception, match=reason):
        conftest.find_shared({"CI": "true"}, tmp_path)
    with pytest.raises(pytest.fail.Exception, match="elsewhere is missing"):
        conftest.find_shared({"CI": "true", "TALLTREE_SHARED": str(tmp_path / "elsewhere")}, tmp_path)

    shared = tmp_path / "shared"
    shared.mkdir()
    assert conftest.find_shared({"CI": "true"}, tmp_path) == shared
    with pytest.raises(pytest.skip.Exception, match="models/stories260K is missing"):
        conftest.find_in_shared(shared, {}, "models/stories260K")
    with pytest.raises(pytest.fail.Exception, match="models/stories260K is missing"):
        conftest.find_in_shared(shared, {"CI": "true"}, "models/stories260K")
    (shared / "models" / "stories260K").mkdir(parents=True)
    found = conftest.find_in_shared(shared, {"CI": "true"}, "models/stories260K")
    assert found == shared / "models" / "stories260K"
