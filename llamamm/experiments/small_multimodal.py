"""A small multimodal Llama, trained in three stages on a laptop, and measured on held-out data.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llamamm.evals.senses import Score, baselines, controls, count_right, measure
from llamamm.multimodal.config import BridgeConfig, MultimodalConfig
from llamamm.multimodal.model import MultimodalLlama
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.pretrained.towers import load_audio_encoder, load_vision_tower
from llamamm.senses.audio import AudioEncoder
from llamamm.senses.image_processor import ImageProcessor
from llamamm.senses.vision import VisionTower
from llamamm.tasks.items import Tasks, texts_of
from llamamm.tasks.senses import load_tasks
from llamamm.text.config import TextConfig
from llamamm.train.media_rows import RowMaker
from llamamm.train.stages import Stage, run_stage
from llamamm.train.tokenizer import train_tokenizer

SIDE = 84  # pixels: 6 x 6 patches of 14
VOCAB = 1024


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
    image_processor: ImageProcessor


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


@dataclass
class Trained:
    """The model and its processor, the losses of each stage, the scores, and the seconds of each part."""

    model: MultimodalLlama
    processor: MultimodalProcessor
    encoder: RowMaker
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
    tasks = tasks or load_tasks(config(towers), towers.vision, towers.audio, towers.image_processor, say=say)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(texts_of(tasks), Path(folder), vocab_size=VOCAB)
    cfg = config(towers, vocab_size=tokenizer.vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MultimodalLlama(cfg, vision=towers.vision, audio=towers.audio).to(device)
    encoder = RowMaker(cfg, tokenizer)
    done = Trained(model, MultimodalProcessor(cfg, tokenizer, towers.image_processor), encoder, tasks)
    done.scores += baselines(tasks)
    done.seconds["features"] = time.perf_counter() - begin
    for stage in stages() if plan is None else plan:
        begin = time.perf_counter()
        say(f"stage {stage.name}: {stage.steps:,} steps")
        step = None if on_step is None else partial(on_step, stage.name)
        done.curves[stage.name] = run_stage(model, encoder, tasks.train, stage, seed=seed, on_step=step)
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
