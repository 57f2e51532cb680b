"""`senses`, the skill that comes with this package: SmolLM2 with an eye and an ear. One command makes it.

    data    what the assets hold, as files of records                              -> OUT/data
    align   the bridges alone, towards the words of pictures and sounds            -> OUT/align
    tune    bridges and LoRA, on answers about pictures, sounds, and on plain ones -> OUT/tune
    store   in bf16, with a card that the measurement fills                        -> OUT/senses

`llamamm experiment release OUT` goes on where it was stopped. Read in notebooks 14 and 16.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llamamm.experiments.release_data import write_data
from llamamm.files import read_json, replace_folder, write_file
from llamamm.train.config import TrainConfig
from llamamm.train.run import run_training

PARTS = {
    "text": "smollm2", "vision": "vit-s", "audio": "whisper-tiny",
    "image_size": 168,  # 12 x 12 patches, 9 tokens a picture
    "image_bridge": {"width": 256},  # narrow ones: 15 MB for all
    "audio_bridge": {"merge": 4},  # 12.5 tokens a second
}  # fmt: skip
NAME = "senses"


def settings(output: Path, *, seed: int = 0, quick: bool = False) -> TrainConfig:
    """Of the two stages. quick: two steps each, to try the whole."""
    data = output / "data"

    def sources(**shares: float) -> list[dict[str, Any]]:
        return [{"source": str(data / f"{name}.jsonl"), "share": share} for name, share in shares.items()]

    align = {
        "name": "align", "method": "align", "steps": 2 if quick else 2000, "batch_size": 32, "learning_rate": 2e-3,
        "warmup_steps": 50, "data": sources(speech=10, shapes=2, drawings=3, words=1),
    }  # fmt: skip
    tune = {
        "name": "tune", "trains": ["bridges", "lora"], "steps": 2 if quick else 700, "batch_size": 4,
        "learning_rate": 1e-3, "warmup_steps": 30,
        "data": sources(questions=4, drawings=2.5, paintings=0.3, speech=4, words=0.8, sounds=0.2, plain=0.7),
    }  # fmt: skip
    return TrainConfig.make({
        "output": str(output), "compose": PARTS, "features": str(output / "features"), "seed": seed,
        "device": "cpu", "precision": "bf16", "length": 512, "lora_r": 8, "lora_alpha": 16.0, "save_every": 100,
        "stages": [align, tune],
    })  # fmt: skip


def make_release(
    output: Path, *, seed: int = 0, quick: bool = False, say: Callable[[str], None] = lambda _line: None
) -> Path:
    """Data, both stages, and the skill in bf16 in output/senses, still without its card. -> that folder."""
    output.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    if not (output / "data").exists():
        write_data(output / "data", seed=seed, say=say)
    run_training(settings(output, seed=seed, quick=quick), resume=(output / "base").exists())
    store(output / "tune" / "last", output / NAME)
    say(f"{(time.monotonic() - begin) / 60:.0f} minutes")
    return output / NAME


def store(skill: Path, folder: Path) -> None:
    """A skill's files in bf16 and without what only a training needs, as the package holds them."""
    with replace_folder(folder) as new:
        for path in sorted(skill.glob("*.safetensors")):
            if path.name in ("adapter_model.safetensors", "bridges.safetensors"):
                with safe_open(path, framework="pt") as file:
                    about = file.metadata()
                save_file({name: t.to(torch.bfloat16) for name, t in load_file(path).items()}, new / path.name, about)
        about = {**read_json(skill / "skill.json"), "base": NAME}
        write_file(new / "skill.json", json.dumps(about, indent=2) + "\n")
        shutil.copy(skill / "adapter_config.json", new / "adapter_config.json")
