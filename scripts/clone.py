"""Run a subcommand of `teacher-forcing` from this clone, whether it is installed or not."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.cli import main


def run(subcommand: str) -> None:
    """Run with this process's arguments, and exit."""
    sys.exit(main([subcommand, *sys.argv[1:]]))
