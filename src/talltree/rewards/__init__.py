"""Rewards: plain callables f(prompts, completions, **columns) -> one float or None per completion.

`load` makes one from a spec, `score` calls it and checks what it returns, `spans` asks which text earned it.
"""

from talltree.rewards.loading import BUILT_IN, files, load
from talltree.rewards.scoring import Term, WeightedSum, name_of, score, spans

__all__ = ["BUILT_IN", "Term", "WeightedSum", "files", "load", "name_of", "score", "spans"]
