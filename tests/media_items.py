"""Small questions, pictures and sounds, and the texts of a small tokenizer, for tests of tasks and of rows."""

import torch

from llamamm.assets.easy_vqa import Questions
from llamamm.tasks.items import ANY, CAPTION, WORD

VOCAB = 350
TEXTS = ["user", "assistant", "\n\n", "what colour?", "red", "blue", WORD, CAPTION, ANY, "seven", "a blue circle"] * 9


def questions(*rows, n=8):
    """(question, answer, image) each, about n black pictures."""
    columns = (list(column) for column in zip(*rows, strict=True))
    return Questions(torch.zeros(n, 3, 64, 64, dtype=torch.uint8), *columns)


def sounds(*lengths, seed=0):
    """Features of sounds of so many places, 32 wide; beyond them large numbers that none may see."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(len(lengths), max(lengths), 32, generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return rows.masked_fill(~mask[..., None], 999).half(), mask


def pictures(n, seed=0):
    return torch.randn(n, 16, 32, generator=torch.Generator().manual_seed(seed)).half()


ASKED = questions(("what is the blue shape?", "circle", 2), ("is there a circle?", "no", 5),
                  ("is there a blue shape?", "yes", 2))  # fmt: skip
