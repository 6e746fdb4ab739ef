"""`optimum-cli prune`: the same job as `hf-prune run`, with the same options.

The build maps this folder to `optimum/commands/register`, where `optimum-cli` looks for commands; no `__init__.py` may
lie here, as that place is shared by several packages. Every start of `optimum-cli` imports this file: it stays light.
"""

import sys
from argparse import REMAINDER, ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo


class PruneCommand(BaseOptimumCLICommand):
    """Passes its words on to `hf-prune run`, `--help` among them, and ends with its exit code."""

    COMMAND = CommandInfo(name="prune", help="Prune the layers of a language model that matter least (hf-prune run).")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Take every word as it is: none, `--help` neither, is an option of argparse's own."""
        parser.prefix_chars = ""
        parser.add_argument("words", nargs=REMAINDER)

    def run(self) -> None:
        """Run the job.

        Raises:
            SystemExit: with the exit code of `hf-prune`.
        """
        from hf_prune.cli import main

        assert self.args is not None  # optimum-cli runs what it has parsed
        sys.argv = ["hf-prune", "run", *self.args.words]
        main()


REGISTER_COMMANDS = [PruneCommand]
