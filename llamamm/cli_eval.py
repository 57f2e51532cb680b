"""Commands that measure what was learned, on held-out data: `llamamm eval retrieval`, `llamamm eval words`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import torch
import typer
from rich.console import Console

from llamamm.assets import fetch
from llamamm.cli_options import DeviceOption
from llamamm.devices import pick_device
from llamamm.pictures import load_pictures
from llamamm.retrieval import measure_retrieval
from llamamm.spoken import load_words
from llamamm.word_recognition import measure_words

evaluate = typer.Typer(help="Measure what encoders have learned, on unseen data.", no_args_is_help=True)


class LossName(StrEnum):
    """Contrastive losses."""

    CLIP = "clip"
    SIGLIP = "siglip"


@evaluate.command()
def retrieval(
    steps: Annotated[int, typer.Option(help="Steps of training, 128 pictures each.", min=1)] = 2000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same model on the same machine.")] = 0,
    loss: Annotated[LossName, typer.Option(help="What is trained.")] = LossName.CLIP,
    device: DeviceOption = None,
) -> None:
    """Train two small towers on OpenMoji's pictures and names, and find held-out ones: recall@1 and @5."""
    train, test = load_pictures(fetch("openmoji"))
    with torch.enable_grad():
        found = measure_retrieval(train, test, steps=steps, seed=seed, loss=loss.value, device=pick_device(device))
    Console(width=120).print(found.table())


@evaluate.command()
def words(seed: Annotated[int, typer.Option(help="Of the control, an encoder with random weights.")] = 0) -> None:
    """Train a word classifier on the frozen ear of Whisper tiny, and test it on voices that it has not heard."""
    with torch.enable_grad():
        found = measure_words(load_words(fetch("words")), seed=seed)
    Console(width=120).print(found.table())
