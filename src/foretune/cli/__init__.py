"""The command line: a thin shell over the library."""

from foretune.cli.main import main as main
