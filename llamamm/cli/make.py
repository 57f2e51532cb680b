"""Commands that make models: `llamamm compose`, `data`, `train`, `plan`, `merge`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from llamamm.cli.options import AS_PATH, KeptDtypeOption, ModelOption, err, out
from llamamm.errors import ConfigError

if TYPE_CHECKING:
    from llamamm.train.loop import Trainer


class TrainCommand(TyperCommand):
    """`train`, whose help ends with the keys of its file: they are imported for that page alone."""

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:
        """As typer does, with the keys; typer joins lines, and an empty one keeps each key on its own."""
        from llamamm.train.config import explain_keys

        self.epilog = "Keys of CONFIG:\n\n" + "\n\n".join(explain_keys().splitlines())
        super().format_help(ctx, formatter)


def _list_recipes(asked: bool) -> None:
    if asked:
        from llamamm.train.recipe import list_recipes

        for name, what in list_recipes().items():
            out().print(f"recipe:{name}  {what}", markup=False, soft_wrap=True)
        raise typer.Exit


def train(
    config: Annotated[
        Path, typer.Argument(help="A YAML file of `key: value` lines, listed below; or recipe:NAME.", **AS_PATH)
    ],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, in place of the file's. May be given several times.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the output folder's last checkpoint.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Show how much memory each stage takes, and leave.")] = False,
    recipes: Annotated[  # noqa: ARG001 (its callback does the work)
        bool, typer.Option("--list-recipes", callback=_list_recipes, is_eager=True, help="Show the recipes and leave.")
    ] = False,
) -> None:
    """Train a model, in full or with LoRA, as a file says. Under torchrun in many processes at once.

    The last line is the folder of what was trained. Ctrl-C stops after a step, with a checkpoint.
    """
    from llamamm.train.config import TrainConfig
    from llamamm.train.run import run_training

    changes = set_ or []
    cfg = TrainConfig.from_yaml(config, **_changes(changes))
    if plan:
        from llamamm.train.plan import plan_memory, table

        out().print(table(plan_memory(cfg)))
        err().print("(on one device; `llamamm plan` counts several, and hours)")
        return
    last, best = cfg.output / "last", cfg.output / "best"
    try:
        trainer = run_training(cfg, resume=resume, score_card=_write_card)
    except KeyboardInterrupt:
        _say_how_to_resume(last, config, changes)
        raise
    if not trainer.processes.is_main:
        return
    cfg = trainer.cfg  # of the stage that ran last, where there are stages
    last, best = cfg.output / "last", cfg.output / "best"
    print(best if best.is_dir() else last)
    out_of_patience = 0 < cfg.patience <= trainer.evaluations_since_best
    if trainer.step < cfg.steps and not out_of_patience:
        err().print(f"stopped at step {trainer.step} of {cfg.steps}")
        _say_how_to_resume(last, config, changes)
        raise typer.Exit(130)


def plan(
    config: Annotated[Path, typer.Argument(help="As of `llamamm train`: a YAML file, or recipe:NAME.", **AS_PATH)],
    gpus: Annotated[int, typer.Option(min=1, help="Devices that train together.")] = 1,
    memory: Annotated[float | None, typer.Option(help="GiB of each: says whether it is enough.")] = None,
    tflops: Annotated[
        float, typer.Option(help="A device's peak, 10^12 operations/s. Default: an A100's in bf16; an H100 has 989.")
    ] = 312.0,
    utilisation: Annotated[float, typer.Option(help="The share of its peak that a device reaches.")] = 0.4,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, in place of the file's. May be given several times.")
    ] = None,
) -> None:
    """Say what a training will take: memory of each GPU as copies (DDP) and as shards (FSDP), tokens and hours.

    Nothing is loaded. Rows are taken to be full; `train --plan` shows the memory of a run on this machine.
    """
    from llamamm.train import budget
    from llamamm.train import plan as counted
    from llamamm.train.config import TrainConfig

    cfg = TrainConfig.from_yaml(config, **_changes(set_ or []))
    cfg = cfg.model_copy(update={"device": cfg.device or "cuda"})
    work = budget.table(budget.plan_work(cfg), gpus=gpus, tflops=tflops, utilisation=utilisation)
    for parallel in ("ddp", "fsdp") if gpus > 1 else (cfg.parallel,):
        plans = counted.plan_memory(cfg.model_copy(update={"parallel": parallel}), gpus=gpus)
        table = counted.table(plans, memory=memory)
        if gpus > 1:
            out().print(f"memory of each of {gpus} GPUs, parallel: {parallel}")
        out().print(table)
    out().print(work)
    rows = "full rows, a picture in each" if getattr(counted.model_shape(cfg), "vision", None) else "full rows"
    out().print(f"hours: on {gpus} x {tflops:g} TFLOP/s at {100 * utilisation:g} % of it; {rows}", soft_wrap=True)


def compose(
    output: Annotated[Path, typer.Argument(help="Folder to write the model to.", **AS_PATH)],
    text: Annotated[str, typer.Option(help="Text model: asset, folder or Hub id.")] = "smollm2",
    vision: Annotated[str, typer.Option(help="Vision tower, or none.")] = "vit-s",
    audio: Annotated[str, typer.Option(help="Audio encoder, or none.")] = "whisper-tiny",
    fusion: Annotated[
        str, typer.Option(help="projector (tokens among the words), gated (blocks that look), perceiver (few tokens).")
    ] = "projector",
    image_size: Annotated[int, typer.Option(help="Pixels of a side that pictures are brought to.", min=1)] = 224,
    dtype: KeptDtypeOption = None,
    seed: Annotated[int, typer.Option(help="Decides the fresh bridges.", min=0)] = 0,
) -> None:
    """Give a text model an eye and an ear, with fresh bridges: what `llamamm train` then trains to see and hear."""
    from llamamm.pretrained.compose import save_composed
    from llamamm.text.config import parse_dtype
    from llamamm.train.seen import read_before
    from llamamm.weights.saving import refuse_foreign_files

    refuse_foreign_files(output)  # before the minutes, not after
    eye, ear = (None if name == "none" else name for name in (vision, audio))
    model = save_composed(output, text=text, vision=eye, audio=ear, fusion=fusion, image_size=image_size, seed=seed,
                          dtype=parse_dtype(dtype) if dtype else None)  # fmt: skip
    read_before(text, eye, ear).save(output)
    counts = {"text": 0, "towers": 0, "bridges": 0}
    for name, p in model.named_parameters():
        part = name.split(".")[0]
        kind = "towers" if part in ("vision_tower", "audio_encoder") else "bridges" if part in model.ADDED else "text"
        counts[kind] += p.numel()
    err().print(", ".join(f"{kind} {n / 1e6:,.1f} M parameters" for kind, n in counts.items()))
    print(output)


def data(
    source: Annotated[str, typer.Argument(help="A .jsonl, .json or .txt file, a folder with metadata.jsonl, or "
                                               "datasets:NAME[:SPLIT], or asset:NAME/FILE.")],
    model: ModelOption = None,
    length: Annotated[int, typer.Option(help="Tokens in a row, as in training.", min=2)] = 512,
) -> None:
    """Check data as training would read them: counts, lengths, faults, and three records."""
    from rich.table import Table

    from llamamm.pretrained.locate import DEFAULT_MODEL
    from llamamm.train.look import look_at

    found = look_at(source, model=model or DEFAULT_MODEL, length=length)
    table = Table("", "", show_header=False, box=None)
    for key, value in found.rows():
        table.add_row(key, value)
    console = out()
    console.print(table)
    for place, text in found.shown:
        console.print(f"\n{place}", markup=False, soft_wrap=True)
        console.print(text, markup=False, soft_wrap=True)
    for fault in found.faults[:10]:
        err().print(fault, markup=False, soft_wrap=True)
    if len(found.faults) > 10:
        err().print(f"and {len(found.faults) - 10} more")
    if found.faults:
        raise typer.Exit(2)


def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of a LoRA adapter, or of a skill.", **AS_PATH)],
    output: Annotated[Path, typer.Argument(help="Folder to write the merged model to.", **AS_PATH)],
    model: ModelOption = None,
    dtype: KeptDtypeOption = None,
) -> None:
    """Put an adapter, or a skill, into its base's weights, and save the result as an ordinary model."""
    from llamamm.pretrained.load import from_pretrained
    from llamamm.pretrained.locate import DEFAULT_MODEL, locate
    from llamamm.pretrained.save import save_pretrained
    from llamamm.pretrained.skill import base_of, load_skill
    from llamamm.text.config import parse_dtype
    from llamamm.train.seen import read_before
    from llamamm.weights.saving import refuse_foreign_files

    refuse_foreign_files(output)  # before the minutes, not after
    name = model or base_of(adapter) or DEFAULT_MODEL
    llama, tokenizer = from_pretrained(name, dtype=parse_dtype(dtype) if dtype else None)
    load_skill(llama, adapter, merge=True)
    save_pretrained(llama, output, tokenizer=tokenizer)
    read_before(locate(name), adapter).save(output)
    print(output)


def _write_card(trainer: Trainer) -> None:
    """The score card that a run's settings ask for, on stderr: the last line of stdout is the run's folder."""
    from llamamm.cli.options import measuring
    from llamamm.evals.card_report import save, table
    from llamamm.evals.evaluate import evaluate_trained

    with measuring() as say:
        card = evaluate_trained(trainer, say=say)
    save(card, trainer.cfg.output / "card")
    err().print(table(card))


def _changes(pairs: list[str]) -> dict[str, Any]:
    """`["steps=10", "lora_targets=[q_proj]"]` -> values as YAML reads them."""
    import yaml

    bad = [pair for pair in pairs if "=" not in pair]
    if bad:
        raise ConfigError(f"--set takes key=value, got {bad[0]!r}")
    try:
        return {key.strip(): yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    except yaml.YAMLError as error:
        raise ConfigError(f"--set: {' '.join(str(error).split())}") from None


def _say_how_to_resume(last: Path, config: Path, changes: list[str]) -> None:
    """One line: the command that goes on, where there is a checkpoint to go on from."""
    if not last.is_dir():
        err().print("stopped before the first checkpoint: nothing was saved")
        return
    words = ["llamamm", "train", str(config), *(w for change in changes for w in ("--set", change)), "--resume"]
    err().print(f"to go on: {shlex.join(words)}", markup=False, soft_wrap=True)
