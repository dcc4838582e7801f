"""`validate`: every error of the configuration."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from curation.commands.common import Commands, command, show

if TYPE_CHECKING:
    from curation.config import Pipelines


def add(commands: Commands) -> None:
    command(commands, "validate", "Reports every error of the configuration, with line and nearest match.", "validate")


def main(pipelines: Pipelines, options: argparse.Namespace) -> int:
    if options.profile is not None:
        profiles = {options.profile: pipelines.profile(options.profile)}
    else:
        profiles = pipelines.validate()
    from curation.plan import asked
    from filters.base import RuleError

    for name, profile in profiles.items():
        steps = [*(mapper.name for mapper in profile.mappers), *profile.filters]
        show(f"{name}: ok ({profile.input.format}: {' > '.join(steps)})")
        for label, rule in profile.rules():
            try:
                asked(label, rule.check)
            except RuleError as error:  # not a mistake in the file: weights may be made or mounted later
                show(f"{name}: not ready to run: {error}")
    return 0
