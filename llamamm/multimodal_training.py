"""A small multimodal Llama, trained in three stages on a laptop, and what it has learned, on held-out data.

    1 read     the text model alone, from nothing: questions about pictures and sounds that are told in words
    2 align    the bridges alone: the text model, frozen, meets the pictures themselves where the words stood
    3 tune     text model and bridges together

The towers, a DINOv2 and Whisper's encoder, are pretrained and stay frozen in all three. The order is that of LLaVA: a
text model that can read is given eyes, and only then is all of it tuned. For a model as small as this the order hardly
matters: lesson 14 measures it.

Source: LLaVA, arXiv:2304.08485. Used in notebook 14.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import nn

from llamamm.audio import AudioEncoder
from llamamm.config import TextConfig
from llamamm.errors import CheckpointError
from llamamm.image_processor import ImageProcessor
from llamamm.losses import IGNORE
from llamamm.multimodal import MultimodalLlama
from llamamm.multimodal_config import BridgeConfig, MultimodalConfig
from llamamm.multimodal_data import Encoder, Task, Tasks, epochs, load_tasks, texts_of, train_tokenizer
from llamamm.multimodal_processor import MultimodalProcessor
from llamamm.pretrained import load_tokenizer
from llamamm.towers import load_audio_encoder, load_vision_tower
from llamamm.train.config import TrainConfig
from llamamm.train.optim import learning_rate, make_optimizer
from llamamm.vision import VisionTower

SIDE = 84  # pixels: 6 x 6 patches of 14
VOCAB = 1024
SHARES = {"vqa": 0.35, "caption": 0.4, "word": 0.1, "both": 0.15}  # of the steps
BLIND = 0.25  # of the steps in which questions about pictures come with nothing: what a question alone gives away


@dataclass(frozen=True)
class Stage:
    """Steps of one kind. version: how items are asked, one of multimodal_data.VERSIONS; text, bridges: what trains."""

    name: str
    version: str
    steps: int
    text: bool
    bridges: bool
    learning_rate: float = 1e-3


def stages(read: int = 1500, align: int = 700, tune: int = 4500) -> tuple[Stage, ...]:
    """The three, with so many steps each."""
    return (Stage("read", "told", read, text=True, bridges=False),
            Stage("align", "shown", align, text=False, bridges=True),
            Stage("tune", "shown", tune, text=True, bridges=True))  # fmt: skip


@dataclass(frozen=True)
class Towers:
    """The pretrained eye and ear, frozen, and what prepares pictures for the eye."""

    vision: VisionTower
    audio: AudioEncoder
    images: ImageProcessor


def load_towers(device: torch.device | str = "cpu") -> Towers:
    """The assets "vit-s" and "whisper-tiny", fetched if they must be. Raises FetchError."""
    images = replace(ImageProcessor.dinov2(), resize=(SIDE, SIDE), crop=None)
    return Towers(load_vision_tower("vit-s", dtype=torch.float32, device=device),
                  load_audio_encoder("whisper-tiny", dtype=torch.float32, device=device), images)  # fmt: skip


def small_config(towers: Towers, *, vocab_size: int = VOCAB, **changes: Any) -> MultimodalConfig:
    """The shape that a laptop trains: a Llama of two wide blocks around the towers. changes: of MultimodalConfig."""
    text = TextConfig(vocab_size=vocab_size, context_length=256, hidden_size=256, intermediate_size=672, n_layers=2,
                      n_heads=8, n_kv_heads=2, dtype=torch.float32)  # fmt: skip
    values = {"text": text, "vision": towers.vision.cfg, "audio": towers.audio.cfg,
              "image_bridge": BridgeConfig("mlp", merge=2), "audio_bridge": BridgeConfig("swiglu", merge=8),
              "image_layer": -4, "image_size": (SIDE, SIDE)}  # fmt: skip
    return MultimodalConfig(**{**values, **changes})


# ---- training ----


def train_stage(
    model: MultimodalLlama,
    encoder: Encoder,
    tasks: Mapping[str, Task],
    stage: Stage,
    *,
    seed: int = 0,
    batch_size: int = 32,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train on tasks, by kind, and give the loss of each step. on_step: called with its number and its loss.

    A step sees one kind, drawn by SHARES of those that there are. The seed decides all; model is left in training mode.
    Raises ConfigError where nothing trains.
    """
    if stage.steps == 0:
        return []
    model.set_trainable(text=stage.text, bridges=stage.bridges).train()
    cfg = TrainConfig.make({"output": "unused", "steps": stage.steps, "learning_rate": stage.learning_rate,
                            "warmup_steps": min(50, stage.steps // 4), "min_learning_rate": 0.05,
                            "weight_decay": 0.05, "beta2": 0.98})  # fmt: skip
    optimizer = make_optimizer(model, cfg)
    draw = np.random.Generator(np.random.PCG64(seed))
    orders = {kind: epochs(len(task), batch_size=batch_size, generator=draw) for kind, task in tasks.items()}
    shares = np.array([SHARES[kind] for kind in tasks])
    device, curve = model.embed_tokens.weight.device, []
    for step in range(stage.steps):
        kind = draw.choice(list(tasks), p=shares / shares.sum())
        blind = stage.version == "told" and kind == "vqa" and draw.random() < BLIND
        ids, targets, features = encoder.batch(tasks[kind], next(orders[kind]), "blind" if blind else stage.version)
        targets = targets.to(device)
        hidden = model.hidden_states(ids.to(device), features=features and features.to(device))
        learned = targets != IGNORE
        loss = F.cross_entropy(model.lm_head(hidden[learned]), targets[learned])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, cfg)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], cfg.clip_norm)
        optimizer.step()
        curve.append(loss.item())
        if on_step is not None:
            on_step(step, curve[-1])
    return curve


# ---- measurement ----


@torch.no_grad()
def count_right(
    model: MultimodalLlama, encoder: Encoder, task: Task, *, version: str = "shown", batch_size: int = 64
) -> int:
    """How many items are answered exactly, the token that ends the answer too, always taking the likeliest token.

    All tokens of an answer are scored at once: each is the likeliest behind the right ones before it just where
    writing them one by one gives this answer.
    """
    model.eval()
    device, right = model.embed_tokens.weight.device, 0
    for i in range(0, len(task), batch_size):
        ids, targets, features = encoder.batch(task, range(i, min(i + batch_size, len(task))), version)
        guesses = model(ids.to(device), features=features and features.to(device)).argmax(dim=-1).cpu()
        right += int(((guesses == targets) | (targets == IGNORE)).all(dim=1).sum())
    return right


def misled(task: Task, seed: int = 0) -> Task:
    """The same questions, each about the picture or sound of another item: what a model gets that does not look."""
    rows = np.random.Generator(np.random.PCG64(seed)).permutation([item.row for item in task.items]).tolist()
    return replace(task, items=[replace(item, row=row) for item, row in zip(task.items, rows, strict=True)])


@dataclass(frozen=True)
class Score:
    """right of n items after a stage, asked in one version. what: the held-out set."""

    what: str
    how: str
    right: int
    n: int


def measure(model: MultimodalLlama, encoder: Encoder, tests: Mapping[str, Task], *, how: str) -> list[Score]:
    """Scores on held-out sets as the model stands, shown. how: said in the table."""
    return [Score(what, how, count_right(model, encoder, task), len(task)) for what, task in tests.items()]


def measure_saved(
    folder: str | Path, *, device: torch.device | str = "cpu", say: Callable[[str], None] = lambda _line: None
) -> list[Score]:
    """Baselines, scores and controls of a model that `train-multimodal` has saved. Raises CheckpointError, FetchError.
    """
    model = MultimodalLlama.from_pretrained(folder, dtype=torch.float32, device=device)
    tokenizer = load_tokenizer(Path(folder))
    if tokenizer is None or model.multimodal_cfg.vision is None or model.multimodal_cfg.audio is None:
        raise CheckpointError(f"{folder} holds no model with a tokenizer, an eye and an ear; "
                              f"`llamamm train-multimodal` makes one")
    processor = MultimodalProcessor.load(Path(folder), tokenizer)
    tasks = load_tasks(model.multimodal_cfg, model.vision_tower, model.audio_encoder, processor.images,
                       only_tests=True, say=say)  # fmt: skip
    encoder = Encoder(model.multimodal_cfg, tokenizer)
    scores = measure(model, encoder, tasks.test, how="as saved")
    return [*baselines(tasks), *scores, *controls(model, encoder, tasks.test["questions"])]


def controls(model: MultimodalLlama, encoder: Encoder, task: Task) -> list[Score]:
    """The same model on questions without any picture, and with the picture of another question."""
    blind, other = count_right(model, encoder, task, version="blind"), count_right(model, encoder, misled(task))
    return [Score("questions", "no picture", blind, len(task)),
            Score("questions", "another's picture", other, len(task))]  # fmt: skip


def baselines(tasks: Tasks) -> list[Score]:
    """Answers that look at nothing: the commonest one, and for each question text the one it has most often, for a text
    that training lacks the commonest of all."""
    test, out = tasks.test["questions"], []
    answers = Counter(item.answer for item in tasks.train["vqa"].items)
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    for item in tasks.train["vqa"].items:
        by_text[item.question][item.answer] += 1
    for how, said in (("commonest answer", lambda _question: answers),
                      ("commonest for the text", lambda question: by_text[question] or answers)):
        right = sum(said(item.question).most_common(1)[0][0] == item.answer for item in test.items)
        out.append(Score("questions", how, right, len(test)))
    return out


def table(scores: Sequence[Score]) -> Table:
    """Scores as a table, a line each."""
    shown = Table("held out", "", title_justify="left")
    for title in ("N", "right", "share"):
        shown.add_column(title, justify="right")
    for score in scores:
        shown.add_row(score.what, score.how, str(score.n), str(score.right), f"{score.right / score.n:.1%}")
    return shown


# ---- all of it ----


@dataclass
class Trained:
    """The model and its processor, the losses of each stage, the scores, and the seconds of each part."""

    model: MultimodalLlama
    processor: MultimodalProcessor
    encoder: Encoder
    tasks: Tasks
    curves: dict[str, list[float]] = field(default_factory=dict)
    scores: list[Score] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def train_small(
    *,
    plan: Sequence[Stage] | None = None,
    seed: int = 0,
    towers: Towers | None = None,
    tasks: Tasks | None = None,
    config: Callable[..., MultimodalConfig] = small_config,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda _line: None,
    on_step: Callable[[str, int, float], None] | None = None,
) -> Trained:
    """Train the small model by the plan, and measure it on held-out data after each stage that shows things.

    towers, tasks: what was loaded before; by default load_towers(), load_tasks(). say: gets a line of progress;
    on_step: the stage's name, the step, its loss. The caller's random numbers are left as they are.
    Raises FetchError, MissingDependencyError.
    """
    begin = time.perf_counter()
    towers = towers or load_towers(device)
    tasks = tasks or load_tasks(config(towers), towers.vision, towers.audio, towers.images, say=say)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(texts_of(tasks), Path(folder), vocab_size=VOCAB)
    cfg = config(towers, vocab_size=tokenizer.vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MultimodalLlama(cfg, vision=towers.vision, audio=towers.audio).to(device)
    encoder = Encoder(cfg, tokenizer)
    done = Trained(model, MultimodalProcessor(cfg, tokenizer, towers.images), encoder, tasks)
    done.scores += baselines(tasks)
    done.seconds["features"] = time.perf_counter() - begin
    for stage in stages() if plan is None else plan:
        begin = time.perf_counter()
        say(f"stage {stage.name}: {stage.steps:,} steps")
        step = None if on_step is None else partial(on_step, stage.name)
        done.curves[stage.name] = train_stage(model, encoder, tasks.train, stage, seed=seed, on_step=step)
        done.seconds[stage.name] = time.perf_counter() - begin
        begin = time.perf_counter()
        if stage.version == "shown":
            done.scores += measure(model, encoder, tasks.test, how=f"after {stage.name}")
        else:
            test = tasks.test["questions"]
            blind = count_right(model, encoder, test, version="blind")
            done.scores.append(Score("questions", f"after {stage.name}: no picture", blind, len(test)))
        done.seconds["measuring"] = done.seconds.get("measuring", 0) + time.perf_counter() - begin
    done.scores += controls(model, encoder, tasks.test["questions"])
    model.eval()
    return done
