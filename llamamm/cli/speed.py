"""Commands that measure speed and memory: `llamamm bench`, `bench train`, `bench harness`, `bench guard`,
`bench speculate`, `bench compile`, `bench same`; and `llamamm experiment gpu`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from llamamm.cli.options import (
    AS_PATH,
    BitsOption,
    DeviceOption,
    DtypeOption,
    FastOption,
    ModelOption,
    SizeOption,
    Speculation,
    err,
    load_judge,
    measuring,
    model_name,
    out,
)
from llamamm.errors import InputError

if TYPE_CHECKING:
    from llamamm.evals.report import Report

bench = typer.Typer(help="Measure the model; `bench train` measures training, `bench harness` multiple choice, "
                    "`bench guard` what a guard costs, `bench speculate` what guessing ahead gains, "
                    "`bench compile` what torch.compile does, `bench same` whether compiled decoding writes the same.",
                    invoke_without_command=True)  # fmt: skip


@bench.callback()
def measure(
    context: typer.Context,
    model: ModelOption = None,
    size: SizeOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of prompt before decoding.")] = 64,
    new_tokens: Annotated[int, typer.Option(help="Tokens to decode.")] = 128,
    prefill_tokens: Annotated[int, typer.Option(help="Length of the prompt whose reading is timed.")] = 1024,
    repeats: Annotated[int, typer.Option(help="Rounds; the median counts.")] = 5,
    fast: FastOption = None,
    bits: BitsOption = None,
    against: Annotated[
        str | None,
        typer.Option(help="'transformers', 'llama.cpp' (its llama-bench: on the PATH, or LLAMA_BENCH names it), or "
                          "'transformers,llama.cpp': the same side by side, in turn."),
    ] = None,
    busy: Annotated[
        bool, typer.Option("--busy", help="Decode again while another process takes one core: what is kept?")
    ] = False,
) -> None:
    """Measure loading, memory, prompt reading and decoding, against the memory's bandwidth."""
    if context.invoked_subcommand:
        return
    from llamamm.devices import default_dtype, pick_device
    from llamamm.evals.speed import run_bench
    from llamamm.text.config import parse_dtype

    torch_device = pick_device(device)
    report = run_bench(
        model_name(model, size), dtype=parse_dtype(dtype) if dtype else default_dtype(torch_device),
        device=torch_device, prompt_tokens=prompt_tokens, new_tokens=new_tokens, prefill_tokens=prefill_tokens,
        repeats=repeats, against=against, busy=busy, fast="auto" if fast is None else fast, bits=bits,
    )  # fmt: skip
    _show(report)


@bench.command("train")
def measure_training(
    model: ModelOption = None,
    size: SizeOption = None,
    device: DeviceOption = None,
    rows: Annotated[int, typer.Option(help="Rows of a step.")] = 4,
    length: Annotated[list[int] | None, typer.Option(help="Tokens of a row. Default: 128, then 512.")] = None,
    r: Annotated[int, typer.Option("--rank", help="LoRA's rank.")] = 8,
    repeats: Annotated[int, typer.Option(help="Rounds; the median counts.")] = 5,
    text: Annotated[bool, typer.Option(help="Rows of words alone.")] = True,
    pictures: Annotated[bool, typer.Option(help="Rows that begin with a picture; a bridge trains, too.")] = True,
    against: Annotated[str | None, typer.Option(help="'transformers': with peft, side by side, in turn.")] = None,
) -> None:
    """Measure seconds and memory of a LoRA step, in fp32: on text, and on pictures and text.

    Each side has a process of its own. Both compute the same: see the last lines of what is printed.
    """
    from llamamm.devices import pick_device
    from llamamm.evals.train_speed import run_train_bench

    report = run_train_bench(
        model_name(model, size), device=pick_device(device), rows=rows, lengths=length or (128, 512), r=r,
        repeats=repeats, against=against, text=text, pictures=pictures,
    )  # fmt: skip
    _show(report)


@bench.command("harness")
def measure_harness(
    model: ModelOption = None,
    size: SizeOption = None,
    device: DeviceOption = None,
    questions: Annotated[int, typer.Option(help="Questions with four answers each.")] = 20,
    repeats: Annotated[int, typer.Option(help="Rounds; the median counts.")] = 3,
    batch_size: Annotated[int, typer.Option(help="That of lm_eval's hf; ours goes by tokens.")] = 8,
) -> None:
    """Measure multiple choice beside lm_eval's own hf backend, side by side, in turn, in fp32."""
    from llamamm.devices import pick_device
    from llamamm.evals.harness_speed import run_harness_bench

    with measuring() as say:
        report = run_harness_bench(model_name(model, size), device=pick_device(device), questions=questions,
                                   repeats=repeats, batch_size=batch_size, say=say)  # fmt: skip
    _show(report)


@bench.command("guard")
def measure_guard(
    guard: Annotated[str, typer.Option(metavar="NAME", help="As in `generate`; 'own' is this package's.")] = "own",
    model: ModelOption = None,
    size: SizeOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of prompt before the answer.")] = 64,
    new_tokens: Annotated[int, typer.Option(help="Tokens of the answer.")] = 128,
    window: Annotated[int, typer.Option(help="Pieces of the answer between two judgements.")] = 16,
    repeats: Annotated[int, typer.Option(help="Rounds; the median counts.")] = 5,
) -> None:
    """Measure what a guard costs: an answer with and without it, and the wait for its first words."""
    from llamamm.devices import default_dtype, pick_device
    from llamamm.evals.guard_speed import run_guard_bench
    from llamamm.text.config import parse_dtype

    torch_device, judge = pick_device(device), load_judge(guard, device)
    report = run_guard_bench(
        model_name(model, size), judge, dtype=parse_dtype(dtype) if dtype else default_dtype(torch_device),
        device=torch_device, prompt_tokens=prompt_tokens, new_tokens=new_tokens, window=window, repeats=repeats,
    )  # fmt: skip
    _show(report)


@bench.command("speculate")
def measure_speculation(
    model: ModelOption = None,
    size: SizeOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    speculate: Annotated[Speculation, typer.Option(help="As in `generate`.")] = Speculation.AUTO,
    new_tokens: Annotated[int, typer.Option(help="Tokens of an answer, at most.")] = 64,
    repeats: Annotated[int, typer.Option(help="Rounds; the median counts.")] = 2,
) -> None:
    """Measure what guessing ahead gains on copying, code and chat, beside what the formula predicts."""
    from llamamm.devices import default_dtype, pick_device
    from llamamm.evals.speculation_speed import run_speculation_bench
    from llamamm.text.config import parse_dtype

    torch_device = pick_device(device)
    with measuring() as say:
        report = run_speculation_bench(
            model_name(model, size), dtype=parse_dtype(dtype) if dtype else default_dtype(torch_device),
            device=torch_device, speculate=speculate.value, new_tokens=new_tokens, repeats=repeats, say=say,
        )  # fmt: skip
    _show(report)


@bench.command("compile")
def measure_compile(
    model: ModelOption = None,
    size: SizeOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the short prompt.")] = 64,
    long_tokens: Annotated[int, typer.Option(help="Tokens of the long prompt.")] = 1024,
    new_tokens: Annotated[int, typer.Option(help="Tokens to decode.")] = 64,
    repeats: Annotated[int, typer.Option(help="Rounds; the median counts.")] = 3,
    mode: Annotated[
        str | None, typer.Option(help="torch.compile's: reduce-overhead, which replays a GPU's steps, or "
                                 "max-autotune.", show_default=False)] = None,
) -> None:  # fmt: skip
    """Measure what torch.compile gives to PyTorch's decoding, and how long it takes; numba's loops are off."""
    from llamamm.devices import default_dtype, pick_device
    from llamamm.evals.compile_speed import run_compile_bench
    from llamamm.text.config import parse_dtype

    torch_device = pick_device(device)
    report = run_compile_bench(
        model_name(model, size), dtype=parse_dtype(dtype) if dtype else default_dtype(torch_device),
        device=torch_device, prompt_tokens=prompt_tokens, long_tokens=long_tokens, new_tokens=new_tokens,
        repeats=repeats, mode=mode, say=err().print,
    )  # fmt: skip
    _show(report)


@bench.command("same")
def measure_same(
    model: ModelOption = None,
    size: SizeOption = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16. Default: float32.")] = None,
    bits: BitsOption = None,
    prompts: Annotated[int, typer.Option(help="Answers to compare.", min=1)] = 20,
    new_tokens: Annotated[int, typer.Option(help="Tokens of each.", min=1)] = 128,
) -> None:
    """Compare compiled decoding with PyTorch on the same weights, token by token; exits with 1 where they differ."""
    from llamamm.evals.same_tokens import compare_tokens, prompts_for
    from llamamm.pretrained.load import from_pretrained
    from llamamm.pretrained.locate import locate
    from llamamm.text.config import parse_dtype

    with measuring() as say:
        name = locate(model_name(model, size))
        number = parse_dtype(dtype or "float32")
        llama, tokenizer = from_pretrained(name, dtype=number, bits=bits, fast=True, progress=False)
        found = compare_tokens(llama, prompts_for(tokenizer, prompts), new_tokens=new_tokens, say=say)
    out().print(found.written(), soft_wrap=True)
    raise typer.Exit(1 if found.differences else 0)


class Shape(StrEnum):
    """Real models' shapes, and one for trying things out."""

    B1 = "1B"
    SMOLLM2 = "smollm2"
    TINY = "tiny"


def gpu(
    model: Annotated[str | None, typer.Argument(help="A text model's asset or folder. Default: smollm2.",
                                                show_default=False)] = None,
    random: Annotated[Shape | None, typer.Option(help="Random weights in that shape instead: nothing is fetched.",
                                                 show_default=False)] = None,
    output: Annotated[Path | None, typer.Option("--out", help="File for the findings, written after each. Default: "
                                                "gpu.json.", show_default=False, **AS_PATH)] = None,
    sections: Annotated[str, typer.Option(help="Some of parity,tokens,speed,half,quantized,training,compile.",
                                          show_default=False)] = "",
    minutes: Annotated[float, typer.Option(help="What has not begun by then is left out, what runs is ended.",
                                           min=0)] = 10,
    few: Annotated[bool, typer.Option("--few", help="Few tokens and rounds, also on a CPU: does it run?")] = False,
    device: DeviceOption = None,
) -> None:  # fmt: skip
    """Try on a GPU what needs one, beside transformers: parity, speed, fp16, few bits, training, torch.compile."""
    from llamamm.devices import pick_device
    from llamamm.evals.speed import import_transformers
    from llamamm.experiments import gpu_run
    from llamamm.files import require_writable
    from llamamm.pretrained.locate import DEFAULT_MODEL, locate

    torch_device = pick_device(device)
    names = [name.strip() for name in sections.split(",") if name.strip()] or list(gpu_run.SECTIONS)
    if unknown := set(names) - set(gpu_run.SECTIONS):
        raise InputError(f"--sections {', '.join(sorted(unknown))}: there are {', '.join(gpu_run.SECTIONS)}")
    if model and random:
        raise InputError(f"{model} and --random {random} name two models; give one of them")
    if torch_device.type != "cuda" and not few:
        raise InputError(f"this is for a GPU, and the best device here is {torch_device}: --few tries whether it runs")
    import_transformers()
    path = None if random else locate(model or DEFAULT_MODEL)
    if path is not None and path.suffix == ".gguf":
        raise InputError(f"{path.name} is a GGUF file, which transformers does not take here; give a folder")
    output = output or Path("gpu.json")
    require_writable(output.parent)
    with TemporaryDirectory() as folder:
        path = path or gpu_run.make_random(random.value, Path(folder))
        setting = gpu_run.Setting(str(path), str(torch_device), **(gpu_run.FEW if few else {}))
        on = gpu_run.machine(torch_device)
        found = []
        for finding in gpu_run.run_sections(setting, names, minutes=minutes, say=err().print):
            found.append(finding)
            gpu_run.write_findings(output, found, about={**on, "model": random or model or DEFAULT_MODEL})
    out(width=160).print(gpu_run.table(found))
    print(output)
    raise typer.Exit(1 if any(one.holds is False for one in found) else 0)


def _show(report: Report) -> None:
    console = out()
    console.print(report.title)
    console.print(report.table())
    for note in report.notes:
        console.print(note, soft_wrap=True)
