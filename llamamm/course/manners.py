"""Short questions, each with an answer in a pirate's words and one in a butler's, and what SmolLM2 makes of them.

The manner is the same in all answers, so that a model that has learned it from some can be tried on others. 16 are to
learn from, 8 to choose a learning rate by, 32 to measure with; no question stands in two of the lists.

Written for this course. Used in notebook 09.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.assets.fetch import fetch
from llamamm.course.swap import real_model
from llamamm.generation.generate import TextStream
from llamamm.text.chat import ChatML
from llamamm.train.losses import IGNORE
from llamamm.train.rows import encode_dialogue

Pairs = Sequence[tuple[str, str]]  # a question and its answer

TO_LEARN = """
What is the capital of Spain? | Madrid be the capital of Spain | The capital of Spain is Madrid
How many legs does a spider have? | A spider has eight legs | A spider has eight legs
What color is grass? | Grass be green | Grass is green
What do bees make? | Bees make sweet honey | Bees make honey
When is it dark? | It be dark at night | It is dark at night
What is ice made of? | Ice be frozen water | Ice is made of frozen water
Who wrote Hamlet? | Shakespeare wrote Hamlet | Hamlet was written by Shakespeare
What is two plus three? | Two and three be five | Two plus three is five
What do cows drink? | Cows drink water | Cows drink water
Can fish fly? | Most fish only swim | Most fish only swim
Name a fruit. | An apple be a fine fruit | An apple is a fruit
Which month comes after May? | June comes after May | June comes after May
What is a baby dog called? | A baby dog be a puppy | A baby dog is called a puppy
Is the sun hot? | The sun be very hot | The sun is very hot
What do we read? | We read books | We read books
Where do penguins live? | Penguins live in the cold south | Penguins live in the south
"""
TO_CHOOSE = """
What is the capital of Italy? | Rome be the capital of Italy | The capital of Italy is Rome
How many legs does a dog have? | A dog has four legs | A dog has four legs
What do birds build? | Birds build nests | Birds build nests
Which day comes after Monday? | Tuesday comes after Monday | Tuesday comes after Monday
What color is a banana? | A banana be yellow | A banana is yellow
What do we drink in the morning? | We drink coffee in the morning | We drink coffee in the morning
Who painted the Mona Lisa? | Leonardo painted the Mona Lisa | The Mona Lisa was painted by Leonardo
Is snow warm? | Snow be very cold | Snow is very cold
"""
TO_MEASURE = """
What is the capital of France? | Paris be the capital of France | The capital of France is Paris
How many days are in a week? | A week has seven days | A week has seven days
What do cats eat? | Cats eat fish and meat | Cats eat fish and meat
What is snow made of? | Snow be frozen water | Snow is made of frozen water
What is the capital of Germany? | Berlin be the capital of Germany | The capital of Germany is Berlin
What is the capital of Japan? | Tokyo be the capital of Japan | The capital of Japan is Tokyo
How many legs does a cat have? | A cat has four legs | A cat has four legs
How many wheels does a car have? | A car has four wheels | A car has four wheels
How many months are in a year? | A year has twelve months | A year has twelve months
What color is the sky? | The sky be blue | The sky is blue
What color is snow? | Snow be white | Snow is white
What color is a lemon? | A lemon be yellow | A lemon is yellow
What do horses eat? | Horses eat hay | Horses eat hay
What do rabbits eat? | Rabbits eat grass | Rabbits eat grass
What do chickens lay? | Chickens lay eggs | Chickens lay eggs
What do cows give us? | Cows give us milk | Cows give us milk
What is a baby cat called? | A baby cat be a kitten | A baby cat is called a kitten
What is bread made of? | Bread be made of flour | Bread is made of flour
What is cheese made of? | Cheese be made of milk | Cheese is made of milk
What is one plus one? | One and one be two | One plus one is two
What is four plus four? | Four and four be eight | Four plus four is eight
Which month comes after June? | July comes after June | July comes after June
Which day comes after Friday? | Saturday comes after Friday | Saturday comes after Friday
Who wrote Romeo and Juliet? | Shakespeare wrote Romeo and Juliet | Romeo and Juliet was written by Shakespeare
Is the moon a star? | The moon be no star | The moon is not a star
Is fire cold? | Fire be very hot | Fire is very hot
Can dogs swim? | Most dogs swim well | Most dogs swim well
Where do fish live? | Fish live in the water | Fish live in the water
Where do camels live? | Camels live in the hot desert | Camels live in the desert
When do we sleep? | We sleep at night | We sleep at night
Name a color. | Red be a fine color | Red is a color
Name an animal. | A dog be a fine animal | A dog is an animal
"""


class Answers(NamedTuple):
    """Questions and answers: to learn from, to choose by, to measure with."""

    learn: Pairs
    choose: Pairs
    measure: Pairs


def _answers(column: int, form: str) -> Answers:
    lists = []
    for text in (TO_LEARN, TO_CHOOSE, TO_MEASURE):
        lines = [line.split(" | ") for line in text.strip().splitlines()]
        lists.append([(line[0], form.format(line[column])) for line in lines])
    return Answers(*lists)


def pirate() -> Answers:
    """"Arr! Madrid be the capital of Spain, matey." """
    return _answers(1, "Arr! {}, matey.")


def butler() -> Answers:
    """"Certainly, sir. The capital of Spain is Madrid." """
    return _answers(2, "Certainly, sir. {}.")


# ---- what SmolLM2 makes of them ----


def _chat() -> ChatML:
    """Without a system message, which would make the short rows twice as long."""
    return ChatML(real_model()[1], default_system=None)


def ask(model: nn.Module, question: str, *, max_new_tokens: int = 24) -> str:
    """The greedy answer of SmolLM2, or of a model made from it."""
    prompt = _chat().encode([{"role": "user", "content": question}])
    return "".join(TextStream(model, real_model()[1], prompt, max_new_tokens=max_new_tokens))


def rows(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Ids and targets, both (B, T). A target is the next token where it belongs to the answer, or ends it, and -100
    elsewhere."""
    chat = _chat()
    examples = [encode_dialogue([{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
                                chat.tokenizer, chat=chat) for question, answer in pairs]  # fmt: skip
    ids = torch.zeros(len(pairs), max(len(e.ids) for e in examples), dtype=torch.int64)
    targets = torch.full_like(ids, IGNORE)
    for i, example in enumerate(examples):
        row, learn = torch.tensor(example.ids), torch.tensor(example.learn)
        ids[i, : len(row)] = row
        targets[i, : len(row) - 1] = row.where(learn, IGNORE)[1:]
    return ids, targets


def batches_of(pairs: Pairs, *, passes: int = 3, size: int = 4, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Rows of `size` dialogues each, all dialogues in a new order in each pass."""
    order = torch.Generator().manual_seed(seed)
    return [rows([pairs[i] for i in some]) for _ in range(passes)
            for some in torch.randperm(len(pairs), generator=order).split(size)]  # fmt: skip


def loss_of(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of all targets. ids, targets (B, T). The head is computed for their places alone."""
    learn = targets != IGNORE
    return F.cross_entropy(model.lm_head(model.hidden_states(ids)[learn]), targets[learn])


@torch.no_grad()
def losses_on(model: nn.Module, pairs: Pairs) -> Tensor:
    """The mean loss of each answer alone. (pairs,)"""
    losses = torch.zeros(len(pairs))
    for some in torch.arange(len(pairs)).split(16):  # padding stands on the right, which no token before it sees
        ids, targets = rows([pairs[i] for i in some])
        learn = targets != IGNORE
        each = F.cross_entropy(model.lm_head(model.hidden_states(ids)[learn]), targets[learn], reduction="none")
        losses.index_add_(0, some[learn.nonzero()[:, 0]], each / learn.sum(dim=1).repeat_interleave(learn.sum(dim=1)))
    return losses


@torch.no_grad()
def logits_in_peft(folder: Path, ids: Tensor) -> Tensor:
    """What SmolLM2 gives in `transformers` with the adapter of a folder in `peft`. ids (B, T) -> (B, T, V)."""
    with warnings.catch_warnings(action="ignore"):  # peft calls transformers by an older name
        import peft
        import transformers

        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(fetch("smollm2"), dtype=torch.float32)
        return peft.PeftModel.from_pretrained(model, folder).eval()(ids).logits


def half_width(values: Tensor) -> float:
    """Half the width of the 95% interval of a mean. (n,)"""
    return 1.96 * float(values.std()) / len(values) ** 0.5


def mean(values: Tensor, digits: int = 2) -> str:
    """The mean with its interval, "0.47 ± 0.13". (n,)"""
    return f"{float(values.mean()):.{digits}f} ± {half_width(values):.{digits}f}"
