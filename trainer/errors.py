"""What goes wrong by a user's doing: one line that says what, where and what to do; and how a command ends of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class TrainerError(ValueError):
    """The base of the trainer's errors; commands print the line and exit with 2."""


class ModelError(TrainerError):
    """A model that cannot be built, loaded or converted: a configuration, a folder, a checkpoint."""


class TokenizerError(TrainerError):
    """A tokenizer that cannot be loaded, or does not fit its model."""


class ConfigError(TrainerError):
    """Settings of a run that do not hold together, or that there are not."""


class CheckpointError(TrainerError):
    """A checkpoint that cannot be written, or gone on from."""


class DataError(TrainerError):
    """A sample, an image or a batch that cannot be trained on."""


def exit_status(work: Callable[[], object], interrupted: str | None = None) -> int:
    """Does a command's work: 0 done; 2 a mistake of the user's, 1 a library that is not installed; 130 interrupted.

    Each is told in one line. interrupted: the line for that; None: silent.
    """
    try:
        work()
    except TrainerError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: {error.name} is missing: pip install -e '.[train]'\n")
        return 1
    except KeyboardInterrupt:
        if interrupted is not None:
            sys.stderr.write(f"{interrupted}\n")
        return 130
    return 0


def first_mistake(error: ValidationError, nowhere: str = "") -> str:
    """`place: what is wrong` of the first thing that pydantic found. nowhere: the place of what concerns the whole."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or nowhere
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
