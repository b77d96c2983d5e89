"""Config classes from YAML and arguments: values, precedence, and one clear line for whatever is refused."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from talltree.config import option, options, parse
from talltree.errors import ConfigError

from .config_trip import STEPS, Leash, Trip, read, yaml_file


def refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("argv", "key", "expected"),
    [
        ("--steps 3", "steps", 3),
        ("--steps=1_000", "steps", 1000),
        ("--learning_rate 1e-05", "learning_rate", 1e-05),
        ("--learning_rate=3", "learning_rate", 3.0),
        ("--algorithm grpo", "algorithm", "grpo"),
        ("--words [oak,ash]", "words", ("oak", "ash")),
        ("--words []", "words", ()),
        ("--betas [0,1]", "betas", (0.0, 1.0)),
        ("--sizes [3]", "sizes", [3]),
        ("--shares={a:\t1e-3}", "shares", {"a": 0.001}),
        ("--name null", "name", None),
        ("--name 12", "name", "12"),
        ("--folder -x/y", "folder", "-x/y"),
        ("--folder=", "folder", ""),
        ("--folder=a=b", "folder", "a=b"),
        ("--folder null", "folder", "null"),
        ("--window auto", "window", "auto"),
        ("--window 0.5", "window", 0.5),
        ("--limit 5", "limit", 5),
        ("--limit null", "limit", None),
        ("--quick", "quick", True),
        ("--quick true", "quick", True),
        ("--quick=false", "quick", False),
        ("--quick --steps 4", "steps", 4),
        ("--steps 3 --steps 4", "steps", 4),
    ],
)
def test_an_option_is_converted_to_its_type(argv: str, key: str, expected: Any) -> None:
    value = getattr(read(*argv.split(" ")), key)
    assert value == expected
    assert type(value) is type(expected)


def test_dotted_keys_reach_the_nested_group_and_leave_its_other_defaults() -> None:
    assert read("--kl.target", "6").kl == Leash(coef=0.2, target=6.0)
    assert read().kl == Leash(coef=0.2)


def test_precedence_is_default_file_later_file_command_line(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("steps: 2\nlearning_rate: 2\nkl: {coef: 2}\n")
    second.write_text("learning_rate: 3\nkl.coef: 3\n")
    trip = read("--kl.coef=4", "--config", str(first), f"--config={second}")
    assert (trip.steps, trip.learning_rate, trip.kl.coef, trip.limit) == (2, 3.0, 4.0, None)


def test_a_yaml_scalar_means_what_it_looks_like(tmp_path: Path) -> None:
    text = "learning_rate: 1e-05\nname: no\nfolder: 12:30\nquick: true\nlimit: null\n"
    text += "words: [on, 2026-01-02, 007]\n"
    trip = read("--config", yaml_file(tmp_path, text))
    assert trip.learning_rate == 1e-05
    assert (trip.name, trip.folder, trip.quick, trip.limit) == ("no", "12:30", True, None)
    assert trip.words == ("on", "2026-01-02", "007")


def test_quoted_text_stays_text_where_text_is_allowed(tmp_path: Path) -> None:
    assert read("--config", yaml_file(tmp_path, "name: 'null'\n")).name == "null"


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert read("--config", yaml_file(tmp_path, "# nothing\n")) == Trip()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--steps abc", f"--steps: 'abc' is not allowed; {STEPS}"),
        ("--steps 2.5", f"--steps: '2.5' is not allowed; {STEPS}"),
        ("--steps true", f"--steps: 'true' is not allowed; {STEPS}"),
        ("--steps null", f"--steps: 'null' is not allowed; {STEPS}"),
        ("--steps 0", f"--steps: '0' is not allowed; {STEPS}"),
        ("--steps=1001", f"--steps: '1001' is not allowed; {STEPS}"),
        ("--steps=", f"--steps: '' is not allowed; {STEPS}"),
        ("--steps", f"--steps needs a value; {STEPS}"),
        ("--steps --quick", f"--steps needs a value; {STEPS}"),
        ("--learning_rate 0", "--learning_rate: '0' is not allowed; allowed: float, above 0"),
        ("--learning_rate nan", "--learning_rate: 'nan' is not allowed; allowed: float, above 0"),
        ("--learning_rate .nan", "--learning_rate: '.nan' is not allowed; allowed: float, above 0"),
        ("--learning_rate .inf", "--learning_rate: '.inf' is not allowed; allowed: float, above 0"),
        ("--learning_rate 1e400", "--learning_rate: '1e400' is not allowed; allowed: float, above 0"),
        ("--window .inf", "--window: '.inf' is not allowed; allowed: float or one of auto"),
        ("--kl.coef -1", "--kl.coef: '-1' is not allowed; allowed: float, at least 0 (reward per nat)"),
        ("--kl.target 0", "--kl.target: '0' is not allowed; allowed: float or null, above 0 (nats)"),
        (
            "--algorithm roo",
            "--algorithm: 'roo' is not allowed; allowed: one of rloo, grpo; nearest: rloo",
        ),
        ("--mode fats", "--mode: 'fats' is not allowed; allowed: text out of fast, slow; nearest: fast"),
        ("--words oak", "--words: 'oak' is not allowed; allowed: list of text"),
        (
            "--betas [1]",
            "--betas: '[1]' is not allowed; allowed: list of float, float, at least 0 and at most 1",
        ),
        (
            "--betas [0,1.5]",
            "--betas: '[0,1.5]' is not allowed; allowed: list of float, float, at least 0 and at most 1",
        ),
        ("--sizes [1,0]", "--sizes: '[1,0]' is not allowed; allowed: list of int, at least 1"),
        ("--sizes [1.5]", "--sizes: '[1.5]' is not allowed; allowed: list of int, at least 1"),
        (
            "--shares {a:\t-1}",
            "--shares: '{a: -1}' is not allowed; allowed: mapping of text to float, at least 0",
        ),
        ("--quick maybe", "--quick: 'maybe' is not allowed; allowed: true or false"),
        ("--stepz 3", "--stepz: unknown option (value '3'); nearest known: --steps"),
        ("--stepz=3", "--stepz: unknown option (value '3'); nearest known: --steps"),
        ("--step 3", "--step: unknown option (value '3'); nearest known: --steps"),
        ("--learning-rate 3", "--learning-rate: unknown option (value '3'); nearest known: --learning_rate"),
        ("--kl.coeff 3", "--kl.coeff: unknown option (value '3'); nearest known: --kl.coef"),
        ("--coef 3", "--coef: unknown option (value '3'); nearest known: --kl.coef"),
        ("--kl 3", "--kl: '3' is not allowed for a group of options; its options: --kl.coef, --kl.target"),
        ("oak", "'oak' is not an option; options are written --key value or --key=value"),
        ("-s 3", "'-s' is not an option; options are written --key value or --key=value"),
        ("--config", "--config needs a value; allowed: a YAML file"),
        ("--config no/file", "no/file: cannot be read: No such file or directory; give a YAML file"),
        ("--quick --steps 101", "--quick goes with at most 100 steps, not 101; lower --steps"),
    ],
)
def test_a_refused_argument_is_one_line_with_value_range_and_nearest_name(argv: str, expected: str) -> None:
    assert refusal(*argv.split(" ")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nsteps: 2\n", "line 1: seed: unknown option (value 1); nearest known: steps"),
        ("steps: 2\nkl:\n  coeff: 1\n", "line 3: kl.coeff: unknown option (value 1); nearest known: kl.coef"),
        ("kl: 3\n", "line 1: kl: '3' is not allowed for a group of options; its options: kl.coef, kl.target"),
        ("\nsteps: many\n", f"line 2: steps: 'many' is not allowed; {STEPS}"),
        ("steps: 2.0\n", f"line 1: steps: 2.0 is not allowed; {STEPS}"),
        ("steps:\n", f"line 1: steps: null is not allowed; {STEPS}"),
        ("steps: -4\n", f"line 1: steps: -4 is not allowed; {STEPS}"),
        ("learning_rate: .nan\n", "line 1: learning_rate: .nan is not allowed; allowed: float, above 0"),
        (
            "learning_rate: 1" + 400 * "0" + "\n",
            f"line 1: learning_rate: 1{76 * '0'}... is not allowed; allowed: float, above 0",
        ),
        (
            "folder: 12\n",
            "line 1: folder: 12 is not allowed; allowed: text; put quotes around it to make it text",
        ),
        ("steps: 2\nsteps: 3\n", "line 2: steps: given twice in this file; remove one"),
        ("kl.coef: 2\nkl: {coef: 3}\n", "line 2: kl.coef: given twice in this file; remove one"),
        ("steps: [1\nquick: true\n", "line 2: not valid YAML: "),
        ("steps: 2\n\tquick: true\n", "line 2: not valid YAML: "),
        ("steps: &a 2\nlimit: *a\n", "line 2: not valid YAML: aliases (*name) are not supported"),
        ("steps: !!python/name:os.system\n", "line 1: not valid YAML: could not determine a constructor"),
        ("- steps\n", "line 1: must hold `key: value` lines, not a sequence"),
        ("steps\n", "line 1: must hold `key: value` lines, not a scalar"),
    ],
)
def test_a_refused_file_names_file_and_line(tmp_path: Path, text: str, expected: str) -> None:
    path = yaml_file(tmp_path, text)
    message = refusal("--config", path)
    if expected.endswith((": ", "constructor")):
        assert message.startswith(f"{path}, {expected}")
    else:
        assert message == f"{path}, {expected}"


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"steps: \xff\xfe")
    assert refusal("--config", str(path)) == f"{path}: not UTF-8 text at byte 7; give a YAML file"
    path.write_bytes(b"steps: 3\0")
    assert refusal("--config", str(path)).startswith(f"{path}: not valid YAML: ")


def test_a_bare_argument_fills_the_positional_option_once() -> None:
    assert parse(Trip, ["here"], "talltree trip", "folder").folder == "here"
    assert parse(Trip, ["--steps", "2", "here"], "talltree trip", "folder") == Trip(steps=2, folder="here")
    with pytest.raises(ConfigError, match="'there' is not an option"):
        parse(Trip, ["here", "there"], "talltree trip", "folder")


def test_bare_arguments_fill_several_options_in_turn_and_a_list_takes_the_rest() -> None:
    @dataclass(frozen=True)
    class Visits:
        """Places to see."""

        how: str = option("foot", "How to go.")
        places: list[str] = option([], "Where to.")
        days: int = option(1, "How long.", low=1)

    globals()["Visits"] = Visits
    names = ("how", "places")
    assert parse(Visits, ["boat", "Ely", "--days", "2", "Bath"], "x", names) == Visits(
        "boat", ["Ely", "Bath"], 2
    )
    assert parse(Visits, ["boat"], "x", names) == Visits("boat")
    assert parse(Visits, ["3", "[brackets"], "x", names) == Visits("3", ["[brackets"])
    with pytest.raises(ConfigError, match="'there' is not an option"):
        parse(Visits, ["boat", "there"], "x", ("how",))


def test_a_mapping_takes_dotted_keys_and_adds_up(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Chain:
        """Two stages."""

        rl: dict[str, Any] = option({}, "Options of a stage.")
        steps: int = option(1, "How many.", low=1)

    globals()["Chain"] = Chain
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("rl:\n  seed: 1\n  kl:\n    coef: 0.1\n    target: 5\n")
    argv = [
        "--config",
        str(recipe),
        "--rl.kl.target",
        "6.5",
        "--rl.reward=alliteration - 5*length",
        "--steps",
        "2",
    ]
    expected = {"seed": 1, "kl": {"coef": 0.1, "target": 6.5}, "reward": "alliteration - 5*length"}
    assert parse(Chain, argv, "x") == Chain(expected, 2)
    assert parse(Chain, ["--rl.seed", "null", "--rl", '{"steps": [1, 2]}'], "x").rl == {
        "seed": None,
        "steps": [1, 2],
    }
    with pytest.raises(ConfigError, match="--stepz.rl: unknown option"):
        parse(Chain, ["--stepz.rl", "6"], "x")


def test_a_required_option_is_asked_for() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Needy:
        model: str = option(dataclasses.MISSING, "Which model.")

    globals()["Needy"] = Needy
    assert parse(Needy, ["--model", "m"], "x") == Needy(model="m")
    with pytest.raises(ConfigError, match="--model is required; allowed: text: Which model"):
        parse(Needy, [], "x")


def test_help_shows_every_option_with_unit_default_and_range(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "A trip that is 100% made up." in text
    for each in options(Trip):
        assert f"--{each.key} VALUE {each.help} [{each.allowed}; default: " in text
    assert "How many. [int, at least 1 and at most 1000 (updates); default: 10]" in text
    assert "[list of text; default: [tall, tree]]" in text
    assert (
        "kl: The leash. --kl.coef VALUE Price of a nat. [float, at least 0 (reward per nat); default: 0.2]"
        in text
    )
