"""The command line: `python -m curation COMMAND`.

Exit status: 0 done; 1 the work did not end whole; 2 a mistake in the call or the configuration; 130 interrupted;
143 terminated.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from curation.commands.common import complain

# Modules of curation.commands, in the order of `--help`.
COMMANDS = (
    "validate",
    "download",
    "plan",
    "run",
    "stats",
    "calibrate",
    "rescore",
    "select",
    "export",
    "report",
    "dashboard",
    "pack",
)


def main(arguments: Sequence[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal in ASCII still shows every caption
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    # Imported here: `--help` must answer at once.
    from curation.cluster import JobError
    from curation.config import ConfigError, load
    from curation.manifests import ManifestError
    from curation.plan import RunError
    from curation.raw import SourceError
    from curation.termination import Terminated
    from filters.base import RuleError
    from shards import manifest
    from shards.storage import StorageError, Unavailable

    try:
        pipelines = load(options.config) if "config" in options else None
        status: int = importlib.import_module(f"curation.commands.{options.command}").main(pipelines, options)
        sys.stdout.flush()
        return status
    except ConfigError as error:
        for problem in error.problems:
            complain(problem)
        return 2
    except (JobError, Unavailable) as error:  # no mistake of the caller's: the same call may succeed later
        complain(str(error))
        return 1
    except (StorageError, RuleError, RunError, SourceError, ManifestError, manifest.ManifestError) as error:
        complain(str(error))
        return 2
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EDQUOT):
            raise
        complain(f"what was to be shown cannot be written: {error.strerror}")
        with suppress(OSError):  # or Python tries once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        complain("interrupted; what is committed stays: the same command goes on from there")
        return 130
    except Terminated:
        complain("terminated; what is committed stays: the same command goes on from there")
        return 143


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m curation",
        description="Curates image-text pairs: raw pairs in; shards, ledger and funnel out.",
        epilog="example: python -m curation run demo --set clip_score.min=0.3",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"curation.commands.{name}").add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
