"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

RunFile = Annotated[Path, typer.Argument(help="The YAML file that describes the fine-tune.", show_default=False)]
Directory = Annotated[Path, typer.Option("--output", "-o", help="Run directory for results.", show_default=False)]
RunDirectory = Annotated[Path, typer.Argument(help="A run directory with results.", show_default=False)]
Candidates = Annotated[
    list[str] | None,
    typer.Option("--candidate", "-c", help="Name of a candidate; repeat the option for several. Default: all."),
]
Sample = Annotated[
    int | None,
    typer.Option(
        min=2, help="For large data: use only this many training examples, which stand for all. Default: use all."
    ),
]
Details = Annotated[
    bool, typer.Option("--details", help="Also show the kernel's figures, the linearity gap, and all warnings in full.")
]
