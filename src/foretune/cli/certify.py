"""``foretune certify``: measure how linear a trained adapter is."""

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
        Path, typer.Option(help="The adapter's folder, as foretune train wrote it.", show_default=False)
    ],
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Also move every layer alone.")] = False,
) -> None:
    """Measure how far a trained adapter is from its linearisation, and write certificate.json.

    It measures on the evaluation data, and works for any loss and optimiser. A run of SGD that foretune train --certify
    recorded also gets a proven bound on its distance from the linearised run.
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
    values = table("the fine-tuned model and its linearisation at the same parameters", "measured", "value")
    values.add_row("difference ÷ change by training, all examples", number(certificate["nonlinearity"]))
    for quantile, value in certificate["quantiles"].items():
        values.add_row(f"  {100 * float(quantile):.0f}% of the examples are below", number(value))
    values.add_row(f"{name} before / fine-tuned / linearised", " / ".join(metric(x, name) for x in metrics.values()))
    if certificate["label_agreement"] is not None:
        values.add_row("same label", metric(certificate["label_agreement"], "accuracy"))
        values.add_row("KL divergence, nats", number(certificate["divergence"]))
    bound = certificate["bound"]
    if bound["certified"]:
        values.add_row("certified: distance of parameters", number(bound["parameters"]))
        values.add_row("certified: distance of outputs ÷ change", number(bound["outputs"]))
        if bound["same_label"] is not None:
            values.add_row("certified: same label", metric(bound["same_label"], "accuracy"))
    out.print(values)
    if certificate["layers"]:
        layers = table("each layer moved alone", "layer", "difference ÷ change", "share of J0 δ", "‖δ‖")
        for layer in certificate["layers"]:
            cells = (number(layer[key]) for key in ("nonlinearity", "share", "displacement"))
            layers.add_row(layer["layer"], *cells)
        out.print(layers)
