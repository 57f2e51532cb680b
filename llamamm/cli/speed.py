"""Commands that measure speed and memory: `llamamm bench`, `bench train`, `bench harness`, `bench guard`,
`bench speculate`, `bench same`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llamamm.cli.options import (
    BitsOption,
    DeviceOption,
    DtypeOption,
    FastOption,
    ModelOption,
    SizeOption,
    Speculation,
    load_judge,
    measuring,
    model_name,
    out,
)

if TYPE_CHECKING:
    from llamamm.evals.report import Report

bench = typer.Typer(help="Measure the model; `bench train` measures training, `bench harness` multiple choice, "
                    "`bench guard` what a guard costs, `bench speculate` what guessing ahead gains, `bench same` "
                    "whether compiled decoding writes the same.",
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
    against: Annotated[str | None, typer.Option(help="'transformers': with peft, side by side, in turn.")] = None,
) -> None:
    """Measure seconds and memory of a LoRA step, in fp32."""
    from llamamm.devices import pick_device
    from llamamm.evals.train_speed import run_train_bench

    report = run_train_bench(
        model_name(model, size), device=pick_device(device), rows=rows, lengths=length or (128, 512), r=r,
        repeats=repeats, against=against,
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


@bench.command("same")
def measure_same(
    model: ModelOption = None,
    size: SizeOption = None,
    dtype: DtypeOption = None,
    bits: BitsOption = None,
    prompts: Annotated[int, typer.Option(help="Answers to compare.")] = 20,
    new_tokens: Annotated[int, typer.Option(help="Tokens of each.")] = 128,
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


def _show(report: Report) -> None:
    console = out()
    console.print(report.title)
    console.print(report.table())
    for note in report.notes:
        console.print(note, soft_wrap=True)
