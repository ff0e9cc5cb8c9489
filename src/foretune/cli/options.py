"""Options that several commands take, said once."""

from pathlib import Path
from typing import Annotated

import typer

RunFile = Annotated[Path, typer.Argument(help="The YAML file that describes the fine-tune.", show_default=False)]
Directory = Annotated[Path, typer.Option("--output", "-o", help="Run directory for results.", show_default=False)]
RunDirectory = Annotated[Path, typer.Argument(help="A run directory with results.", show_default=False)]
Candidates = Annotated[
    list[str] | None, typer.Option("--candidate", "-c", help="Name of a candidate; repeat for more. Default: all.")
]
Sample = Annotated[
    int | None,
    typer.Option(min=2, help="Training examples that stand for all of them, for data too large to keep tangents of."),
]
