"""``python -m fastseg.data``: make data sets and look after them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from fastseg.cli.command import command, explain_os_error
from fastseg.cli.data_describe import Describe
from fastseg.cli.data_inspect import Check, Pack, Show, Stats
from fastseg.cli.data_make import Fetch, Prepare, Synthetic, Unpack
from fastseg.cli.parse import ON_QUIET, PATHS
from fastseg.errors import ConfigError

COMMANDS: dict[str, Callable[..., Any]] = {
    "describe": Describe,
    "check": Check,
    "stats": Stats,
    "show": Show,
    "pack": Pack,
    "fetch": Fetch,
    "unpack": Unpack,
    "prepare": Prepare,
    "synthetic": Synthetic,
}


@command
def main(args: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    chosen: Describe | Check | Stats | Show | Pack | Fetch | Unpack | Prepare | Synthetic
    with PATHS:
        chosen = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            args=args,
            prog="python -m fastseg.data",
            description=f"{__doc__}\n\n{ON_QUIET}",
        )
    try:
        return chosen.run()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigError(explain_os_error(error)) from error
    except ValueError as error:  # DataError is one
        raise ConfigError(str(error)) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command continues") from None


if __name__ == "__main__":
    sys.exit(main())
