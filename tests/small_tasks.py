"""Tasks of four pictures and two sounds whose features say what they are, and small models that learn them."""

import pytest
import torch

from llamamm import TextConfig
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import Features, MultimodalLlama
from llamamm.tasks.items import WORD, Item, Task, both_items
from llamamm.train.media_rows import RowMaker
from llamamm.train.stages import Stage

COLOURS, SPOKEN = ("red", "blue", "green", "gray"), ("seven", "go")


def make_tasks():
    """Four pictures and two sounds, of 5 and 9 places, whose features say what they are; a question about each."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 1, 32, generator=generator).expand(-1, 16, -1).half()
    sounds = torch.randn(2, 1, 32, generator=generator).expand(-1, 9, -1).half()
    mask = torch.arange(9) < torch.tensor([[5], [9]])
    seen = [Item("which colour?", colour, row, f"a {colour} circle") for row, colour in enumerate(COLOURS)]
    heard = [Item(WORD, word, row, word) for row, word in enumerate(SPOKEN)]
    return {"vqa": Task("vqa", seen, Features(images)),
            "word": Task("word", heard, Features(sounds=sounds, sound_mask=mask)),
            "both": Task("both", both_items(seen, heard), Features(images, sounds, mask))}  # fmt: skip


TASKS = make_tasks()
MODES = {"spliced": {}, "cross": {"cross_layers": (1,), "n_prompts": 2}}
modes = pytest.mark.parametrize("changes", MODES.values(), ids=MODES)


def build(tokenizer, changes=None, seed=0):
    torch.manual_seed(seed)
    text = TextConfig.tiny(vocab_size=tokenizer.vocab_size)
    return MultimodalLlama(MultimodalConfig.tiny(text=text, **(changes or {})))


def encoder_of(model, tokenizer):
    return RowMaker(model.multimodal_cfg, tokenizer)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


TUNE = Stage("tune", "shown", 120, text=True, bridges=True, learning_rate=5e-3)
