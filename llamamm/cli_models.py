"""Commands that make and measure models: `llamamm train`, `merge`, `bench`, `bench train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml

from llamamm.adapters import load_adapter, read_adapter_config
from llamamm.bench import run_bench
from llamamm.bench_train import run_train_bench
from llamamm.cli_options import DEFAULT_MODEL, DeviceOption, DtypeOption, ModelOption, SizeOption, model_name
from llamamm.config import parse_dtype
from llamamm.devices import default_dtype, pick_device
from llamamm.errors import ConfigError
from llamamm.lora import merge_lora
from llamamm.pretrained import from_pretrained
from llamamm.train.config import TrainConfig, explain_keys
from llamamm.train.run import run_training
from llamamm.weights.saving import save_pretrained

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
