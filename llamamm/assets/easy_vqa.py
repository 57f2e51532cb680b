"""Questions about small pictures, made of a published wheel: Victor Zhou's easy-VQA.

    a wheel -> 5,000 pictures of one shape in one colour -> images.npz
               48,248 questions, 13 answers              -> train.jsonl, test.jsonl; the credit, LICENSE.txt

"is there not a blue shape?" - "no". Pictures and questions were drawn at random by a program, and split by it: 1,000
pictures are the test, none of them in training to the pixel, though every shape, colour and question text is. Three in
four questions are yes or no, and most of those are answered as the text alone suggests: there are 8 colours, so seldom
is it blue. Whoever reports a share right puts `majority` and `text_only_best` beside it, which look at no picture.

Fetched by `llamamm.assets.fetch` as "easy-vqa". Used from notebook 13 on.
"""

from __future__ import annotations

import io
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from torch import Tensor

from llamamm.errors import InputError
from llamamm.files import write_file
from llamamm.senses.images import image_tensor

SIZE = 64  # pixels along a side
SIDES = ("train", "test")
FILES = ("images.npz", *(f"{side}.jsonl" for side in SIDES), "LICENSE.txt")

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
YES_NO = ("yes", "no")
ANSWERS = (*YES_NO, *SHAPES, *COLOURS)  # all 13


@dataclass(frozen=True, eq=False)
class Questions:
    """pixels: uint8 (n_images, 3, 64, 64). questions, answers, images: one each; images: of which row of pixels.

    Raises InputError for a set that is empty or does not fit together.
    """

    pixels: Tensor
    questions: list[str]
    answers: list[str]
    images: list[int]

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.shape[1:] != (3, SIZE, SIZE):
            raise InputError(f"pixels must be uint8 (n, 3, {SIZE}, {SIZE}), got {self.pixels.dtype} "
                             f"{tuple(self.pixels.shape)}")
        lengths = len(self.questions), len(self.answers), len(self.images)
        if len(set(lengths)) > 1 or lengths[0] == 0:
            raise InputError(f"as many questions as answers and images, and at least one; got {lengths[0]} questions, "
                             f"{lengths[1]} answers, {lengths[2]} images")
        if not 0 <= min(self.images) <= max(self.images) < len(self.pixels):
            raise InputError(f"questions about images {min(self.images)} to {max(self.images)}, of {len(self.pixels)}")
        if unknown := set(self.answers) - set(ANSWERS):
            raise InputError(f"answers {sorted(unknown)}; they are {', '.join(ANSWERS)}")

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def is_yes_no(self) -> list[bool]:
        """Of each question, whether its answer is yes or no."""
        return [answer in YES_NO for answer in self.answers]

    def pairs(self) -> list[tuple[str, str]]:
        """(question, answer) of each."""
        return list(zip(self.questions, self.answers, strict=True))

    def only(self, *, yes_no: bool) -> Questions:
        """The questions that are answered by yes or no, or the others. The pixels are shared, not copied."""
        return self._take([i for i, is_one in enumerate(self.is_yes_no) if is_one == yes_no])

    def subset(self, n: int, seed: int = 0) -> Questions:
        """n different questions at random; of one seed, more begin with fewer. The pixels are shared, not copied.

        Raises InputError where there are not so many.
        """
        if not 1 <= n <= len(self):
            raise InputError(f"a subset has 1 to {len(self):,} questions, got n={n:,}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self._take(order[:n].tolist())

    def _take(self, rows: Sequence[int]) -> Questions:
        columns = ([column[i] for i in rows] for column in (self.questions, self.answers, self.images))
        return Questions(self.pixels, *columns)


def load_questions(folder: str | Path) -> tuple[Questions, Questions]:
    """(train, test) of a folder that `fetch("easy-vqa")` gives. Raises InputError for any other."""
    folder = Path(folder)
    try:
        with (folder / "images.npz").open("rb") as file, np.load(file, allow_pickle=False) as packed:
            train, test = (_read_side(folder, side, packed[side]) for side in SIDES)
    except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile, zlib.error) as error:
        raise InputError(f"{folder} holds no whole set of questions ({error}); delete it and run `llamamm fetch "
                         f"easy-vqa` again") from None
    return train, test


def _read_side(folder: Path, side: str, pixels: np.ndarray) -> Questions:
    rows = [json.loads(line) for line in (folder / f"{side}.jsonl").read_text(encoding="utf-8").splitlines()]
    columns = ([row[key] for row in rows] for key in ("question", "answer", "image"))
    return Questions(torch.from_numpy(pixels), *columns)


# ---- what can be had without looking ----


def right_without_looking(train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """How many (question, answer) pairs of `test` come out right with the commonest answer of `train` for all, and with
    the one that a question's text has most often there; of equals the first of the alphabet."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in train:
        counts[question][answer] += 1
    always = _commonest(Counter(answer for _, answer in train))
    by_text = {question: _commonest(found) for question, found in counts.items()}
    return (sum(answer == always for _, answer in test),
            sum(answer == by_text.get(question, always) for question, answer in test))  # fmt: skip


def majority(train: Questions, test: Questions) -> float:
    """The share of `test` that is right when every question gets the commonest answer of `train`."""
    return right_without_looking(train.pairs(), test.pairs())[0] / len(test)


def text_only_best(train: Questions, test: Questions) -> float:
    """The share of `test` that is right when a question gets the answer that its text has most often in `train`.

    No model that sees no picture can be expected to do better. A text that `train` lacks gets the commonest answer.
    """
    return right_without_looking(train.pairs(), test.pairs())[1] / len(test)


def _commonest(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))  # of equals the first of the alphabet


# ---- the folder ----


def write_questions(wheel: Path, folder: Path) -> None:
    """Write FILES into `folder`, from the wheel easy-vqa. No random numbers: everybody's pixels and lines are equal."""
    pixels = {}
    with ZipFile(wheel) as archive:
        for side in SIDES:
            data = f"easy_vqa/data/{side}"
            numbers, pixels[side] = _read_images(archive, f"{data}/images")
            rows = {number: row for row, number in enumerate(numbers)}
            records = ({"question": question, "answer": answer, "image": rows[number]}
                       for question, answer, number in json.loads(archive.read(f"{data}/questions.json")))
            write_file(folder / f"{side}.jsonl", "".join(json.dumps(record) + "\n" for record in records))
        own = archive.read(next(n for n in archive.namelist() if n.endswith(".dist-info/LICENSE"))).decode()
    packed = io.BytesIO()
    np.savez_compressed(packed, **pixels)
    write_file(folder / "images.npz", packed.getvalue())
    write_file(folder / "LICENSE.txt", f"{CREDIT}\n{own}")


def _read_images(archive: ZipFile, within: str) -> tuple[list[int], np.ndarray]:
    """The numbers of all images of a folder, ascending, and their pixels (n, 3, 64, 64)."""
    paths = (PurePosixPath(name) for name in archive.namelist())
    numbers = sorted(int(path.stem) for path in paths if str(path.parent) == within and path.suffix == ".png")
    return numbers, np.stack([image_tensor(archive.read(f"{within}/{number}.png")).numpy() for number in numbers])


CREDIT = """\
Pictures, questions and answers: easy-VQA 1.0 by Victor Zhou, https://github.com/vzhou842/easy-VQA, as packed in
easy-vqa 1.0, under the licence below.
Changed here: the pixels of all pictures in one file, images.npz; a line for each question in train.jsonl and
test.jsonl, "image" being the picture's place among those of its side. Nothing is left out, and the split is its own.
"""
