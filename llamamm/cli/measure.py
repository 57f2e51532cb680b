"""Commands that measure what was learned, on held-out data: `llamamm eval retrieval`, `words`, `multimodal`, `fusion`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from llamamm.assets.fetch import fetch
from llamamm.assets.openmoji import load_pictures
from llamamm.assets.spoken_words import load_words
from llamamm.cli.options import DeviceOption, err
from llamamm.devices import pick_device
from llamamm.evals.senses import measure_saved
from llamamm.evals.senses import table as score_table
from llamamm.experiments.fusion_ways import comparison, run_comparison
from llamamm.experiments.retrieval import measure_retrieval
from llamamm.experiments.word_recognition import measure_words

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


@evaluate.command()
def multimodal(
    folder: Annotated[Path, typer.Argument(help="What `llamamm train-multimodal` has written.")],
    device: DeviceOption = None,
) -> None:
    """Ask a small multimodal model about pictures and sounds that it has not met, beside answers that do not look."""
    scores = measure_saved(folder, device=pick_device(device), say=err.print)
    Console(width=120).print(score_table(scores))


@evaluate.command()
def fusion(
    steps: Annotated[int, typer.Option(help="Steps of each way.", min=1)] = 2000,
    read: Annotated[int, typer.Option(help="Steps in which their common text model learns to read.", min=1)] = 1500,
    seed: Annotated[int, typer.Option(help="The same seed gives the same models on the same machine.")] = 0,
    device: DeviceOption = None,
) -> None:
    """Give one text model eyes in three ways, on the same questions, and compare them on held-out pictures."""
    with torch.enable_grad():
        ways, tasks = run_comparison(steps=steps, read=read, seed=seed, device=pick_device(device), say=err.print)
    Console(width=120).print(comparison(ways, tasks))
