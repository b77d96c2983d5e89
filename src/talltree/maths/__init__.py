"""Pure functions of tensors: torch only, no IO, no config, no model, no logging.

Shape suffixes: N rollouts, P prompts, G per group, T completion tokens, V vocabulary; "..." is any leading
shape. A mask is boolean and named for what is True. float64 in gives float64 out.
"""
