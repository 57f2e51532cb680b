"""Three ways to give a Llama eyes, under the same conditions: projection, gated cross-attention, Perceiver.

Each starts from the same text model, which has learned to read; gets about as many new parameters; and sees the same
items in the same order for the same number of steps. What trains is said: the new parts alone, or the text model with
them; the eye never does. What differs is how 36 features of a picture reach the words:

    projection        4 neighbours merged, two linears        9 tokens, a start and an end, spliced between the words
    cross-attention   two linears, a gated block in the Llama one token; the block's words look at all 36
    perceiver         one linear, a block of latents          8 tokens, a start and an end, spliced

Used in notebook 13; `fusion_record` gives each way its own learning rate and several seeds.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from llamamm.assets.easy_vqa import load_questions
from llamamm.assets.fetch import fetch
from llamamm.evals.senses import count_right
from llamamm.experiments.small_multimodal import Towers, small_config
from llamamm.multimodal.config import BridgeConfig
from llamamm.multimodal.model import Features, MultimodalLlama
from llamamm.tasks.items import Task, Tasks, question_items, texts_of
from llamamm.tasks.senses import picture_features
from llamamm.text.config import TextConfig
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.media_rows import RowMaker
from llamamm.train.stages import Stage, run_stage
from llamamm.train.tokenizer import train_tokenizer

# about 313 thousand parameters each, beside a text model 128 wide
WAYS: Mapping[str, Mapping[str, Any]] = {
    "projection": {"image_bridge": BridgeConfig("mlp", merge=2, width=188)},
    "cross-attention": {"image_bridge": BridgeConfig("mlp", width=260), "cross_layers": (1,), "n_prompts": 4},
    "perceiver": {"image_bridge": BridgeConfig("linear", latents=8, depth=1, heads=4)},
}
READ_RATE = 2e-3  # at which the text model learns to read


def text_shape(vocab_size: int) -> TextConfig:
    """A Llama so small that many can be trained on a laptop: two blocks, 128 wide."""
    return TextConfig(vocab_size=vocab_size, context_length=256, hidden_size=128, intermediate_size=336, n_layers=2,
                      n_heads=4, n_kv_heads=2, dtype=torch.float32)  # fmt: skip


def fusion_tasks(
    towers: Towers, *, n_train: int = 1000, n_validation: int = 300, n_test: int | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> Tasks:  # fmt: skip
    """easy-VQA's questions for a shape or a colour, with the eye's features: from the training pictures a part to learn
    from and one to choose on, "validation"; from the test pictures the part to report, "test". say: lines of progress.

    n_validation: 0 leaves that part out; n_test: None takes all 1,000 test pictures. Raises FetchError.
    """
    train, test = (questions.only(yes_no=False) for questions in load_questions(fetch("easy-vqa")))
    layer, parts = small_config(towers).image_layer, {}
    for name, questions, begin, n in (("vqa", train, 0, n_train), ("validation", train, n_train, n_validation),
                                      ("test", test, 0, n_test)):  # fmt: skip
        if n == 0:
            continue
        pixels = questions.pixels[begin : None if n is None else begin + n]
        say(f"looking at {len(pixels):,} pictures")
        items = [replace(item, row=item.row - begin) for item in question_items(questions)
                 if begin <= item.row < begin + len(pixels)]  # fmt: skip
        features = picture_features(towers.vision, towers.image_processor, pixels, layer=layer)
        parts[name] = Task("vqa", items, Features(images=features))
    return Tasks({"vqa": parts.pop("vqa")}, parts)


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
    rates: Mapping[str, float] | None = None,
    tune_text: bool = True,
    names: Sequence[str] = tuple(WAYS),
    seed: int = 0,
    on_step: Callable[[str, int, float], None] | None = None,
) -> list[Way]:
    """Train each way on tasks.train, and count what is right of tasks.test.

    rates: each way's learning rate, 1e-3 where none is given. tune_text: train the text model, too; if not, what was
    added learns alone. The original is left as it is.
    """
    ways = []
    for name in names:
        way = build_way(name, text, tokenizer, towers, seed=seed)
        begin = time.perf_counter()

        def note(step: int, loss: float, way: Way = way) -> None:
            way.gates += [(b.cross_attn_attn_gate.tanh().item(), b.cross_attn_mlp_gate.tanh().item())
                          for b in way.model.gated.values()]  # fmt: skip
            if on_step is not None:
                on_step(way.name, step, loss)

        stage = Stage(name, "shown", steps, text=tune_text, bridges=True, learning_rate=(rates or {}).get(name, 1e-3))
        way.curve = run_stage(way.model, way.encoder, tasks.train, stage, seed=seed, on_step=note)
        way.seconds = time.perf_counter() - begin
        way.right = {what: count_right(way.model, way.encoder, task) for what, task in tasks.test.items()}
        way.model.eval()
        ways.append(way)
    return ways


def reading_model(
    tasks: Tasks, towers: Towers, folder: Path, *, steps: int, seed: int = 0, vocab_size: int = 512
) -> tuple[Llama3Model, Tokenizer]:
    """The text model that all ways start from: trained to read on the tasks told in words. folder: for its tokenizer.
    """
    tokenizer = train_tokenizer(texts_of(tasks), folder, vocab_size=vocab_size)
    cfg = small_config(towers, text=text_shape(tokenizer.vocab_size), audio=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = Llama3Model(cfg.text)
        reader = MultimodalLlama(cfg, text=text, vision=towers.vision)
    stage = Stage("read", "told", steps, text=True, bridges=False, learning_rate=READ_RATE)
    run_stage(reader, RowMaker(cfg, tokenizer), tasks.train, stage, seed=seed)
    return text, tokenizer
