"""``python -m fastseg.data``: make data sets and look after them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import tyro

from fastseg.cli.command import BAD_INPUT, explain_os_error, print_any_name, while_read
from fastseg.cli.data_inspect import Check, Pack, Show, Stats
from fastseg.cli.data_make import Fetch, Prepare, Synthetic, Unpack
from fastseg.cli.parse import PATHS

COMMANDS: dict[str, Callable[..., Any]] = {
    "check": Check,
    "stats": Stats,
    "show": Show,
    "pack": Pack,
    "fetch": Fetch,
    "unpack": Unpack,
    "prepare": Prepare,
    "synthetic": Synthetic,
}


@while_read
def main(args: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    command: Check | Stats | Show | Pack | Fetch | Unpack | Prepare | Synthetic
    print_any_name()
    try:
        with PATHS:
            command = tyro.extras.subcommand_cli_from_dict(
                COMMANDS, args=args, prog="python -m fastseg.data", description=__doc__
            )
        return command.run()
    except ValueError as error:  # DataError is one
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"error: {explain_os_error(error)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
