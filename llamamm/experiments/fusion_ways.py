"""Three ways to give a Llama eyes, under the same conditions: projection, gated cross-attention, Perceiver.

Each starts from the same text model, which has learned to read; gets about as many new parameters; and sees the same
items in the same order for the same number of steps. What differs is how 36 features of a picture reach the words:

    projection        4 neighbours merged, two linears        9 tokens, a start and an end, spliced between the words
    cross-attention   two linears, a gated block in the Llama one token; the block's words look at all 36
    perceiver         one linear, a block of latents          8 tokens, a start and an end, spliced

Used in notebook 13; `llamamm experiment fusion` runs it longer.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from llamamm.assets.easy_vqa import load_questions
from llamamm.assets.fetch import fetch
from llamamm.evals.senses import count_right
from llamamm.experiments.small_multimodal import Towers, load_towers, small_config
from llamamm.multimodal.config import BridgeConfig
from llamamm.multimodal.model import Features, MultimodalLlama
from llamamm.tasks.items import Task, Tasks, question_items, texts_of
from llamamm.tasks.senses import picture_features
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.media_rows import RowMaker
from llamamm.train.stages import Stage, run_stage
from llamamm.train.tokenizer import train_tokenizer

# about 1.15 million parameters each
WAYS: Mapping[str, Mapping[str, Any]] = {
    "projection": {"image_bridge": BridgeConfig("mlp", merge=2, width=640)},
    "cross-attention": {"image_bridge": BridgeConfig("mlp", width=720), "cross_layers": (1,), "n_prompts": 4},
    "perceiver": {"image_bridge": BridgeConfig("linear", latents=8, depth=1, heads=8)},
}


@dataclass
class Way:
    """One of the three after training: parameters that were added, tokens that a picture takes in the prompt, features
    that its words look at, seconds of training, losses, and how many held-out items are right."""

    name: str
    model: MultimodalLlama
    encoder: RowMaker
    n_parameters: int
    n_tokens: int
    n_seen: int
    seconds: float = 0.0
    curve: list[float] = field(default_factory=list)
    right: dict[str, int] = field(default_factory=dict)
    gates: list[tuple[float, float]] = field(default_factory=list)  # of the gated block at each step, after tanh


def build_way(name: str, text: Llama3Model, tokenizer: Tokenizer, towers: Towers, *, seed: int = 0) -> Way:
    """One of WAYS around a copy of the text model, with fresh bridges that the seed decides."""
    cfg = small_config(towers, text=text.cfg, audio=None, **WAYS[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MultimodalLlama(cfg, text=copy.deepcopy(text), vision=towers.vision)
    model.set_trainable(text=False, bridges=True)
    added = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Way(name, model, RowMaker(cfg, tokenizer), added, cfg.n_image_places(), cfg.n_image_tokens())


def compare(
    text: Llama3Model,
    tokenizer: Tokenizer,
    towers: Towers,
    tasks: Tasks,
    *,
    steps: int,
    names: Sequence[str] = tuple(WAYS),
    seed: int = 0,
    on_step: Callable[[str, int, float], None] | None = None,
) -> list[Way]:
    """Train each way, text model and bridges together, on tasks.train, and count what is right of tasks.test."""
    ways = []
    for name in names:
        way = build_way(name, text, tokenizer, towers, seed=seed)
        begin = time.perf_counter()

        def note(step: int, loss: float, way: Way = way) -> None:
            way.gates += [(b.cross_attn_attn_gate.tanh().item(), b.cross_attn_mlp_gate.tanh().item())
                          for b in way.model.gated.values()]  # fmt: skip
            if on_step is not None:
                on_step(way.name, step, loss)

        stage = Stage(name, "shown", steps, text=True, bridges=True)
        way.curve = run_stage(way.model, way.encoder, tasks.train, stage, seed=seed, on_step=note)
        way.seconds = time.perf_counter() - begin
        way.right = {what: count_right(way.model, way.encoder, task) for what, task in tasks.test.items()}
        way.model.eval()
        ways.append(way)
    return ways


def comparison(ways: Sequence[Way], tasks: Tasks) -> Table:
    """The ways as a table, a line each."""
    shown = Table("fusion", title_justify="left")
    for title in ("parameters added", "tokens in the prompt", "features seen", "seconds", *tasks.test):
        shown.add_column(title, justify="right")
    for way in ways:
        shares = (f"{way.right[what] / len(task):.1%}" for what, task in tasks.test.items())
        numbers = (f"{way.n_parameters:,}", str(way.n_tokens), str(way.n_seen), f"{way.seconds:.0f}")
        shown.add_row(way.name, *numbers, *shares)
    return shown


def reading_model(
    tasks: Tasks, towers: Towers, folder: Path, *, steps: int, seed: int = 0, vocab_size: int = 512
) -> tuple[Llama3Model, Tokenizer]:
    """The text model that all ways start from: trained to read on the tasks told in words. folder: for its tokenizer.
    """
    tokenizer = train_tokenizer(texts_of(tasks), folder, vocab_size=vocab_size)
    cfg = small_config(towers, vocab_size=tokenizer.vocab_size, audio=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = Llama3Model(cfg.text)
        reader = MultimodalLlama(cfg, text=text, vision=towers.vision)
    run_stage(reader, RowMaker(cfg, tokenizer), tasks.train, Stage("read", "told", steps, text=True, bridges=False),
                seed=seed)  # fmt: skip
    return text, tokenizer


def run_comparison(
    *,
    steps: int,
    read: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda _line: None,
) -> tuple[list[Way], Tasks]:
    """All of easy-VQA: features, a text model that reads, and `compare`. say: gets lines of progress."""
    towers = load_towers(device)
    train, test = load_questions(fetch("easy-vqa"))
    features, layer = [], small_config(towers).image_layer
    for questions in (train, test):
        say(f"looking at {len(questions.pixels):,} pictures")
        seen = picture_features(towers.vision, towers.image_processor, questions.pixels, layer=layer)
        features.append(Features(images=seen))
    tasks = Tasks({"vqa": Task("vqa", question_items(train), features[0])},
                  {"questions": Task("vqa", question_items(test), features[1])})  # fmt: skip
    say(f"learning to read: {read:,} steps")
    with tempfile.TemporaryDirectory() as folder:
        text, tokenizer = reading_model(tasks, towers, Path(folder), steps=read, seed=seed)

    def note(way: str, step: int, loss: float) -> None:
        if (step + 1) % 250 == 0:
            say(f"  {way} {step + 1:,}: loss {loss:.3f}")

    return compare(text, tokenizer, towers, tasks, steps=steps, seed=seed, on_step=note), tasks
