"""Code for the processes of `pair` to run before a run: faults of the arithmetic, failures, signals.

They see `rank` and `planted`, an ExitStack that is left after the run.
"""

PLANTED = {
    "gradients averaged": """
from talltree.stages.rl.processes import Team
honest = Team.sum_gradients
def averaged(team, parameters):
    honest(team, parameters)
    for each in parameters:
        each.grad /= 2
Team.sum_gradients = averaged
planted.callback(setattr, Team, "sum_gradients", honest)
""",
    "each its own draws": """
from talltree.stages.rl import loop
honest = loop.fresh_state
def own(config):
    state = honest(config)
    state.generator.manual_seed(rank)
    return state
loop.fresh_state = own
planted.callback(setattr, loop, "fresh_state", honest)
""",
    "weights of its own rows alone": """
from talltree.stages.rl import update
honest = update._backward
update._backward = lambda policy, objective, passes, old, rows, mine: honest(
    policy, objective, passes, old, mine, mine)
planted.callback(setattr, update, "_backward", honest)
""",
    "rewards whitened by its own rows": """
from talltree.stages.rl import step
found = step._advantages
def own(config, parts, state, scored, coef):
    advantage, baseline, targets = found(config, parts, state, scored, coef)
    rows = parts.team.share(len(advantage))
    mask = scored.rollout.completion_mask_NT
    own = advantage[rows][mask[rows]]
    advantage = (advantage - own.mean()) / own.std() * mask
    return advantage, baseline, targets._replace(advantage_NT=advantage)
step._advantages = own
planted.callback(setattr, step, "_advantages", found)
""",
}
"""Each must make a run of two processes another one than that of one."""

IN_PROCESS_1 = """
from talltree.stages.rl import update
honest, calls = update._backward, []
def failing(*arguments):
    calls.append(1)
    if rank == 1 and len(calls) == 2:
        raise {error}
    return honest(*arguments)
update._backward = failing
planted.callback(setattr, update, "_backward", honest)
"""
"""Process 1 raises in the second update; process 0 does not."""

SIGNALLED = """
import os, signal
from talltree.stages.rl import update
honest, parent, calls = update._backward, os.getppid, []
def signalled(*arguments):
    calls.append(1)
    if rank == 1 and len(calls) == 2:
        {happens}
    return honest(*arguments)
update._backward = signalled
planted.callback(setattr, update, "_backward", honest)
planted.callback(setattr, os, "getppid", parent)
"""
"""Something happens to process 1 in the second update."""
