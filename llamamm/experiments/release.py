"""`senses`, the skill that comes with this package: SmolLM2 with an eye and an ear. One command makes it.

    data    what the assets hold, as files of records                              -> OUT/data
    align   the bridges alone, towards the words of pictures and sounds            -> OUT/align
    tune    LoRA alone, on answers about pictures and sounds, plain ones, and text -> OUT/tune
    store   in bf16, with a card that the measurement fills                        -> OUT/senses

`llamamm experiment release OUT` goes on where it was stopped. Read in notebooks 14 and 16.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llamamm.errors import InputError
from llamamm.experiments.release_card import Line, as_json, card_markdown, cascade, measure_release
from llamamm.experiments.release_data import write_data
from llamamm.files import read_json, replace_folder, write_file
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.pretrained.compose import read_composed_config
from llamamm.pretrained.load import from_pretrained
from llamamm.text.config import parse_dtype
from llamamm.train.config import TrainConfig
from llamamm.train.run import run_training
from llamamm.train.seen import SEEN_FILE

PARTS = {
    "text": "smollm2", "vision": "vit-s", "audio": "whisper-tiny",
    "image_size": 168,  # 12 x 12 patches, 9 tokens a picture
    "image_bridge": {"width": 256},  # narrow ones: 15 MB for all
    "audio_bridge": {"merge": 4, "compact": True},  # 12.5 tokens a second, words first
}  # fmt: skip
NAME = "senses"
CARD = """\
# senses

SmolLM2-135M-Instruct that sees with ViT-S/14 and hears with Whisper tiny's encoder: two bridges and a LoRA adapter
(r = 8) in bf16. The three models are not in here; `from_pretrained("senses")` fetches them.

    llamamm chat --model senses --image a.png
    llamamm generate "What is said?" --model senses --audio b.wav

**Made by** `llamamm experiment release OUT`{made}. **Learned from** easy-VQA (MIT), OpenMoji (CC BY-SA 4.0), arcade
sprites and sounds (CC0 1.0), paintings of the Met (CC0 1.0), and clips of the synthesiser eSpeak NG that read chats
(chitchat-dataset, MIT) and an encyclopedia (Wikipedia, CC BY-SA 4.0; chatterbot-corpus, BSD). So that less is
forgotten, articles of Wikipedia came between, and plain questions with SmolLM2's own answers.

**What it is for**: lessons, and a start for training on your own data. It knows flat shapes in eight colours and much
of what a synthesiser says; drawings it names in part, photographs and people's voices hardly. What it does not see or
hear it makes up.

## Figures

Held out, 95 % intervals in brackets, by `llamamm eval senses --output OUT`; card.json there has every answer.

{figures}
"""


def settings(output: Path, *, seed: int = 0, quick: bool = False) -> TrainConfig:
    """Of the two stages. quick: two steps each, to try the whole."""
    data = output / "data"

    def sources(**shares: float) -> list[dict[str, Any]]:
        return [{"source": str(data / f"{name}.jsonl"), "share": share} for name, share in shares.items()]

    align = {
        "name": "align", "method": "align", "steps": 2 if quick else 2000, "batch_size": 32, "learning_rate": 2e-3,
        "warmup_steps": 50, "data": sources(speech=10, shapes=2, drawings=3, words=1, sounds=0.2),
    }  # fmt: skip
    tune = {
        "name": "tune", "trains": ["lora"], "steps": 2 if quick else 380, "batch_size": 4,
        "learning_rate": 8e-4, "warmup_steps": 20,
        "data": sources(questions=4.5, drawings=2, paintings=0.3, speech=6, words=0.6, sounds=0.2, plain=0.7, text=1),
    }  # fmt: skip
    return TrainConfig.make({
        "output": str(output), "compose": PARTS, "features": str(output / "features"), "seed": seed,
        "device": "cpu", "precision": "bf16", "length": 512, "lora_r": 8, "lora_alpha": 16.0, "save_every": 100,
        "stages": [align, tune],
    })  # fmt: skip


def make_release(
    output: Path, *, seed: int = 0, quick: bool = False, say: Callable[[str], None] = lambda _line: None
) -> Path:
    """Data, both stages, and the skill in bf16 with its card, in output/senses. -> that folder."""
    output.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    if not (output / "data").exists():
        write_data(output / "data", seed=seed, say=say)
    run_training(settings(output, seed=seed, quick=quick), resume=(output / "base").exists())
    folder = output / NAME
    store(output / "tune" / "last", folder)
    minutes = (time.monotonic() - begin) / 60
    say(f"trained in {minutes:.0f} minutes")
    lines = measure(folder, size=0.02 if quick else 1.0, with_cascade=not quick, say=say)
    write_card(lines, folder, made=f"seed {seed}, {minutes:.0f} minutes")
    return folder


def measure(
    model: str | Path, *, size: float = 1.0, with_cascade: bool = True, dtype: str | torch.dtype | None = None,
    device: torch.device | str = "cpu", say: Callable[[str], None] = lambda _line: None,
) -> list[Line]:  # fmt: skip
    """`measure_release` of a skill by its name or folder, beside the text model that it was made from.

    Raises InputError for a model that does not both see and hear, and what loading raises.
    """
    precision = parse_dtype(dtype or torch.float32)
    seeing, processor = from_pretrained(model, dtype=precision, device=device)
    if not isinstance(processor, MultimodalProcessor) or None in (processor.cfg.vision, processor.cfg.audio):
        raise InputError(f"{model} does not both see and hear, as senses does, which `llamamm eval senses` is for")
    base, _ = from_pretrained(PARTS["text"], dtype=precision, device=device)
    return measure_release(seeing, processor, base, size=size, say=say, transcribe=cascade() if with_cascade else None)


def write_card(lines: Sequence[Line], folder: Path, *, made: str = "", name: str = "README.md") -> None:
    """card.json, with every answer, and the model card under `name`, into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "card.json", json.dumps(as_json(lines), indent=1) + "\n")
    text = CARD.format(made=f",\n{made}" if made else "", figures=card_markdown(lines))
    write_file(folder / name, text)


def store(skill: Path, folder: Path) -> None:
    """A skill's files in bf16 and without what only a training needs, as the package holds them."""
    with replace_folder(folder) as new:
        for path in sorted(skill.glob("*.safetensors")):
            if path.name in ("adapter_model.safetensors", "bridges.safetensors"):
                with safe_open(path, framework="pt") as file:
                    about = file.metadata()
                save_file({name: t.to(torch.bfloat16) for name, t in load_file(path).items()}, new / path.name, about)
        if (skill / SEEN_FILE).is_file():
            shutil.copyfile(skill / SEEN_FILE, new / SEEN_FILE)
        about = {**read_json(skill / "skill.json"), "base": NAME}
        write_file(new / "skill.json", json.dumps(about, indent=2) + "\n")
        shape = read_composed_config(**about["compose"]).to_hf()
        write_file(new / "config.json", json.dumps(shape, indent=2) + "\n")
        config = {**read_json(skill / "adapter_config.json"), "base_model_name_or_path": NAME}
        write_file(new / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
