"""Held-out stories, openings and stories full of dialogue for the study in docs/findings/pretraining.md.

    python docs/findings/pretraining.py STORIES.jsonl VALIDATION_SHARE TEST_SHARE OUT_FOLDER

writes test.jsonl (whole stories of the test split), openings.jsonl (their first sentences, as prompts) and
dialogue.jsonl (stories of the other splits in which much is said). The split is the corpus's own: the first 8
bytes of the text's SHA-256 as a share of 1 (docs/corpora.md).
"""

import hashlib
import json
import sys
from pathlib import Path

from talltree.data.sentences import sentence_ends

MUCH = 10
"""Quote marks in a story in which much is said."""


def dialogue(prompts, completions):  # a reward, as `talltree compare --rewards` takes it
    """Quote marks in the completion."""
    return [float(sum(text.count(mark) for mark in '"\u201c\u201d')) for text in completions]


def main(stories: str, validation: str, test: str, out: str) -> None:
    """Writes the three files."""
    texts = [
        json.loads(line)["text"].strip() for line in Path(stories).read_text(encoding="utf-8").splitlines()
    ]
    share = {
        text: int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64 for text in texts
    }
    low, high = float(validation), float(validation) + float(test)
    kept_back = [text for text in share if low <= share[text] < high]
    others = [text for text in share if not low <= share[text] < high]
    spoken = [text for text, count in zip(others, dialogue(others, others), strict=True) if count >= MUCH]
    files = {
        "test": [{"text": text} for text in kept_back],
        "openings": [{"prompt": text[: sentence_ends(text)[0]]} for text in kept_back],
        "dialogue": [{"text": text} for text in spoken],
    }
    for name, rows in files.items():
        lines = dict.fromkeys(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        Path(out, f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}.jsonl: {len(lines)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
