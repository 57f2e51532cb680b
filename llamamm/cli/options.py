"""Options that several commands share."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamamm.errors import FetchError, InputError, LlamammError

if TYPE_CHECKING:
    from rich.console import Console

    from llamamm.generation.guarded import Judge

SIZES = {"1B": "meta-llama/Llama-3.2-1B-Instruct", "3B": "meta-llama/Llama-3.2-3B-Instruct"}


@cache
def err() -> Console:
    """Where notes and errors go. Made when it is needed: help waits for nothing that it does not show."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False)  # recipe:guard: is no soldier


def out(**options: Any) -> Console:
    """Where a command's tables go. options: rich's."""
    from rich.console import Console

    return Console(highlight=False, emoji=False, **options)


def path(text: str) -> Path:
    """A file or folder of this machine. An address is refused in its own words: as a path it loses a slash."""
    if re.match(r"\w{2,}://", text):
        raise FetchError(f"{text} is an address; files are read from this machine, so download it first")
    return Path(text)


AS_PATH: dict[str, Any] = {"parser": path}  # for every option and argument that is a Path


class Speculation(StrEnum):
    """Whether tokens are guessed ahead of the model."""

    AUTO = "auto"
    OFF = "off"
    LOOKUP = "lookup"


def speculation_of(asked: Speculation, compile: bool) -> str:
    """A compiled model would be compiled again, in the midst of an answer, for calls of several tokens."""
    return "off" if compile and asked is Speculation.AUTO else asked.value


class Size(StrEnum):
    """Llama 3.2's text models."""

    B1 = "1B"
    B3 = "3B"


ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Hub id (owner/name), folder, .gguf file, or asset name (see `llamamm fetch --list`). "
        "Default: smollm2, a 135M chat model, fetched once.",
        show_default=False,
    ),
]
SizeOption = Annotated[
    Size | None, typer.Option(help="Llama 3.2 Instruct in this size, from the Hub (needs access and a token).")
]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16. Default: what this device multiplies fast.")
]
KeptDtypeOption = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16. Default: the model's own.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps. Default: the best there is.")]
TemperatureOption = Annotated[
    float, typer.Option(help="0 always takes the best token; higher is more varied.")
]
TopKOption = Annotated[int | None, typer.Option(help="Choose among the K best tokens only.")]
TopPOption = Annotated[float, typer.Option(help="Choose among the best tokens that reach this probability together.")]
MinPOption = Annotated[
    float | None, typer.Option(help="Choose among tokens at least so many times as probable as the best, such as 0.05.")
]
PenaltyOption = Annotated[float, typer.Option(help="Above 1, tokens that occurred already become less likely.")]
LengthOption = Annotated[int, typer.Option(help="Stop after so many tokens.")]
SeedOption = Annotated[int | None, typer.Option(help="The same seed gives the same answer.")]
AdapterOption = Annotated[
    Path | None,
    typer.Option(help="Folder of a LoRA adapter. Without --model its own base is loaded.", show_default=False,
                 **AS_PATH),
]  # fmt: skip
ImageOption = Annotated[
    list[Path] | None,
    typer.Option(help="A picture, for a model that sees; several times for several. They stand before the text, or "
                 "where it says <image>.", show_default=False, **AS_PATH),
]  # fmt: skip
AudioOption = Annotated[
    list[Path] | None,
    typer.Option(help="A sound file, for a model that hears; before the text, or where it says <audio>.",
                 show_default=False, **AS_PATH),
]  # fmt: skip
SystemOption = Annotated[str | None, typer.Option(help="A system message: how the model should answer.")]
RawOption = Annotated[bool, typer.Option("--raw", help="Continue the text as it stands, without the chat format.")]
GuardOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", show_default=False,
                 help="Judge the prompt and the answer, and show nothing judged unsafe: 'own' is this package's guard; "
                 "or the Hub id or folder of another, such as a Llama Guard. What is refused is one line on standard "
                 "error; `generate` then ends with exit code 3, `chat` goes on."),
]  # fmt: skip
FastOption = Annotated[
    bool | None,
    typer.Option("--fast/--no-fast", show_default=False,
                 help="Decode by compiled loops, on a CPU; needs numba. Default: where they win."),
]  # fmt: skip
BitsOption = Annotated[
    int | None,
    typer.Option(help="Of the text model's weights: 8 or 4 rounds them; 16 keeps those of a 16-bit file as they are, "
                 "while all else is float32. Less memory, faster on a CPU."),
]  # fmt: skip
SpeculateOption = Annotated[
    Speculation,
    typer.Option(help="Guess that the answer goes on as the text did before, and read several tokens in one call: "
                 "while it pays, never, or always. The answer is the same."),
]  # fmt: skip
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile the model first: minutes of waiting, then faster on a GPU.")
]


@contextmanager
def measuring() -> Iterator[Callable[[str, int, int], None]]:
    """Progress of a measurement, say(set, done, all): a bar on a terminal; elsewhere a line for each set, and one every
    quarter of a minute between."""
    if err().is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        tasks: dict[str, Any] = {}
        with Progress(*columns, console=err(), transient=True) as bar:

            def draw(title: str, done: int, n: int) -> None:
                if title not in tasks:
                    tasks[title] = bar.add_task(title, total=n)
                bar.update(tasks[title], completed=done)

            yield draw
        return
    last = [0.0]

    def line(title: str, done: int, n: int) -> None:
        if done == n or time.monotonic() - last[0] > 15:
            last[0] = time.monotonic()
            err().print(f"{title}: {done:,} of {n:,}", markup=False, soft_wrap=True)

    yield line


def load_judge(name: str | None, device: str | None) -> Judge | None:
    """The guard that --guard names, on the device of --device; None where it names none. Raises InputError."""
    if name is None:
        return None
    if not name.strip():
        raise InputError("--guard is empty; give 'own', a Hub id or a folder, or leave it out")
    from llamamm.devices import pick_device
    from llamamm.safety.guard import load_guard

    torch_device = pick_device(device)
    try:
        return load_guard(name, device=torch_device)
    except LlamammError as error:  # of two models that are loaded, which
        hint = "; 'own' is the one that comes with this package" if isinstance(error, FetchError) else ""
        raise type(error)(f"--guard: {error}{hint}") from None


def model_name(model: str | None, size: Size | None) -> str:
    """The model that the options name. Raises InputError where they name two, or one without a name."""
    if model is not None and not model.strip():
        raise InputError("--model is empty; give a name, a folder or a file, or leave it out")
    if model and size:
        raise InputError(f"--model {model} and --size {size} name two models; give one of them")
    from llamamm.pretrained.locate import DEFAULT_MODEL

    return SIZES[size] if size else model or DEFAULT_MODEL
