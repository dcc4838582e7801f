"""What goes wrong by a user's doing: one line that says what, where and what to do."""

from __future__ import annotations


class TrainerError(ValueError):
    """The base of the trainer's errors; commands print the line and exit with 2."""


class ModelError(TrainerError):
    """A model that cannot be built, loaded or converted: a configuration, a folder, a checkpoint."""


class TokenizerError(TrainerError):
    """A tokenizer that cannot be loaded, or does not fit its model."""


class DataError(TrainerError):
    """A sample, an image or a batch that cannot be trained on."""
