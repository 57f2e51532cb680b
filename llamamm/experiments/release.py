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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llamamm.evals.card_report import markdown, save
from llamamm.evals.evaluate import evaluate
from llamamm.evals.score_card import SUITES, Card, Say
from llamamm.experiments.release_data import write_data
from llamamm.files import read_json, replace_folder, write_file
from llamamm.pretrained.compose import read_composed_config
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
NOT_ABOUT_SENSES = ("quartz", "socialiqa", "mmlu", "instructions")  # half an hour more: `llamamm eval` asks them
CARD = """\
# senses

SmolLM2-135M-Instruct that sees with ViT-S/14 and hears with Whisper tiny's encoder: two bridges and a LoRA adapter
(r = 8) in bf16. The three models are not in here; `from_pretrained("senses")` fetches them.

    llamamm chat --model senses --image a.png
    llamamm generate "What is said?" --model senses --audio b.wav

**Made by** `llamamm experiment release OUT`{made}.

**Learned from** easy-VQA (MIT), OpenMoji (CC BY-SA 4.0), arcade
sprites and sounds (CC0 1.0), paintings of the Met (CC0 1.0), and clips of the synthesiser eSpeak NG that read chats
(chitchat-dataset, MIT) and an encyclopedia (Wikipedia, CC BY-SA 4.0; chatterbot-corpus, BSD). So that less is
forgotten, articles of Wikipedia came between, and plain questions with SmolLM2's own answers.

**What it is for**: lessons, and a start for training on your own data. It knows flat shapes in eight colours and much
of what a synthesiser says; drawings it names in part, photographs and people's voices hardly. What it does not see or
hear it makes up.

## Figures

Held out, 95 % intervals in brackets, by `llamamm eval senses --suite full --against smollm2 --whisper --out OUT`;
card.json there has every answer.
Beside it, where it can be asked, the text model that it was made from. Of Wikipedia, other articles were read again in
training.

{figures}"""


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
    card, base = measure(str(folder), output / "card", suite="quick" if quick else "full", whisper=not quick,
                         say=lambda title, n, n_all: say(f"{title}: {n:,} of {n_all:,}"))  # fmt: skip
    write_card(card, base, folder, made=f"seed {seed}, {minutes:.0f} minutes")
    return folder


def measure(
    model: str, out: Path, *, suite: str = "full", whisper: bool = True, say: Say = lambda _title, _n, _all: None
) -> tuple[Card, Card]:
    """The score cards of a skill and of the text model that it was made from, in `out`, where both go on."""
    sets = [name for name in SUITES[suite] if name not in NOT_ABOUT_SENSES]
    card = evaluate(model, suite=suite, sets=sets, out=out, beside=whisper, dtype=torch.float32, say=say)
    base = evaluate(PARTS["text"], suite=suite, sets=sets, lacking="skip", out=out / "against", dtype=torch.float32,
                    say=say)  # fmt: skip
    save(card, out, base)
    return card, base


def write_card(card: Card, base: Card, folder: Path, *, made: str = "") -> None:
    """card.json, with every answer, and the model card, into a skill's folder."""
    card.save(folder)
    text = CARD.format(made=f": {made}" if made else "", figures=markdown(card, base))
    write_file(folder / "README.md", text)


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
