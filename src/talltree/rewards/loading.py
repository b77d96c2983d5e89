"""From a text such as "alliteration - 0.05*repetition(n=3) + my.py:score" to a reward."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

from talltree.errors import RewardError
from talltree.rewards.alliteration import Alliteration, AlliterationVaried, LetterCount
from talltree.rewards.model import ModelReward
from talltree.rewards.scoring import Term, WeightedSum
from talltree.rewards.sentiment import Sentiment
from talltree.rewards.text import DistinctN, Keyword, Length, Regex, Repetition
from talltree.rewards.user_code import blamed_on
from talltree.types import Reward

BUILT_IN: Mapping[str, type[Any]] = MappingProxyType(
    {
        "alliteration": Alliteration,
        "letter_count": LetterCount,
        "alliteration_varied": AlliterationVaried,
        "length": Length,
        "repetition": Repetition,
        "distinct_n": DistinctN,
        "regex": Regex,
        "keyword": Keyword,
        "sentiment": Sentiment,
        "reward_model": ModelReward,
    }
)
"""Name in a spec -> the frozen dataclass whose fields are the parameters that the spec may set."""

_FILE = re.compile(r"(?P<path>.+\.py):(?P<function>[^\W\d]\w*)")
_WEIGHT = re.compile(
    r"(?P<weight>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)\s*\*\s*(?P<rest>.+)", re.DOTALL
)
_JOINT = re.compile(r"\s[+-]\s")
_BRACKETS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


class _Part(NamedTuple):
    """A term as it is written: its sign and weight in one number, and the text of the reward."""

    weight: float
    text: str


def load(spec: str) -> Reward:
    """The reward that a spec names: `[weight *] TERM`s joined by ` + ` and ` - ` (with the spaces).

    TERM is NAME, NAME(key=value, ...) with a built-in name and Python literals, path/to/file.py:function, or
    the folder of a reward model, short for reward_model(path='...').
    One term of weight 1 is that reward itself; anything else is a WeightedSum, whose components are called
    by NAME or function, or by the whole term where two have the same. A file is loaded from the path
    given, relative to the working directory, and from nowhere else. Raises RewardError for whatever in
    the spec, its parameters or its file cannot be used.
    """
    parts = _parts(spec)
    loaded = [_term(part.text) for part in parts]
    if len(parts) == 1 and parts[0].weight == 1:
        return loaded[0][1]
    names = _component_names([name for name, _ in loaded], [part.text for part in parts])
    terms = tuple(
        Term(part.weight, name, reward) for part, name, (_, reward) in zip(parts, names, loaded, strict=True)
    )
    return WeightedSum(spec.strip(), terms)


def files(spec: str) -> list[Path]:
    """The files of the user's own that a spec names, in its order; a reward model's is its manifest.

    Raises RewardError as `load` does.
    """
    found = []
    for part in _parts(spec):
        if match := _FILE.fullmatch(part.text):
            found.append(Path(match["path"]).expanduser())
        elif _is_folder(part.text):
            found.append(ModelReward(part.text).fingerprint_file)
        elif (call := _call(part.text))[0] == "reward_model":
            reward = _built(*call)
            assert isinstance(reward, ModelReward)
            found.append(reward.fingerprint_file)
    return found


def _parts(spec: str) -> list[_Part]:
    if not spec.strip():
        raise RewardError(f"the reward is empty; name one of {', '.join(BUILT_IN)}, or FILE.py:FUNCTION")
    whole = _FILE.fullmatch(spec.strip())
    is_file = whole is not None and Path(whole["path"]).expanduser().is_file()
    if is_file or _is_folder(spec.strip()):  # a path may hold " - "
        return [_Part(1.0, spec.strip())]
    return [_part(sign, text.strip(), spec) for sign, text in _signed(spec)]


def _signed(spec: str) -> list[tuple[float, str]]:
    """Cuts at each ` + ` and ` - ` outside brackets; a quote opens a string inside brackets only."""
    signs, starts, ends = [1.0], [0], []
    depth, quote, escaped = 0, "", False
    for i, character in enumerate(spec):
        if quote:
            if character == quote and not escaped:
                quote = ""
            escaped = character == "\\" and not escaped
        elif depth and character in "'\"":
            quote = character
        elif character in _BRACKETS:
            depth += _BRACKETS[character]
        elif depth == 0 and _JOINT.match(spec, i) and spec[starts[-1] : i].strip():
            ends.append(i)
            signs.append(1.0 if spec[i + 1] == "+" else -1.0)
            starts.append(i + 3)
    texts = [spec[start:end] for start, end in zip(starts, [*ends, len(spec)], strict=True)]
    return list(zip(signs, texts, strict=True))


def _part(sign: float, text: str, spec: str) -> _Part:
    if text[:1] in ("+", "-"):
        sign, text = -sign if text[0] == "-" else sign, text[1:].strip()
    weighted = _WEIGHT.fullmatch(text)
    weight, rest = (float(weighted["weight"]), weighted["rest"].strip()) if weighted else (1.0, text)
    if not rest:
        raise RewardError(f"the reward {spec!r} has a sign without a term after it")
    if not math.isfinite(weight):
        raise RewardError(f"the weight in {text!r} is too large for a number")
    return _Part(sign * weight, rest)


def _term(text: str) -> tuple[str, Reward]:
    """A term's short name and its reward."""
    in_file = _FILE.fullmatch(text)
    if in_file:
        return in_file["function"], _from_file(Path(in_file["path"]).expanduser(), in_file["function"])
    if re.search(r"\.py\b", text.split("(")[0]):
        raise RewardError(
            f"reward {text!r}: a file's reward is written path/to/file.py:function, without brackets"
        )
    if _is_folder(text):
        return ModelReward.name, ModelReward(text)
    if "/" in text.split("(")[0]:
        raise RewardError(f"reward {text!r}: there is no such folder; a reward model is named by its folder")
    name, parameters = _call(text)
    if name not in BUILT_IN:
        near = get_close_matches(name, BUILT_IN, n=1)
        meant = f"did you mean {near[0]}?" if near else "give FILE.py:FUNCTION for your own."
        raise RewardError(f"reward {name!r} is unknown; {meant} Built in: {', '.join(BUILT_IN)}")
    return name, _built(name, parameters)


def _is_folder(text: str) -> bool:
    return text not in BUILT_IN and Path(text).expanduser().is_dir()


def _call(text: str) -> tuple[str, dict[str, Any]]:
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError):
        raise _unreadable(text) from None
    if isinstance(tree, ast.Name):
        return tree.id, {}
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise _unreadable(text)
    name = tree.func.id
    if tree.args or any(keyword.arg is None for keyword in tree.keywords):
        raise RewardError(f"reward {text!r}: give parameters by name, as {name}(key=value)")
    return name, {str(keyword.arg): _literal(text, keyword) for keyword in tree.keywords}


def _literal(text: str, keyword: ast.keyword) -> Any:
    try:
        return ast.literal_eval(keyword.value)
    except (ValueError, TypeError):
        written = ast.unparse(keyword.value)
        raise RewardError(
            f"reward {text!r}: the value {written} of {keyword.arg} is not a plain value; a text needs quotes"
        ) from None


def _unreadable(text: str) -> RewardError:
    return RewardError(
        f"the reward term {text!r} cannot be read; write [weight *] NAME(key=value) or FILE.py:FUNCTION, "
        "joined by ' + ' and ' - ' with spaces around them"
    )


def _built(name: str, parameters: dict[str, Any]) -> Reward:
    fields = {field.name: field for field in dataclasses.fields(BUILT_IN[name])}
    for key in parameters:
        if key not in fields:
            near = get_close_matches(key, fields, n=1)
            allowed = f"allowed: {', '.join(fields)}" if fields else "it takes none"
            meant = f"did you mean {near[0]}? " if near else ""
            raise RewardError(f"reward {name} has no parameter {key!r}; {meant}{allowed}")
    for field in fields.values():
        if field.default is dataclasses.MISSING and field.name not in parameters:
            raise RewardError(f"reward {name} needs a value for {field.name}: {name}({field.name}=...)")
    reward: Reward = BUILT_IN[name](**parameters)
    return reward


def _from_file(path: Path, function: str) -> Reward:
    if not path.is_file():
        raise RewardError(f"reward file {path} not found (looked in {path.resolve().parent})")
    module = _executed(path.resolve())
    if not hasattr(module, function):
        callables = [k for k, v in vars(module).items() if _is_own_function(v, module)]
        near = get_close_matches(function, callables, n=1) or callables
        has = f"did you mean {near[0]}?" if near else "it defines no function"
        raise RewardError(f"reward file {path} has no function {function!r}; {has}")
    reward: Reward | type = getattr(module, function)
    if isinstance(reward, type) or not callable(reward):
        kind = "a class; name a function or an instance" if isinstance(reward, type) else "not a function"
        raise RewardError(f"{function!r} in reward file {path} is {kind}")
    return reward


def _is_own_function(value: object, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def _executed(path: Path) -> ModuleType:
    """Runs the user's file as a module of its own; compiled here, so no cached copy can stand in for it."""
    digest = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    module = ModuleType(f"talltree_reward_{digest}")
    module.__file__ = str(path)
    # dataclasses look their module up by name.
    sys.modules[module.__name__] = module
    try:
        with blamed_on(f"reward file {path.name}", str(path)):
            exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), module.__dict__)
    except RewardError:
        del sys.modules[module.__name__]
        raise
    return module


def _component_names(short: list[str], written: list[str]) -> list[str]:
    count = Counter(short)
    names = [text if count[name] > 1 else name for name, text in zip(short, written, strict=True)]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise RewardError(f"the reward has the term {twice[0]} twice; add the weights up in one term")
    return names
