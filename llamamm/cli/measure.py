"""Commands that measure: `llamamm eval` a model that is there already, on held-out data; `llamamm experiment` what one
learns that is trained for the purpose; `llamamm harness` leaves the measuring to lm_eval.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from llamamm.cli.options import AS_PATH, DeviceOption, KeptDtypeOption, err, load_judge, measuring, out
from llamamm.errors import InputError

experiment = typer.Typer(help="Train something small, and measure it on unseen data.", no_args_is_help=True)


class LossName(StrEnum):
    """Contrastive losses."""

    CLIP = "clip"
    SIGLIP = "siglip"


@experiment.command()
def retrieval(
    steps: Annotated[int, typer.Option(help="Steps of training, 128 pictures each.", min=1)] = 2000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same model on the same machine.")] = 0,
    loss: Annotated[LossName, typer.Option(help="What is trained.")] = LossName.CLIP,
    device: DeviceOption = None,
) -> None:
    """Train two small towers on OpenMoji's pictures and names, and find held-out ones: recall@1 and @5."""
    from llamamm.assets.fetch import fetch
    from llamamm.assets.openmoji import load_pictures
    from llamamm.devices import pick_device
    from llamamm.experiments.retrieval import measure_retrieval

    torch_device = pick_device(device)  # a wrong one is refused before anything is fetched
    train, test = load_pictures(fetch("openmoji"))
    found = measure_retrieval(train, test, steps=steps, seed=seed, loss=loss.value, device=torch_device)
    out(width=120).print(found.table())


@experiment.command()
def words(seed: Annotated[int, typer.Option(help="Of the control, an encoder with random weights.")] = 0) -> None:
    """Train a word classifier on the frozen ear of Whisper tiny, and test it on voices that it has not heard."""
    from llamamm.assets.fetch import fetch
    from llamamm.assets.spoken_words import load_words
    from llamamm.experiments.word_recognition import measure_words

    found = measure_words(load_words(fetch("words")), seed=seed)
    out(width=120).print(found.table())


@experiment.command()
def answers(
    folder: Annotated[Path, typer.Argument(help="What `llamamm experiment senses` has written.", **AS_PATH)],
    device: DeviceOption = None,
) -> None:
    """Ask a small multimodal model about pictures and sounds that it has not met, beside answers that do not look."""
    from llamamm.devices import pick_device
    from llamamm.evals.senses import measure_saved
    from llamamm.evals.senses import table as score_table

    scores = measure_saved(folder, device=pick_device(device), say=err().print)
    out(width=120).print(score_table(scores))


class Contaminated(StrEnum):
    """What to do about items that training has read."""

    STOP = "stop"
    SKIP = "skip"


def evaluate(
    words: Annotated[list[str], typer.Argument(metavar="[safety] MODEL", help=(
        "Hub id, folder, .gguf file or asset, such as smollm2 or senses; or a folder that holds a card already. With "
        "the word safety before it: what it refuses, and what talks it round."))],
    against: Annotated[str | None, typer.Option(help="Another one, on the same items: better, worse, or can't tell.",
                                                show_default=False)] = None,
    adapter: Annotated[Path | None, typer.Option(help="Folder of a LoRA adapter of the model.", show_default=False,
                                                 **AS_PATH)] = None,
    suite: Annotated[str, typer.Option(help="quick: some minutes; full: all that is held out; safety: as the word "
                                       "before MODEL.")] = "quick",
    sets: Annotated[str, typer.Option(help="Names of sets in place of the suite's, such as shapes,wiki; a "
                                      "name that is not there lists them all.",
                                      show_default=False)] = "",
    data: Annotated[str | None, typer.Option(help="Own held-out records, as `llamamm data` reads them.",
                                             show_default=False)] = None,
    output: Annotated[Path | None, typer.Option("--out", help="Folder for card.json, with every answer, card.md and "
                                                "card.png, where there are shares to draw; a run that is stopped "
                                                "goes on there.", show_default=False,
                                                **AS_PATH)] = None,
    contaminated: Annotated[Contaminated, typer.Option(help="Where training has read an item: stop, or skip and count."
                                                       )] = Contaminated.STOP,
    whisper: Annotated[bool, typer.Option("--whisper", help="Whisper's own transcripts beside, too.")] = False,
    guard: Annotated[str | None, typer.Option(help="A guard that judges the prompts of the safety sets, too: own, "
                                              "or a Llama Guard by its name or folder.", show_default=False)] = None,
    batch_size: Annotated[int, typer.Option(help="Questions at once.", min=1)] = 16,
    dtype: KeptDtypeOption = None,
    device: DeviceOption = None,
) -> None:  # fmt: skip
    """Measure a model on held-out text, questions, pictures and sounds: every figure with its 95 % interval."""
    from llamamm.devices import pick_device
    from llamamm.evals.card_report import save, table
    from llamamm.evals.evaluate import evaluate as measure
    from llamamm.evals.evaluate import read_card
    from llamamm.evals.score_card import CARD_FILE
    from llamamm.files import require_writable
    from llamamm.text.config import parse_dtype

    model, suite = _model_and_suite(words, suite)
    if sets and not sets.replace(",", "").strip():
        raise InputError(f"--sets {sets} names no set; give names such as shapes,wiki, or leave it out")
    options = {
        "suite": suite, "sets": [name.strip() for name in sets.split(",") if name.strip()], "data": data,
        "contaminated": contaminated.value, "batch_size": batch_size, "dtype": parse_dtype(dtype) if dtype else None,
        "device": pick_device(device), "beside": whisper, "guard": load_judge(guard, device),
    }  # fmt: skip
    with measuring() as say:
        card = read_card(model)
        if card is not None and (sets or data or adapter):
            raise InputError(f"{model} is a card, which is shown as it is: --sets, --data and --adapter are for models")
        card = card or measure(model, adapter=adapter, out=output, say=say, **options)
        other = None
        if against is not None:
            options["suite"], options["data"] = card.about["suite"], card.about["data"]
            options["sets"] = [] if options["data"] else options["sets"] or list(card.sets)
            other = read_card(against) or measure(
                against, out=output and output / "against", say=say, **options, lacking="skip")  # fmt: skip
    if output is not None:
        if not (output / CARD_FILE).is_file():  # it was read from elsewhere
            require_writable(output)
            output.mkdir(parents=True, exist_ok=True)
            card.save(output)
        save(card, output, other)
    out(width=160).print(table(card, other))
    if guard and not any(figure.name.startswith("stopped by the guard") for one in card.sets.values()
                         for figure in one.figures):  # fmt: skip
        err().print("(the guard was asked nothing: none of these sets puts a request or a planted instruction to it)",
                    soft_wrap=True)
    for name, why in card.left_out.items():
        err().print(f"{name}: not measured, {why}")


def _model_and_suite(words: list[str], suite: str) -> tuple[str, str]:
    """"safety MODEL" is a suite and a model. Raises InputError for other words than these."""
    if len(words) == 2 and words[0] == "safety":
        return words[1], "safety"
    if len(words) != 1 or words == ["safety"] and not Path("safety").exists():
        raise InputError(f"eval takes one model, or safety and a model, got: {' '.join(words)}")
    return words[0], suite


@experiment.command("guard")
def measure_guard(
    guard: Annotated[str, typer.Argument(help="own, a folder that `llamamm train recipe:guard` has written, or a Llama "
                                              "Guard by its Hub id.")] = "own",
    n: Annotated[int, typer.Option("--rows", help="Of its own test part at most; the other sets are asked whole.",
                                   min=50)] = 600,
    device: DeviceOption = None,
) -> None:  # fmt: skip
    """Measure a guard beside a list of words and a bag of words, on six sets, and show what a split leaks."""
    from llamamm.experiments.guard_figures import leak_table, measure_leaks
    from llamamm.experiments.guard_figures import measure_guard as measure

    found = measure(load_judge(guard, device), n=n, say=err().print)
    out(width=200).print(found.table())
    for name, threshold in found.thresholds.items():
        out(width=200).print(f"threshold of the last two columns, {name}: {threshold:.4f}")
    for rater, figure in found.agreement.items():
        out(width=200).print(f"AUC of what people find harmful, {rater}: {figure}")
    out(width=200).print(leak_table(measure_leaks()))


def _make_room(file: Path) -> None:
    """For a file, before the minutes and not after. Raises InputError, WriteError."""
    from llamamm.files import require_writable

    if file.is_dir():
        raise InputError(f"{file} is a folder; give the name of a file")
    require_writable(file.parent)
    file.parent.mkdir(parents=True, exist_ok=True)


@experiment.command("early-exit")
def early_exit(
    output: Annotated[Path, typer.Argument(help="File to write the exit to, .safetensors.", **AS_PATH)],
    blocks: Annotated[int, typer.Option(help="Blocks before the exit.", min=1)] = 10,
    steps: Annotated[int, typer.Option(help="Steps of training.", min=1)] = 300,
    seed: Annotated[int, typer.Option(help="The same seed gives the same exit on the same machine.", min=0)] = 0,
) -> None:
    """Train a head for SmolLM2's first blocks, that they guess for all of them, and say what that gains."""
    from llamamm.experiments.early_exit import save_exit, train_exit
    from llamamm.pretrained.ready import load_ready

    if output.suffix != ".safetensors" or output.exists():
        raise InputError(f"{output} is there already: choose a new name" if output.exists() else
                         f"{output} does not end in .safetensors, as the file of an exit does")  # fmt: skip
    _make_room(output)
    _, model, processor = load_ready(fast=False)
    short, figures = train_exit(model, processor.tokenizer, blocks, steps=steps, seed=seed, say=err().print)
    save_exit(short, output)
    console = out(width=120)
    console.print(f"after {blocks} of {model.cfg.n_layers} blocks: {figures.greedy:.1%} of its best tokens are the "
                  f"model's; drawn at temperature 1, {figures.drawn:.1%} would be accepted")  # fmt: skip
    console.print(figures.table())
    print(output)


@experiment.command()
def release(
    output: Annotated[Path, typer.Argument(help="Folder for data, checkpoints and the skill.", **AS_PATH)],
    seed: Annotated[int, typer.Option(help="The same seed gives the same skill on the same machine.", min=0)] = 0,
) -> None:
    """Train `senses`, the skill that comes with this package, and measure it. It goes on where it was stopped."""
    from llamamm.experiments.release import make_release

    print(make_release(output, seed=seed, say=err().print))


@experiment.command()
def fusion(
    steps: Annotated[int, typer.Option(help="Steps of each way.", min=1)] = 150,
    read: Annotated[int, typer.Option(help="Steps in which their common text model learns to read.", min=1)] = 250,
    seed: Annotated[int, typer.Option(help="The first seed; learning rates are looked for with one more.")] = 0,
    seeds: Annotated[int, typer.Option(help="How many seeds are reported.", min=1)] = 3,
    output: Annotated[Path | None, typer.Option(help="File to write all runs to, as JSON.", **AS_PATH)] = None,
    device: DeviceOption = None,
) -> None:
    """Give one text model eyes in three ways, frozen and tuned, each at its own learning rate, and compare them."""
    from llamamm.devices import pick_device
    from llamamm.experiments.fusion_record import run_comparison
    from llamamm.files import write_file

    if output is not None:
        _make_room(output)
    record = run_comparison(steps=steps, read=read, seed=seed, n_seeds=seeds, device=pick_device(device),
                            say=err().print)  # fmt: skip
    if output is not None:
        write_file(output, record.to_json())
    out(width=120).print(record.table())


@experiment.command()
def senses(
    output: Annotated[Path, typer.Argument(help="Folder to write the model to.", **AS_PATH)],
    seed: Annotated[int, typer.Option(help="The same seed gives the same model on the same machine.", min=0)] = 0,
    read: Annotated[int, typer.Option(help="Steps of stage 1: the text model learns to read.", min=0)] = 1500,
    align: Annotated[int, typer.Option(help="Steps of stage 2: the bridges alone.", min=0)] = 700,
    tune: Annotated[int, typer.Option(help="Steps of stage 3: bridges and text model.", min=0)] = 4500,
    device: DeviceOption = None,
) -> None:
    """Train a small Llama that sees and hears, in three stages, and print what it knows of held-out data.

    It answers questions about easy-VQA's pictures, names OpenMoji's, and recognises twenty spoken words.
    """
    import json
    from dataclasses import asdict

    from llamamm.devices import pick_device
    from llamamm.evals.senses import table as score_table
    from llamamm.experiments.small_multimodal import stages, train_small
    from llamamm.files import write_file
    from llamamm.pretrained.save import save_pretrained
    from llamamm.weights.saving import refuse_foreign_files

    refuse_foreign_files(output)  # before the minutes, not after
    plan, mean = stages(read, align, tune), {}

    def note(stage: str, step: int, loss: float) -> None:
        mean[stage] = 0.98 * mean.get(stage, loss) + 0.02 * loss
        if (step + 1) % 250 == 0:
            err().print(f"  {stage} {step + 1:,}: loss {mean[stage]:.3f}")

    done = train_small(plan=plan, seed=seed, device=pick_device(device), say=err().print, on_step=note)
    save_pretrained(done.model, output, processor=done.processor)
    notes = {"seed": seed, "steps": {stage.name: stage.steps for stage in plan}, "seconds": done.seconds,
             "scores": [asdict(score) for score in done.scores], "losses": done.curves}  # fmt: skip
    write_file(output / "training.json", json.dumps(notes) + "\n")
    out(width=120).print(score_table(done.scores))
    print(output)


class HarnessCommand(TyperCommand):
    """`harness`, which leaves every word behind it to the harness's own command line, also `run --help`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """As typer does for help alone; otherwise nothing is taken for an option of ours."""
        return super().parse_args(ctx, args if args in (["--help"], ["-h"]) else ["--", *args])


def harness(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OPTIONS OF LM_EVAL]", help="What `lm_eval` takes, --tasks and all; "
                       "`llamamm harness run --help` lists it.", show_default=False),
    ] = None,
) -> None:  # fmt: skip
    """Measure on tasks of EleutherAI's evaluation harness, lm_eval, with all of its options.

    --model is llamamm where none is named. Its --model_args are pretrained=NAME and, as wanted, adapter=FOLDER,
    dtype=float32, max_length=2048, add_bos_token=True, batch_tokens=8192. Needs pip install 'llamamm[harness]'.
    """
    from llamamm.evals.harness_command import run_command_line

    run_command_line(words or [])
