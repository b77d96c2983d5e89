"""Where sentences end, by rules for English and for the full-width marks of Chinese and Japanese."""

from __future__ import annotations

import re

_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s|\Z)|[。！？]+["'”’»)\]」』）]*""")
_PARAGRAPH = re.compile(r"[^\S\n]*\n\s*?\n\s*")
_OPENING = "\"'“‘«([—–- \t\n\r"
_ABBREVIATION = re.compile(
    r"(?:\A|[^\w.])(?:mr|mrs|ms|messrs|mme|dr|prof|rev|hon|st|mt|gen|col|capt|lt|sgt|sen|rep|gov|vs|cf|e\.g|i\.e)"
    r"\.\Z",
    re.IGNORECASE,
)
_INITIAL = re.compile(r"(?:\A|[\s(“\"'.])[A-HJ-Z]\.\Z")  # not I: "So did I."
_LOOK_AROUND = 12


def sentence_ends(text: str) -> list[int]:
    """The offset after each sentence, closing quotes and brackets included, white space after it not.

    A sentence ends at . ! ? or an ellipsis before white space, unless what follows goes on in lower case
    ('"Stop!" he said'), or the full stop belongs to a title such as Mr. or to an initial; at a full-width
    mark; at a blank line; and at the end of the text. Increasing; the last one is the end of the text without
    trailing white space. Empty for a blank text. A quotation of several sentences is divided.
    """
    end = len(text.rstrip())
    if not end:
        return []
    ends = {match.end() for match in _END.finditer(text, 0, end) if _is_end(text, match)}
    ends |= {match.start() for match in _PARAGRAPH.finditer(text, 0, end)}
    return sorted(ends - {0} | {end})


def sentence_starts(text: str) -> list[int]:
    """The offset of each sentence's first character: one for each of `sentence_ends`."""
    starts = []
    place = 0
    for end in sentence_ends(text):
        starts.append(place + len(text[place:end]) - len(text[place:end].lstrip()))
        place = end
    return starts


def _is_end(text: str, match: re.Match[str]) -> bool:
    if match[0][0] in "。！？":
        return True
    if text[match.end() : match.end() + _LOOK_AROUND].lstrip(_OPENING)[:1].islower():
        return False
    # The mark alone, without quotes after it: `"... said Mr."` may end one.
    before = text[max(match.start() + 1 - _LOOK_AROUND, 0) : match.start() + 1]
    return match[0] != "." or not (_ABBREVIATION.search(before) or _INITIAL.search(before))
