"""Reward at the same KL: python docs/findings/at_kl.py STUDY KL [KL ...].

A line for each setting; under each KL, for every seed, the reward at the first step at which the mean KL of
the last five steps has come that far, itself such a mean, and that step. A dash: it never came so far.
"""

import sys

from settings import Trial, by_level, finished, metrics

WINDOW = 5


def main(study: str, *levels: str) -> None:
    """Prints the table."""
    trials = finished(study)
    factors = list(trials[0].setting)
    print(f"| {', '.join(factors)} | {' | '.join(f'{level} nats' for level in levels)} |")
    print("|---" * (len(levels) + 1) + "|")
    for names, seeds in by_level(trials, *factors).items():
        cells = [", ".join(_reached(seed, float(level)) for seed in seeds) for level in levels]
        print(f"| {', '.join(names)} | {' | '.join(cells)} |")


def _reached(trial: Trial, level: float) -> str:
    rows = metrics(trial.folder)
    for end in range(WINDOW, len(rows) + 1):
        window = rows[end - WINDOW : end]
        kl, reward = (sum(row[key] for row in window) / WINDOW for key in ("kl/sequence", "reward/mean"))
        if kl >= level:
            return f"{reward:.1f} (step {rows[end - 1]['step']})"
    return "-"


if __name__ == "__main__":
    main(*sys.argv[1:])
