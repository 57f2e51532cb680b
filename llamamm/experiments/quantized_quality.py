"""What whole numbers cost: a model in 16, 8 and 4 bits, in groups of 32, 64 and 128, rounded to nearest and by error
feedback, on the same held-out items.

Beside llama.cpp's own reading of the same files, by its rule of perplexity: chunks of 512 tokens, of which each begins
anew and the second half is scored. Source of that rule: llama.cpp, tools/perplexity. Used in notebook 19.
"""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.table import Table

from llamamm.assets.corpora import load_records, text_of
from llamamm.assets.fetch import fetch
from llamamm.errors import InputError
from llamamm.evals.figures import Figure
from llamamm.evals.measures import Asker
from llamamm.evals.perplexity import Reading, token_bits
from llamamm.evals.score_card import run_card, what_lacks
from llamamm.fast.error_feedback import quantize_by_feedback
from llamamm.fast.quantized import n_bytes, quantize, quantized_linears
from llamamm.pretrained.gguf_export import export_gguf
from llamamm.pretrained.ready import load_ready
from llamamm.tasks.held_out import SETS
from llamamm.text.layers import Linear
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.calibration import calibration_rows
from llamamm.wiring import put_module

N_ITEMS = {"wiki": 24, "quartz": 100, "socialiqa": 60, "shapes": 40, "sentences-both": 16}
CHUNK, N_CHUNKS = 512, 12  # tokens of a chunk, chunks of the text that llama.cpp reads too
Say = Callable[[str], None]


@dataclass(frozen=True)
class Form:
    """bits 16: as the weights are. method: "round" or "gptq"."""

    bits: int = 16
    group: int = 32
    method: str = "round"

    def __str__(self) -> str:
        return "as it is" if self.bits == 16 else f"{self.bits} bits, groups of {self.group}, {self.method}"

    def made(self, model: Llama3Model, calibration: torch.Tensor) -> Llama3Model:
        """A copy of a model in this form."""
        model = copy.deepcopy(model)
        if self.bits == 16:
            return model
        if self.method == "gptq":
            return quantize_by_feedback(model, self.bits, calibration, group=self.group)
        return quantize(model, self.bits, group=self.group)


FORMS = (Form(), Form(8), Form(8, 128), *(Form(4, group, method) for method in ("round", "gptq")
                                          for group in (32, 64, 128)))  # fmt: skip
FEW_FORMS = (Form(), Form(8), Form(4), Form(4, method="gptq"))


@dataclass(frozen=True)
class Measurement:
    """Of one form: bytes of all weights, the figures by set, perplexity in chunks, and llama.cpp's of the same."""

    form: Form
    n_bytes: int
    figures: Mapping[str, Figure] = field(default_factory=dict)
    ours: float | None = None
    theirs: float | None = None


def measure_quantized(
    name: str = "smollm2", *, forms: Sequence[Form] = FORMS, n_items: Mapping[str, int] = N_ITEMS,
    tokens: int = 4096, peer: Path | None = None, say: Say = lambda _line: None,
) -> list[Measurement]:  # fmt: skip
    """A Measurement of each form. n_items: of each set; those that the model has no sense for are left out. tokens: of
    calibration. peer: llama.cpp's folder with llama-perplexity. Raises InputError, FetchError."""
    program = None if peer is None else _program(peer)
    _, model, processor = load_ready(name, fast=False)
    tokenizer = processor.tokenizer
    sets = {key: SETS[key].load().some(n) for key, n in n_items.items()
            if not what_lacks(Asker(model, processor), SETS[key].needs)}  # fmt: skip
    if peer is not None and type(model) is not Llama3Model:
        raise InputError(f"{name} sees or hears, which llama.cpp does not read from these files: leave it out")
    calibration = calibration_rows(tokenizer, n_tokens=tokens)
    text = "\n\n".join(text_of(record) for record in load_records(fetch("wiki"), "test")[:200])
    found = []
    for form in forms:
        say(f"{name}: {form}")
        quantized = form.made(model, calibration)
        size, theirs = n_bytes(quantized), None
        if program is not None and form.group == 32:
            with TemporaryDirectory() as folder:
                file = Path(folder) / "model.gguf"
                export_gguf(quantized, file, tokenizer=tokenizer)
                theirs = _their_perplexity(program, file, text)
        spread_out(quantized)
        ours = None if peer is None else perplexity_in_chunks(quantized, tokenizer, text)
        card = run_card(Asker(quantized, processor), sets, model=f"{name}, {form}") if sets else None
        figures = {key: one.figures[0] for key, one in card.sets.items()} if card else {}
        found.append(Measurement(form, size, figures, ours, theirs))
    return found


def spread_out(model: Llama3Model) -> None:
    """Put linears with the numbers that the quantized ones stand for in their places: the same answers, sooner."""
    for path, quantized in quantized_linears(model).items():
        linear = Linear(quantized.in_features, quantized.out_features, dtype=model.embed_tokens.weight.dtype)
        linear.weight = torch.nn.Parameter(quantized.weight.to(linear.weight.dtype), requires_grad=False)
        put_module(model, path, linear)


def perplexity_in_chunks(
    model: Llama3Model, tokenizer: Tokenizer, text: str, *, length: int = CHUNK, n_chunks: int = N_CHUNKS
) -> float:
    """As llama-perplexity counts it: chunks one behind the other, each read alone and, where the tokenizer has texts
    begin with BOS, with BOS in place of its first token; the tokens behind length/2 + 1 are scored. Raises InputError.
    """
    ids = tokenizer.encode(text, bos=tokenizer.adds_bos)
    if len(ids) < 2 * length:
        raise InputError(f"the text has {len(ids)} tokens; two chunks of {length} are the least that llama.cpp reads")
    total = Reading()
    for begin in range(0, min(len(ids) // length, n_chunks) * length, length):
        row = ids[begin : begin + length]
        row[:1] = [tokenizer.bos_id] if tokenizer.adds_bos else row[:1]
        (bits,) = token_bits(model, [row], [length // 2 + 1])
        total += Reading(float(bits.sum()), 0, len(bits))
    return total.perplexity


def _program(folder: Path) -> Path:
    program = folder / "llama-perplexity"
    if not program.is_file():
        raise InputError(f"there is no llama-perplexity in {folder}: give the folder of llama.cpp's programs")
    return program.absolute()


def _their_perplexity(program: Path, file: Path, text: str) -> float:
    words = file.with_name("text.txt")
    words.write_text(text, encoding="utf-8")
    command = [program, "-m", file, "-f", words, "-c", CHUNK, "-b", CHUNK, "--chunks", N_CHUNKS,
               "-t", torch.get_num_threads()]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace", check=False)
    said = re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr)
    if done.returncode or said is None:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["no estimate"]
        raise InputError(f"llama-perplexity did not read the file: {lines[-1].strip()}")
    return float(said[1])


def table(name: str, found: Sequence[Measurement]) -> Table:
    """A row for each form. In brackets: by how much it differs from the first form on the same items, 95 %."""
    keys = list(found[0].figures)
    titles = [f"{key}: {found[0].figures[key].name} (n = {len(found[0].figures[key].sums)})" for key in keys]
    peer = any(one.theirs is not None for one in found)
    more = ["perplexity in chunks", "llama.cpp's", "difference"] if peer else []
    out = Table(f"{name}, linears in", "MB", *titles, *more)
    for one in found:
        cells = [_told(one.figures[key], found[0].figures[key]) for key in keys]
        if peer:
            gap = "" if one.theirs is None else f"{one.ours / one.theirs - 1:+.2%}"
            cells += [f"{one.ours:.3f}", "" if one.theirs is None else f"{one.theirs:.3f}", gap]
        out.add_row(str(one.form), f"{one.n_bytes / 1e6:,.0f}", *cells)
    return out


def _told(figure: Figure, first: Figure) -> str:
    if figure is first:
        return figure.written(figure.value)
    difference = figure.against(first)
    return f"{figure.written(figure.value)} ({figure.written(difference.low)} to {figure.written(difference.high)})"
