"""The exception tree: whatever a user can cause ends as one of these, and its text is the one line shown.

A text says what was wrong, where, the value, and what to do. The command line prints it and exits with
status 2; everything else is a defect of Tall Tree and keeps its traceback.
"""


class TallTreeError(Exception):
    """Base of all errors that a user can cause and mend."""


class ConfigError(TallTreeError):
    """A config key, type, value or combination that is refused before anything is loaded."""


class DataError(TallTreeError):
    """A prompt, corpus or column that cannot be used; names the file and the line."""


class ModelError(TallTreeError):
    """A model or tokenizer that cannot be loaded or does not fit the task."""


class RewardError(TallTreeError):
    """A reward that cannot be found, or that returned the wrong length, type, NaN or infinity."""


class RunError(TallTreeError):
    """A run folder that exists, is missing, or holds no usable checkpoint."""


class HubError(TallTreeError):
    """A hub that cannot be reached, or that refuses what is asked of it."""


class ContractError(TallTreeError):
    """A breach of the numeric contract, found by preflight or by the training loop."""
