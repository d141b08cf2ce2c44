"""The verbs about checkpoints: convert, doctor, merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mglmm.console import say

Published = Annotated[
    Path, typer.Argument(help="A folder with weights, config.json and tokenizer.", show_default=False)
]
Written = Annotated[Path, typer.Argument(help="A new folder, or a checkpoint to replace.", show_default=False)]
Tower = Annotated[
    str | None, typer.Option(help="The CLIP's folder or cached hub name; by default as config.json names it.")
]
Weights = Annotated[str | None, typer.Option("--dtype", help="float32, float16 or bfloat16; by default as stored.")]
Heads = Annotated[int | None, typer.Option(min=1, help="Attention heads of SAM's mask decoder (8 in every SAM).")]
Alpha = Annotated[float | None, typer.Option(min=0, help="Of adapters, where no adapter_config.json says it.")]


def convert(
    path: Published,
    out: Written,
    family: Annotated[str | None, typer.Option(help="It should be: lisa, glamm, mglmm, ferret, llava.")] = None,
    vision_tower: Tower = None,
    dtype: Weights = None,
    sam_decoder_heads: Heads = None,
    lora_alpha: Alpha = None,
    region: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE of the region encoder, as pooling=max (Ferret) or box_side=336 (GLaMM)."),
    ] = None,
) -> None:
    """Make a published LISA, GLaMM, MGLMM, Ferret or LLaVA checkpoint one of ours."""
    from mglmm.config import override
    from mglmm.importers import report

    settings = {"vision_tower": vision_tower, "sam_decoder_heads": sam_decoder_heads, "lora_alpha": lora_alpha}
    settings["region"] = override({}, region or ())
    for line in report.convert(path, out, family=family, dtype=dtype, **settings):
        say(Console(), line)


def doctor(
    path: Annotated[str, typer.Argument(help="A folder, a weights file, a hub name or bundled.", show_default=False)],
    vision_tower: Tower = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print json instead.")] = False,
) -> None:
    """Say what a checkpoint is, what it can do, what memory it needs and what is missing (then the exit code is 1)."""
    from mglmm import given

    given.quiet()
    from mglmm.importers.doctor import diagnose, lines

    found = diagnose(given.checkpoint(path), vision_tower)
    if as_json:
        typer.echo(json.dumps(found.to_json(), ensure_ascii=False))
    else:
        table = Table.grid(padding=(0, 2))
        for name, text in lines(found):
            table.add_row(Text(name, style="bold"), Text(text))
        Console().print(table)
    if not found.whole:
        raise typer.Exit(1)


def merge(
    base: Published,
    adapter: Annotated[Path, typer.Argument(help="A peft folder, a weights file, or ZeRO shards.", show_default=False)],
    out: Written,
    vision_tower: Tower = None,
    dtype: Weights = None,
    sam_decoder_heads: Heads = None,
    lora_alpha: Alpha = None,
) -> None:
    """Merge adapters into their base, one of ours or a published one (converted on the way)."""
    from mglmm.importers import report

    settings = {"vision_tower": vision_tower, "sam_decoder_heads": sam_decoder_heads, "lora_alpha": lora_alpha}
    for line in report.merge(base, adapter, out, dtype=dtype, **settings):
        say(Console(), line)
