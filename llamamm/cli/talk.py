"""Commands that talk: `llamamm generate` and `llamamm chat`; and one that listens: `llamamm transcribe`.

As in all commands, what imports torch is imported where it is used: `--help` and a wrong option do not wait for it.
"""

from __future__ import annotations

import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from llamamm.cli.options import (
    AS_PATH,
    AdapterOption,
    AudioOption,
    BitsOption,
    CompileOption,
    DeviceOption,
    DtypeOption,
    FastOption,
    GuardOption,
    ImageOption,
    LengthOption,
    MinPOption,
    ModelOption,
    PenaltyOption,
    RawOption,
    SeedOption,
    Size,
    SizeOption,
    SpeculateOption,
    Speculation,
    SystemOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    err,
    load_judge,
    model_name,
    speculation_of,
)
from llamamm.cli.together import load_together, n_processes
from llamamm.errors import InputError

if TYPE_CHECKING:
    from llamamm.generation.guarded import Refusal
    from llamamm.generation.prompts import Image, Processor, Sound
    from llamamm.generation.session import ChatSession
    from llamamm.text.model import Llama3Model


class PromptCommand(TyperCommand):
    """A command that takes a prompt: one that begins with a dash, and so looks like an option, gets a hint."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """As typer does. Raises InputError where an unknown option looks like a sentence or a number."""
        given = list(args)  # the parser empties it
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # click's NoSuchOption, which typer brings along under another name
            unknown = getattr(error, "option_name", None)
            for word in given if unknown else ():
                named = word.startswith(unknown) and " " in unknown  # "--nope=a b" is an option with a value
                if unknown[:2] != "--":
                    named = word[:2] != "--" and unknown[1] in word
                if named and _is_prompt(word):
                    raise InputError(f"{_quoted(word)} begins with a dash, as options do; a prompt that does goes "
                                     f"after --: llamamm {self.name} -- {_quoted(word)}") from None
            raise


def _is_prompt(word: str) -> bool:
    """Whether a word that begins with a dash is something to say: it holds a space, or no letter follows the dash."""
    return word.startswith("-") and word != "--" and (" " in word or not word.lstrip("-")[:1].isalpha())


def _quoted(word: str) -> str:
    """As a shell takes it: in double quotes unless it holds what they do not keep from the shell."""
    return shlex.quote(word) if any(c in word for c in '"$`\\!') else f'"{word}"'


def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What to answer. '-' reads it from standard input.")],
    image: ImageOption = None,
    audio: AudioOption = None,
    model: ModelOption = None,
    size: SizeOption = None,
    adapter: AdapterOption = None,
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
    guard: GuardOption = None,
    fast: FastOption = None,
    bits: BitsOption = None,
    speculate: SpeculateOption = Speculation.AUTO,
    compile: CompileOption = False,
) -> None:
    """Answer one prompt, as it is written, with images and sounds for a model that sees and hears.

    Under torchrun a text model is split over the processes.

    Exit code 3: --guard refused the prompt or the rest of the answer.
    """
    from llamamm.generation.generate import TextStream
    from llamamm.generation.guarded import GuardedStream, media_reader
    from llamamm.generation.prompts import Image, Sound, on_device, place_media
    from llamamm.generation.sampling import SamplingConfig

    sampling = SamplingConfig(temperature, top_k, top_p, min_p, repetition_penalty)
    judge = load_judge(guard, device)
    llama, processor = _load(model, size, dtype, device, compile, adapter, fast, bits, guard, context=context)
    text = sys.stdin.read() if prompt == "-" else prompt
    parts = place_media(text, images=[Image(f) for f in image or ()], sounds=[Sound(f) for f in audio or ()])
    system_message = [{"role": "system", "content": system}] if system and not raw else []
    messages = [*system_message, {"role": "user", "content": parts if image or audio else text}]
    read = processor.prompt(parts) if raw else processor.chat(messages)
    device_here = llama.embed_tokens.weight.device
    stream = TextStream(
        llama, processor.tokenizer, read.ids, inputs=on_device(read.inputs, device_here), device=device_here,
        max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, stop=stop or (),
        speculate=speculation_of(speculate, compile),
    )  # fmt: skip
    pieces: TextStream | GuardedStream = stream
    if judge is not None:
        pieces = GuardedStream(stream, judge, messages, transcribe=media_reader(llama, processor))
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)  # before what goes to standard error
    if isinstance(pieces, GuardedStream) and pieces.refusal:
        _say_refusal(pieces.refusal)
        raise typer.Exit(3)
    _say_why_it_stopped(stream.stop_reason, max_new_tokens)


def chat(
    image: ImageOption = None,
    audio: AudioOption = None,
    model: ModelOption = None,
    size: SizeOption = None,
    adapter: AdapterOption = None,
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
    guard: GuardOption = None,
    fast: FastOption = None,
    bits: BitsOption = None,
    speculate: SpeculateOption = Speculation.AUTO,
    compile: CompileOption = False,
) -> None:
    """Talk with the model, from the first message on about a picture or a sound where one is given.

    Ctrl-C stops an answer, Ctrl-D leaves; /help lists the commands.
    """
    from llamamm.generation.sampling import SamplingConfig
    from llamamm.generation.session import ChatSession

    sampling = SamplingConfig(temperature, top_k, top_p, min_p, repetition_penalty)
    media = [_opened("/image", file) for file in image or ()] + [_opened("/audio", file) for file in audio or ()]
    judge = load_judge(guard, device)
    llama, processor = _load(model, size, dtype, device, compile, adapter, fast, bits)
    if media:
        processor.prompt(media)  # a model that cannot take them says so now, not after the first message
    session = ChatSession(
        llama, processor, system=system, sampling=sampling, max_new_tokens=max_new_tokens, context_size=context_size,
        seed=seed, guard=judge, speculate=speculation_of(speculate, compile),
    )  # fmt: skip
    with suppress(ImportError):  # arrow keys and history at the prompt, where the platform has them
        import readline  # noqa: F401
    typed = sys.stdin.isatty()
    if typed:
        err().print("Type a message; /help lists the commands, Ctrl-D leaves.")
    for file in (*(image or ()), *(audio or ())):
        err().print(f"({file.name} goes with your first message)", markup=False, soft_wrap=True)
    while True:
        try:
            line = _ask().strip()
        except EOFError:
            if typed:
                err().print()
            return
        except KeyboardInterrupt:
            if not typed:
                raise
            err().print("\n(Ctrl-D or /exit leaves)")
            continue
        if line in ("/exit", "/quit"):
            return
        if line.startswith("/"):
            _chat_command(session, line, media)
        elif line:
            _answer(session, line, media)
            media.clear()


def transcribe(
    file: Annotated[Path, typer.Argument(help="WAV; with the audio extra FLAC, OGG or MP3 too.", **AS_PATH)],
    model: Annotated[
        str, typer.Option(help="A Whisper: Hub id (owner/name), folder, or asset name.")
    ] = "whisper-tiny",
    language: Annotated[str, typer.Option(help="What is spoken, for a multilingual Whisper: en, de, ...")] = "en",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16. Default: float32.")] = None,
    device: DeviceOption = None,
) -> None:
    """Write down what is said in a recording: a line for each window of up to 30 seconds, cut where it is quiet."""
    from llamamm.devices import pick_device
    from llamamm.generation.transcribe import transcribe as write_down
    from llamamm.pretrained.towers import load_whisper
    from llamamm.senses.waves import load_wave
    from llamamm.text.config import parse_dtype

    torch_device, torch_dtype = pick_device(device), parse_dtype(dtype or "float32")
    wave = load_wave(file)  # before the model: what is wrong with the file shows at once
    whisper, tokens = load_whisper(model, language=language, dtype=torch_dtype, device=torch_device)
    if not write_down(whisper, tokens, wave, on_window=lambda text: print(text, flush=True) if text else None):
        err().print("(nobody speaks in it, as far as the model can tell)")


def _ask() -> str:
    """The next line. The prompt is for somebody who types: nowhere else, and never in an output that is piped on."""
    if sys.stdin.isatty() and not sys.stdout.isatty():
        err().print("> ", end="")
    return input("> " if sys.stdin.isatty() and sys.stdout.isatty() else "")


def _answer(session: ChatSession, line: str, media: list[Image | Sound]) -> None:
    reply = session.reply(line, media=media)
    try:
        for piece in reply:
            print(piece, end="", flush=True)
        print(flush=True)
        if session.refusal:
            _say_refusal(session.refusal)
        else:
            _say_why_it_stopped(session.stop_reason, session.max_new_tokens)
    except KeyboardInterrupt:
        reply.close()  # keeps what was said so far
        print(flush=True)
        err().print("(stopped)")
    except InputError as error:
        err().print(f"error: {error} (/reset)", markup=False, soft_wrap=True)


def _opened(command: str, file: Path) -> Image | Sound:
    """A picture or a sound, read at once, so that a wrong file is told before a question about it."""
    from llamamm.generation.prompts import Image, Sound
    from llamamm.senses.images import load_image
    from llamamm.senses.waves import load_wave

    return Image(load_image(file)) if command == "/image" else Sound(load_wave(file))


def _chat_command(session: ChatSession, line: str, media: list[Image | Sound]) -> None:
    command, _, rest = line.partition(" ")
    if command in ("/image", "/audio") and rest.strip():
        file = _file_named(rest.strip())
        try:
            media.append(_opened(command, file))
            err().print(f"({file.name} goes with your next message)", markup=False, soft_wrap=True)
        except InputError as error:
            err().print(f"error: {error}", markup=False, soft_wrap=True)
    elif command == "/reset":
        media.clear()
        session.reset()
        err().print("(a new conversation)")
    elif command == "/system" and rest.strip():
        session.reset(system=rest.strip())
        err().print("(a new conversation, with this system message)")
    else:
        err().print("/image FILE    show this picture with the next message\n"
                  "/audio FILE    play this sound with the next message\n"
                  "/reset         forget the conversation\n/system TEXT   start again, with this system message\n"
                  "/exit          leave")  # fmt: skip


def _file_named(text: str) -> Path:
    """A file as people and terminals write its name: as it stands, in quotes, or with a backslash before spaces."""
    as_it_stands = Path(text).expanduser()
    if as_it_stands.exists():
        return as_it_stands
    with suppress(ValueError):  # a quote that is never closed
        words = shlex.split(text)
        if len(words) == 1:
            return Path(words[0]).expanduser()
    return as_it_stands


def _load(
    model: str | None, size: Size | None, dtype: str | None, device: str | None, compile: bool, adapter: Path | None,
    fast: bool | None, bits: int | None, guard: str | None = None, context: typer.Context | None = None,
) -> tuple[Llama3Model, Processor]:  # fmt: skip
    if n_processes() > 1:
        refused = {"--adapter": adapter, "--bits": bits, "--fast": fast, "--compile": compile, "--guard": guard}
        return load_together(context, model_name(model, size), dtype=dtype, device=device, refused=refused)
    if compile and fast:
        raise InputError("--compile and --fast are two ways to be faster; give one of them")
    import torch

    from llamamm.devices import default_dtype, pick_device
    from llamamm.pretrained.ready import load_ready
    from llamamm.text.config import parse_dtype

    torch_device = pick_device(device)
    torch_dtype = parse_dtype(dtype) if dtype else default_dtype(torch_device)
    if torch_dtype == torch.float16 and not dtype:
        err().print(f"(float16: {torch_device} does not multiply bfloat16)")
    named = model_name(model, size) if model or size or not adapter else None  # None: the adapter's own base
    _, llama, processor = load_ready(named, adapter, dtype=torch_dtype, device=torch_device, bits=bits,
                                     fast=False if compile else "auto" if fast is None else fast)  # fmt: skip
    if llama.fast is not None:
        llama.fast.ready()  # what it says the first time comes before the answer, not in its midst
    return (llama.compile(dynamic=True) or llama) if compile else llama, processor


def _say_why_it_stopped(reason: str | None, max_new_tokens: int) -> None:
    if reason == "length":
        err().print(f"(stopped after {max_new_tokens} tokens; --max-new-tokens allows more)")
    elif reason == "context":
        err().print("(stopped: the model's context is full)")


def _say_refusal(refusal: Refusal) -> None:
    """What was refused and why, and none of its words."""
    if refusal.error:
        why = f"could not be judged: {refusal.error}"
    else:
        why = ", ".join(("was judged unsafe", *refusal.categories, f"score {refusal.score:.2f}"))
    err().print(f"(refused: the {refusal.stage} {why})", markup=False, soft_wrap=True)
