"""prompt/chosen/rejected rows, the form in which TRL, OpenRLHF and most published data hold preferences."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from talltree.errors import DataError

COLUMNS = ("prompt", "chosen", "rejected", "margin", "annotator", "seconds", "time")

Message = Mapping[str, Any]


def fields_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Judgement of two candidates, the chosen one first and best.

    prompt, chosen and rejected are texts, or all of them lists of {"role", "content"} messages. A row without
    a prompt has it inside both others: it is their common beginning, up to the last white space in texts, or
    the common messages. A conversation is written as "role: content" parts with a blank line between them;
    the prompt then ends with "assistant:" and a candidate begins with the space that follows it.
    Raises DataError, naming the field.
    """
    for name in ("chosen", "rejected"):
        if name not in row:
            raise DataError(f"{name} is missing; columns there: {', '.join(row)}")
    if row["chosen"] == row["rejected"]:
        raise DataError("chosen and rejected are the same; a choice between them says nothing")
    sides = [row[name] for name in ("prompt", "chosen", "rejected") if name in row]
    if any(isinstance(side, list) for side in sides):
        prompt, chosen, rejected = _conversation(row)
    else:
        prompt, chosen, rejected = _texts(row)
    others = {name: value for name, value in row.items() if name not in ("prompt", "chosen", "rejected")}
    return {"prompt": prompt, "candidates": [chosen, rejected], "best": 0, "worst": 1, **others}


def _texts(row: Mapping[str, Any]) -> tuple[str, str, str]:
    for name in ("prompt", "chosen", "rejected"):
        if not isinstance(row.get(name, ""), str):
            raise DataError(f"{name} {repr(row[name])[:60]} is neither a text nor a list of messages")
    chosen, rejected = row["chosen"], row["rejected"]
    if "prompt" in row:
        return row["prompt"], chosen, rejected
    common = os.path.commonprefix([chosen, rejected])
    cut = next((at for at in range(len(common) - 1, 0, -1) if common[at].isspace()), 0)
    while cut and common[cut - 1].isspace():
        cut -= 1
    return common[:cut], chosen[cut:], rejected[cut:]


def _conversation(row: Mapping[str, Any]) -> tuple[str, str, str]:
    chosen, rejected = _messages(row, "chosen"), _messages(row, "rejected")
    if "prompt" in row:
        prompt = _messages(row, "prompt")
    else:
        same = [one == other for one, other in zip(chosen, rejected, strict=False)]
        cut = same.index(False) if False in same else len(same)
        prompt, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if len(messages) != 1 or messages[0][0] != "assistant":
            roles = ", ".join(role for role, _ in messages) or "none"
            raise DataError(f"{name} must add one assistant message to the prompt, but adds: {roles}")
    written = [f"{role}: {content}" for role, content in prompt]
    return "\n\n".join([*written, "assistant:"]), " " + chosen[0][1], " " + rejected[0][1]


def _messages(row: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    value = row[name]
    if not isinstance(value, list):
        raise DataError(f"{name} {repr(value)[:60]} is not a list of messages, as the row's other sides are")
    found = []
    for number, message in enumerate(value):
        is_text = isinstance(message, Mapping) and set(message) == {"role", "content"}
        if not is_text or not all(isinstance(part, str) for part in message.values()):
            raise DataError(
                f"{name}[{number}] {repr(message)[:60]} is not a message of the texts role and content"
            )
        found.append((message["role"], message["content"]))
    return found
