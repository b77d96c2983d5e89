"""The KL dial: python docs/findings/budget.py OUT.png STUDY.

A column for each model, a row for each reward, a line for each seed: KL over the steps, with the budgets
dashed. Prints what was asked for and how far final/ is on fresh samples: seeds, their mean over the budget,
rewards, last coefficients.
"""

import sys

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from settings import by_level, finished, metrics
from studies import smooth

COLOURS = ("#1f4e9c", "#2e7d32", "#c77700", "#8a4a7d")


def main(out: str, study: str) -> None:
    """Draws the picture and prints the table."""
    trials = finished(study)
    rewards, models, budgets = (
        list(dict.fromkeys(trial.setting[name] for trial in trials))
        for name in ("reward", "model", "kl.target")
    )
    figure = Figure(figsize=(4.4 * len(models), 2.6 * len(rewards)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rewards), len(models), sharex=True, sharey=True, squeeze=False)
    for (reward, model, budget), seeds in by_level(trials, "reward", "model", "kl.target").items():
        axes = grid[rewards.index(reward)][models.index(model)]
        colour = COLOURS[budgets.index(budget)]
        axes.axhline(float(budget), color=colour, linestyle="--", linewidth=0.8)
        for seed in seeds:
            rows = metrics(seed.folder)
            kl = smooth([row["kl/sequence"] for row in rows])
            axes.plot([row["step"] for row in rows], kl, color=colour, linewidth=1.0)
        axes.set_title(f"{reward}, {model}", loc="left", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
        ends = [seed.outcomes for seed in seeds]
        reached = [end["after.kl"] for end in ends]
        coefs = [f"{end['kl_coef_end']:.2f}" for end in ends]
        earned = [f"{end['before.reward']:.2f} -> {end['after.reward']:.2f}" for end in ends]
        print(
            f"| {reward} | {model} | {budget} | {', '.join(f'{kl:.1f}' for kl in reached)} "
            f"| {sum(reached) / len(reached) / float(budget):.2f} | {', '.join(earned)} "
            f"| {', '.join(coefs)} |"
        )
    # Only now: a limit ends the scaling to what is drawn after it.
    for line in grid:
        line[0].set_ylim(bottom=0)
        line[0].set_ylabel("KL, nats a sequence", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("step", fontsize=8)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
