"""The errors that a person who runs the program can mend, each with the exit code it ends the program with.

Everything else is a defect of ours and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """Bad input. ``main`` prints it as one line and exits with code 2; nothing has been started or written."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, mistyped or contradicts another. The message names the setting's dotted path."""


class DataError(UserError):
    """A data row or file cannot be used. The message names the file and the line."""


class ModelError(UserError):
    """The model folder lacks something that a run needs (tokenizer, end token, weights)."""


class StorageError(UserError):
    """The run directory cannot be written: full, read-only, or of another run."""


class RunFailed(Exception):
    """A run that had started could not go on. ``main`` prints the diagnosis and exits with code 1."""

    exit_code = 1


class LearnerLost(RunFailed):
    """A rank of the learner group is gone; the group must be made anew from a checkpoint."""
