"""`llamamm quantize`: a model in 8 or 4 bits, as a folder, or as a GGUF file for llama.cpp; `llamamm experiment
quantized`: what that costs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamamm.cli.options import AS_PATH, KeptDtypeOption, err, measuring, out
from llamamm.errors import InputError

if TYPE_CHECKING:
    from llamamm.text.model import Llama3Model
    from llamamm.text.tokenizer import Tokenizer


class Method(StrEnum):
    """How weights become whole numbers."""

    ROUND = "round"
    GPTQ = "gptq"


def quantize(
    model: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file or asset, such as smollm2 or senses.")],
    output: Annotated[Path, typer.Argument(help="A new folder, which every command takes as a model; or a new file "
                                                "that ends in .gguf, for llama.cpp.", **AS_PATH)],
    bits: Annotated[int | None, typer.Option(help="8 or 4; for .gguf also 16. Default: 8, or what MODEL has.",
                                             show_default=False)] = None,
    group: Annotated[int | None, typer.Option(help="Columns that share a scale: 32, 64 or 128. Default: 32, or what "
                                              "MODEL has.", show_default=False)] = None,
    method: Annotated[Method, typer.Option(
        help="round: to nearest; gptq: errors are given back to the columns behind, on calibration text. Try both with "
             "`llamamm experiment quantized`.")] = Method.ROUND,
    calibration: Annotated[str | None, typer.Option(
        help="Text for gptq, as `llamamm data` reads it. Default: Wikipedia's summaries, once fetched.",
        show_default=False)] = None,
    tokens: Annotated[int | None, typer.Option(
        help="Of the calibration text. Default: 4,096, or twice the inputs of the widest linear.", min=1,
        show_default=False)] = None,
    dtype: KeptDtypeOption = None,
) -> None:  # fmt: skip
    """Write a model whose linears have 8 or 4 bits: smaller, faster on a CPU, and a little worse.

    Embeddings, norms, towers and bridges stay as they are. An adapter has to be merged first: `llamamm merge`. A model
    that is quantized already is written to a .gguf file as it is, without --bits.
    """
    from llamamm.fast.quantized import n_bytes, quantized_linears
    from llamamm.pretrained.gguf_export import export_gguf, require_exportable
    from llamamm.pretrained.load import from_pretrained
    from llamamm.pretrained.locate import locate
    from llamamm.pretrained.save import save_pretrained
    from llamamm.text.config import parse_dtype
    from llamamm.text.tokenizer import Tokenizer
    from llamamm.train.seen import read_before

    to_gguf = output.suffix == ".gguf"
    _require_sense(output, bits, group, method, calibration or tokens, dtype, to_gguf=to_gguf)
    cast = parse_dtype(dtype) if dtype else None
    llama, reader = from_pretrained(model, fast=False)
    tokenizer = reader if isinstance(reader, Tokenizer) else getattr(reader, "tokenizer", None)
    if to_gguf:
        require_exportable(llama, tokenizer)
    if quantized_linears(llama):
        asked = [bits and "--bits", group and "--group", method is Method.GPTQ and "--method gptq"]
        _require_as_it_is(llama, model, [option for option in asked if option], to_gguf=to_gguf)
    elif bits != 16:
        before = n_bytes(llama)
        _quantize(llama, tokenizer, bits or 8, group or 32, method, calibration, tokens)
        llama.to(cast)  # after rounding: what fp16 has lost is lost twice
        _report(llama, before)
    if to_gguf:
        export_gguf(llama, output, tokenizer=tokenizer, name=Path(model).name)
    else:
        whole = {"tokenizer": reader} if isinstance(reader, Tokenizer) else {"processor": reader}
        save_pretrained(llama, output, **whole)
        read_before(locate(model)).save(output)
    print(output)


def quality(
    model: Annotated[str, typer.Argument(help="Hub id, folder or asset, such as smollm2 or senses.")] = "smollm2",
    few: Annotated[bool, typer.Option("--few", help="As it is, 8 bits, and 4 bits both ways, in groups of 32 alone."
                                      )] = False,
    tokens: Annotated[int, typer.Option(help="Of the calibration text.", min=512)] = 4096,
    peer: Annotated[Path | None, typer.Option("--llama-cpp", help="Folder of llama.cpp's programs, for its perplexity "
                                              "of the same files.", show_default=False, **AS_PATH)] = None,
) -> None:  # fmt: skip
    """Measure a model in 16, 8 and 4 bits on the same items: text, choices and, where it has them, eye and ear."""
    from llamamm.experiments.quantized_quality import FEW_FORMS, FORMS, measure_quantized, table

    forms = FEW_FORMS if few else FORMS
    found = measure_quantized(model, forms=forms, tokens=tokens, peer=peer, say=err().print)
    out(width=200).print(table(model, found))


def _require_sense(
    output: Path, bits: int | None, group: int | None, method: Method, calibrated: object, dtype: str | None, *,
    to_gguf: bool,
) -> None:  # fmt: skip
    """Refuse before minutes of loading. Raises InputError, CheckpointError, MissingDependencyError, WriteError."""
    from llamamm.fast.quantized import GROUPS
    from llamamm.files import require_writable

    if bits not in (None, 8, 4, 16):
        raise InputError(f"--bits is 8 or 4, or 16 for a .gguf file; got {bits}")
    if bits == 16 and not to_gguf:
        raise InputError("--bits 16 is for a .gguf file; a folder in 16 bits is what --dtype of other commands reads")
    if group not in (None, *GROUPS):
        raise InputError(f"--group is 32, 64 or 128, got {group}")
    if bits == 16 and (group or method is Method.GPTQ):
        raise InputError(f"{'--group' if group else '--method gptq'} is for 8 and 4 bits: 16 bits share no scale")
    if to_gguf and dtype:
        raise InputError("--dtype is for a folder: what a .gguf file does not hold in whole numbers is F16 there, and "
                         "vectors are F32")  # fmt: skip
    if output.suffix != ".gguf" and output.suffix.lower() == ".gguf":
        raise InputError(f"{output} would be a folder: the name of a file for llama.cpp ends in .gguf, in small "
                         f"letters")  # fmt: skip
    if calibrated and method is Method.ROUND:
        raise InputError("--calibration and --tokens are for --method gptq: rounding to nearest looks at no text")
    if output.exists():
        raise InputError(f"{output} is there already: choose a new name")
    if to_gguf:
        from llamamm.weights.gguf import gguf_package

        gguf_package()
    require_writable(output.parent)


def _require_as_it_is(model: Llama3Model, name: str, asked: list[str], *, to_gguf: bool) -> None:
    """A quantized model goes into a GGUF file number for number. Raises InputError where something else is wanted."""
    from llamamm.fast.quantized import quantized_linears

    one = next(iter(quantized_linears(model).values()))
    what = f"{name} is quantized already, to {one.bits} bits in groups of {one.group}"
    if not to_gguf:
        raise InputError(f"{what}: it is such a folder itself; OUT.gguf makes a file for llama.cpp of it, and another "
                         f"form is made of the model that it came from")  # fmt: skip
    if asked:
        raise InputError(f"{what}, and is written as it is: leave {asked[0]} out, or quantize the model that it came "
                         f"from")  # fmt: skip


def _quantize(
    model: Llama3Model, tokenizer: Tokenizer | None, bits: int, group: int, method: Method,
    calibration: str | None, tokens: int | None,
) -> None:  # fmt: skip
    from llamamm.fast.error_feedback import quantize_by_feedback
    from llamamm.fast.quantized import quantizable, quantize
    from llamamm.train.calibration import LENGTH, calibration_rows

    paths = quantizable(model, bits, group=group)
    if not paths:
        raise InputError(f"no linear of the model has whole groups of {group} columns and 64 rows: nothing to quantize")
    if method is Method.ROUND:
        quantize(model, bits, group=group)
    elif tokenizer is None:
        raise InputError("the model has no tokenizer to read calibration text with; put its tokenizer.json beside the "
                         "weights, or take --method round")  # fmt: skip
    else:
        widest = max(model.get_submodule(path).in_features for path in paths)
        ids = calibration_rows(tokenizer, calibration, n_tokens=tokens or max(4096, 2 * widest),
                               length=min(LENGTH, model.cfg.context_length))  # fmt: skip
        with measuring() as say:
            quantize_by_feedback(model, bits, ids.to(model.embed_tokens.weight.device), group=group,
                                 say=lambda n, of: say("blocks", n, of))  # fmt: skip


def _report(model: Llama3Model, before: int) -> None:
    """One line: how many linears are whole numbers, and what all weights take."""
    from llamamm.fast.quantized import BLOCKS, n_bytes, quantized_linears
    from llamamm.wiring import find_linears

    linears, n_all = quantized_linears(model), len(find_linears(model, [*BLOCKS, "lm_head"], shared=True))
    bits = next(iter(linears.values())).bits
    err().print(f"{len(linears)} of {n_all} linears in {bits} bits: {before / 1e6:,.0f} MB of weights before, "
                f"{n_bytes(model) / 1e6:,.0f} MB now", markup=False, soft_wrap=True)  # fmt: skip
