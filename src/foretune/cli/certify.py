"""``foretune certify``: how linear a trained adapter is."""

from pathlib import Path
from typing import Annotated, Any

import typer

from foretune.cli.console import metric, number, out, progress_bar, say, table, verbatim
from foretune.cli.options import Directory, RunFile

EXAMPLES = ("foretune certify run.yaml --adapter runs/movie/train/base/adapter -o runs/movie",)


def command(
    run: RunFile,
    output: Directory,
    adapter: Annotated[
        Path, typer.Option(help="Folder of the adapter, as foretune train wrote it.", show_default=False)
    ],
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Also move every layer alone.")] = False,
) -> None:
    """Say how far a trained adapter is from its linearisation; writes certificate.json.

    Measured on the evaluation data, whatever loss and optimiser trained it. Runs of SGD recorded by foretune train
    --certify also get a proven bound on their distance from the linearised run.
    """
    from foretune.train import certify_run

    with progress_bar("measuring") as progress:
        certificate = certify_run(run, adapter, output, per_layer=per_layer, progress=progress)
    show(certificate)
    verbatim(f"wrote {output / 'certificate.json'}")


def show(certificate: dict[str, Any]) -> None:
    """Print a certificate."""
    for sentence in certificate["sentences"]:
        say(sentence)
    name, metrics = certificate["metric_name"], certificate["metrics"]
    shown = table("the fine-tuned model and its linearisation at the same parameters", "measured", "value")
    shown.add_row("off by, over the change: all examples", number(certificate["nonlinearity"]))
    for quantile, value in certificate["quantiles"].items():
        shown.add_row(f"  {100 * float(quantile):.0f}% of the examples below", number(value))
    shown.add_row(f"{name} before / fine-tuned / linearised", " / ".join(metric(x, name) for x in metrics.values()))
    if certificate["label_agreement"] is not None:
        shown.add_row("same label", metric(certificate["label_agreement"], "accuracy"))
        shown.add_row("KL divergence, nats", number(certificate["divergence"]))
    bound = certificate["bound"]
    if bound["certified"]:
        shown.add_row("certified: distance of parameters", number(bound["parameters"]))
        shown.add_row("certified: distance of outputs, over the change", number(bound["outputs"]))
        if bound["same_label"] is not None:
            shown.add_row("certified: same label", metric(bound["same_label"], "accuracy"))
    out.print(shown)
    if certificate["layers"]:
        layers = table("each layer moved alone", "layer", "off by", "share of J0 δ", "‖δ‖")
        for layer in certificate["layers"]:
            values = (number(layer[key]) for key in ("nonlinearity", "share", "displacement"))
            layers.add_row(layer["layer"], *values)
        out.print(layers)
