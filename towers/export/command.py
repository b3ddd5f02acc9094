"""`towers export`: the command; the work is in `towers.export.onnx`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--encoder", help="Its name below [features.encoders]; may be left out where there is one.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--int8", "rounded", is_flag=True, help="Weights in whole numbers of eight bits.")
def export(bundle: Path, encoder: str | None, output: Path, rounded: bool) -> None:
    """Export a pretrained text encoder of BUNDLE as an ONNX graph, with its tokenizer."""
    from towers.bundle.bundle import ModelBundle
    from towers.bundle.trust import Trust
    from towers.export.onnx import chosen_encoder, export_encoder

    opened = ModelBundle.open(bundle, trust=Trust.from_environment())
    name = chosen_encoder(opened, encoder)
    cosine = export_encoder(opened, name, output, rounded=rounded)
    click.echo(f"{output}: {name} written; its vectors have cosines of {cosine:.4f} or more to those of the bundle")
