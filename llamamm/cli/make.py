"""Commands that make and measure models: `llamamm train`, `train-multimodal`, `merge`, `bench`, `bench train`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from rich.console import Console

from llamamm.cli.options import DEFAULT_MODEL, DeviceOption, DtypeOption, ModelOption, SizeOption, err, model_name
from llamamm.devices import default_dtype, pick_device
from llamamm.errors import ConfigError
from llamamm.evals.senses import table as score_table
from llamamm.evals.speed import run_bench
from llamamm.evals.train_speed import run_train_bench
from llamamm.experiments.small_multimodal import stages, train_small
from llamamm.files import write_file
from llamamm.lora.adapter_files import load_adapter, read_adapter_config
from llamamm.lora.lora import merge_lora
from llamamm.pretrained.load import from_pretrained
from llamamm.pretrained.save import save_pretrained
from llamamm.text.config import parse_dtype
from llamamm.train.config import TrainConfig, explain_keys
from llamamm.train.run import run_training
from llamamm.weights.saving import refuse_foreign_files

# typer joins lines; an empty one keeps each key on its own
KEYS = "Keys of CONFIG:\n\n" + "\n\n".join(explain_keys().splitlines())
bench = typer.Typer(help="Measure the model; `bench train` measures training.", invoke_without_command=True)


def train(
    config: Annotated[Path, typer.Argument(help="A YAML file of `key: value` lines; the keys are listed below.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, in place of the file's. May be given several times.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the output folder's last checkpoint.")] = False,
) -> None:
    """Train a model, in full or with LoRA, as a file says. Under torchrun in many processes at once."""
    with torch.enable_grad():
        run_training(TrainConfig.from_yaml(config, **_changes(set_ or [])), resume=resume)


def train_multimodal(
    output: Annotated[Path, typer.Argument(help="Folder to write the model to.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same model on the same machine.", min=0)] = 0,
    read: Annotated[int, typer.Option(help="Steps of stage 1: the text model learns to read.", min=0)] = 1500,
    align: Annotated[int, typer.Option(help="Steps of stage 2: the bridges alone.", min=0)] = 700,
    tune: Annotated[int, typer.Option(help="Steps of stage 3: bridges and text model.", min=0)] = 4500,
    device: DeviceOption = None,
) -> None:
    """Train a small Llama that sees and hears, in three stages, and print what it knows of held-out data.

    It answers questions about easy-VQA's pictures, names OpenMoji's, and recognises twenty spoken words.
    """
    refuse_foreign_files(output)  # before the minutes, not after
    plan, mean = stages(read, align, tune), {}

    def note(stage: str, step: int, loss: float) -> None:
        mean[stage] = 0.98 * mean.get(stage, loss) + 0.02 * loss
        if (step + 1) % 250 == 0:
            err.print(f"  {stage} {step + 1:,}: loss {mean[stage]:.3f}")

    with torch.enable_grad():
        done = train_small(plan=plan, seed=seed, device=pick_device(device), say=err.print, on_step=note)
    save_pretrained(done.model, output, processor=done.processor)
    notes = {"seed": seed, "steps": {stage.name: stage.steps for stage in plan}, "seconds": done.seconds,
             "scores": [asdict(score) for score in done.scores], "losses": done.curves}  # fmt: skip
    write_file(output / "training.json", json.dumps(notes) + "\n")
    Console(width=120).print(score_table(done.scores))
    print(output)


def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of a LoRA adapter.")],
    output: Annotated[Path, typer.Argument(help="Folder to write the merged model to.")],
    model: ModelOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Put an adapter into its base's weights, and save the result as an ordinary model."""
    name = model or read_adapter_config(adapter).get("base_model_name_or_path") or DEFAULT_MODEL
    llama, tokenizer = from_pretrained(name, dtype=parse_dtype(dtype) if dtype else None)
    load_adapter(llama, adapter)
    merge_lora(llama, keep_base=False)
    save_pretrained(llama, output, tokenizer=tokenizer)
    print(output)


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
    against: Annotated[str | None, typer.Option(help="'transformers': the same side by side, in turn.")] = None,
) -> None:
    """Measure loading, memory, prompt reading and decoding, against the memory's bandwidth."""
    if context.invoked_subcommand:
        return
    torch_device = pick_device(device)
    run_bench(
        model_name(model, size), dtype=parse_dtype(dtype) if dtype else default_dtype(torch_device),
        device=torch_device, prompt_tokens=prompt_tokens, new_tokens=new_tokens, prefill_tokens=prefill_tokens,
        repeats=repeats, against=against,
    )  # fmt: skip


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
    run_train_bench(
        model_name(model, size), device=pick_device(device), rows=rows, lengths=length or (128, 512), r=r,
        repeats=repeats, against=against,
    )  # fmt: skip


def _changes(pairs: list[str]) -> dict[str, Any]:
    """`["steps=10", "lora_targets=[q_proj]"]` -> values as YAML reads them."""
    bad = [pair for pair in pairs if "=" not in pair]
    if bad:
        raise ConfigError(f"--set takes key=value, got {bad[0]!r}")
    try:
        return {key.strip(): yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    except yaml.YAMLError as error:
        raise ConfigError(f"--set: {' '.join(str(error).split())}") from None
