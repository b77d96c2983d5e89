"""Three published sets of human judgements as files that `talltree annotate import` reads.

python docs/findings/human_judgements.py DATA OUT, where DATA has humour/, scratchplot/ and summaries/.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from talltree.data.preferences import Judgement, write_preferences


def humour(folder: Path) -> Iterator[Judgement]:
    """Which of two short texts is funnier: a line of pairs.csv is one judgement, winner first."""
    lines = (folder / "item_scores.txt").read_text(encoding="utf-8").splitlines()
    texts = {int(number): text for number, _, text in (line.split("\t", 2) for line in lines)}
    for line in (folder / "pairs.csv").read_text().split():
        winner, loser = map(int, line.split(","))
        first, second = sorted((winner, loser))
        yield Judgement(
            prompt="",
            candidates=(texts[first], texts[second]),
            best=(first, second).index(winner),
            tuple_id=f"{first}-{second}",
        )


def scratchplot(folder: Path, dimension: str) -> Iterator[Judgement]:
    """Ratings from 1 to 5 of a story plot, one criterion; or which of two endings is better."""
    for line in (folder / "ratings.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["dimension"] != dimension:
            continue
        if dimension == "ending":
            stories = tuple(f"{row[f'story_{side}']} {row[f'ending_{side}']}" for side in "ab")
            yield Judgement(
                prompt="", candidates=stories, best=int(row["label"]) - 1, annotator=row["annotator"]
            )
        else:
            yield Judgement(
                prompt="",
                candidates=(row["story"],),
                ratings=(float(row["label"]),),
                annotator=row["annotator"],
            )


def summaries(folder: Path) -> Iterator[Judgement]:
    """Which of two summaries is better; confidence is 1 (surely the first) to 9, the margin |it - 5|."""
    for line in (folder / "comparisons.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield Judgement(
            prompt=row["prompt"],
            candidates=tuple(row["candidates"]),
            best=int(row["best"]),
            margin=abs(float(row["confidence"]) - 5),
            annotator=row["annotator"],
        )


def main(data: str, out: str) -> None:
    """Writes one file a set."""
    folder, target = Path(data), Path(out)
    target.mkdir(parents=True, exist_ok=True)
    write_preferences(target / "humour.jsonl", humour(folder / "humour"))
    for dimension in ("coherence", "naturalness", "interestingness", "ending"):
        write_preferences(target / f"{dimension}.jsonl", scratchplot(folder / "scratchplot", dimension))
    write_preferences(target / "summaries.jsonl", summaries(folder / "summaries"))


if __name__ == "__main__":
    main(*sys.argv[1:])
