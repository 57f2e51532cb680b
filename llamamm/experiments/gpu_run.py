"""What cannot be tried without a GPU, tried in one run of at most ten minutes, each section in a process of its own.

    parity      logits in fp32, bf16 and fp16 beside transformers' in the same type; what both are off by is measured
                against transformers in fp32
    tokens      a greedy answer, read again by this model in fp32 on the CPU: are its tokens the best ones there?
    speed       reading a prompt, and decoding, beside transformers; memory on top of the weights
    half        fp16 with the attention kernels that a T4 has
    quantized   weights of 8 and 4 bits, beside the same whole numbers on the CPU
    training    two steps of LoRA, with the peak of memory, beside what `llamamm plan` says
    compile     torch.compile, without and with CUDA graphs

A process for each section, since a fault on a GPU spoils the process that meets it, and a section that hangs can be
ended. With small numbers all of it runs on a CPU, too, where it shows nothing but that it runs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llamamm.evals.compile_speed import NAMES, PLAIN, compare_compiled
from llamamm.evals.report import OURS, THEIRS
from llamamm.evals.speed import load_theirs, our_answer, prompt_ids, their_answer
from llamamm.experiments.gpu_training import two_steps
from llamamm.fast.quantized import n_bytes
from llamamm.files import write_file
from llamamm.generation.generate import generate
from llamamm.pretrained.load import from_pretrained, load_tokenizer, read_config
from llamamm.pretrained.save import save_pretrained
from llamamm.text.config import LLAMA32_CONFIG, SMOLLM2_CONFIG, TextConfig
from llamamm.text.model import Llama3Model
from llamamm.train.loop import resolve_precision

SHAPES = {"1B": LLAMA32_CONFIG, "smollm2": SMOLLM2_CONFIG, "tiny": TextConfig.tiny()}
OFF = 1.5  # times as far from fp32 as transformers is, on average, we may be in 16 bits
TIE = 1e-3  # of the largest logit: a CPU and a GPU add up in other orders
LEAST_S = 15.0  # seconds: with fewer left no section is begun
T4 = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # flash attention needs a newer one


@dataclass(frozen=True)
class Setting:
    """What is run: a folder of weights, a device, and sizes in tokens."""

    path: str
    device: str
    prompt: int = 512
    long: int = 2048  # of the prompt whose reading is timed
    new: int = 64
    rows: int = 4  # of a training step, each of `length`
    length: int = 512
    repeats: int = 3

    @property
    def fastest(self) -> torch.dtype:
        """bf16; on an older GPU fp16, on most CPUs fp32."""
        return resolve_precision("auto", torch.device(self.device))[0] or torch.float32

    def ids(self, n: int) -> list[int]:
        """A text of n tokens; for weights without a tokenizer, which are random, any."""
        if load_tokenizer(Path(self.path)) is not None:
            return prompt_ids(Path(self.path), n)
        vocab_size = read_config(Path(self.path)).vocab_size
        return torch.randint(vocab_size, (n,), generator=torch.Generator().manual_seed(0)).tolist()

    def ours(self, dtype: torch.dtype, *, device: str | None = None, bits: int | None = None) -> Llama3Model:
        return from_pretrained(self.path, dtype=dtype, device=device or self.device, fast=False, bits=bits,
                               progress=False)[0]  # fmt: skip


FEW = {"prompt": 12, "long": 24, "new": 4, "rows": 2, "length": 16, "repeats": 1}


@dataclass(frozen=True)
class Finding:
    """A line of the table. holds: None where nothing was to be right or wrong."""

    section: str
    what: str
    figures: dict[str, float | str] = field(default_factory=dict)
    holds: bool | None = None

    def told(self) -> str:
        return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                         for name, value in self.figures.items())  # fmt: skip


@torch.inference_mode()
def parity(setting: Setting, *, dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16, torch.float16),
           section: str = "parity") -> Iterator[Finding]:  # fmt: skip
    device = torch.device(setting.device)
    ids = torch.tensor([setting.ids(setting.prompt)], device=device)

    def read(model: torch.nn.Module) -> Tensor:
        logits = model(ids)
        return getattr(logits, "logits", logits)[0].float()  # (T, V)

    exact = read(load_theirs(Path(setting.path), torch.float32, device))
    for dtype in dtypes:
        ours, theirs = read(setting.ours(dtype)), read(load_theirs(Path(setting.path), dtype, device))
        off, their_off = (float((logits - exact).abs().mean()) for logits in (ours, theirs))
        apart = float((ours - theirs).abs().max() / exact.abs().max())
        right = apart < TIE if dtype == torch.float32 else off < OFF * their_off
        figures = {"ours off by": off, "transformers off by": their_off, "largest difference, relative": apart,
                   "same best token": float((ours.argmax(-1) == theirs.argmax(-1)).float().mean())}  # fmt: skip
        yield Finding(section, _name(dtype), figures, right and bool(ours.isfinite().all()))


@torch.inference_mode()
def tokens(setting: Setting) -> Iterator[Finding]:
    ids = torch.tensor([setting.ids(setting.prompt)])
    exact = setting.ours(torch.float32, device="cpu")
    for dtype in dict.fromkeys((torch.float32, setting.fastest)):
        written = generate(setting.ours(dtype), ids.to(setting.device), setting.new).cpu()
        logits = exact(written[:, :-1])[0, ids.shape[1] - 1 :]  # (new, V)
        chosen = logits.gather(1, written[0, ids.shape[1] :, None])[:, 0]
        gaps = (logits.amax(dim=1) - chosen) / logits.abs().max()
        figures = {"best ones": f"{int((gaps == 0).sum())} of {len(gaps)}", "largest gap, relative": float(gaps.max())}
        yield Finding("tokens", _name(dtype), figures, float(gaps.max()) < TIE if dtype == torch.float32 else None)


def speed(setting: Setting) -> Iterator[Finding]:
    device, dtype = torch.device(setting.device), setting.fastest
    answers = {OURS: our_answer(setting.ours(dtype), device),
               THEIRS: their_answer(load_theirs(Path(setting.path), dtype, device), device)}  # fmt: skip
    ids = setting.ids(max(setting.long, setting.prompt))
    short, long = ids[: setting.prompt], ids[: setting.long]
    read: dict[str, list[float]] = {side: [] for side in answers}
    rates: dict[str, list[float]] = {side: [] for side in answers}
    peaks: dict[str, float] = {}
    for side, answer in answers.items():
        answer(short, 4)  # warm up
        with _Peak(device) as peak:
            answer(long, 4)
        peaks[side] = peak.added
    for _ in range(setting.repeats):
        for side, answer in answers.items():
            read[side].append(len(long) / answer(long, 2).first_s)
            rates[side].append(answer(short, setting.new).decode_rate)
    for what, found in ((f"read {len(long)} tokens, tokens/s", read), (f"decode {setting.new}, tokens/s", rates)):
        medians = {side: statistics.median(values) for side, values in found.items()}
        ratio = statistics.median(a / b for a, b in zip(found[OURS], found[THEIRS], strict=True))
        yield Finding("speed", f"{what}, {_name(dtype)}", {**medians, "ratio": ratio})
    yield Finding("speed", f"memory to read {len(long)} tokens, MB", peaks)


def half(setting: Setting) -> Iterator[Finding]:
    device = torch.device(setting.device)
    with sdpa_kernel(T4) if device.type == "cuda" else nullcontext():
        yield from parity(setting, dtypes=[torch.float16], section="half")
        answer, ids = our_answer(setting.ours(torch.float16), device), setting.ids(setting.long)
        answer(ids, 4)
        with _Peak(device) as peak:
            run = answer(ids, setting.new)
        yield Finding("half", f"after {len(ids)} tokens, fp16", {
            "read, tokens/s": len(ids) / run.first_s, "decode, tokens/s": run.decode_rate, "MB": peak.added})


@torch.inference_mode()
def quantized(setting: Setting) -> Iterator[Finding]:
    device = torch.device(setting.device)
    ids = torch.tensor([setting.ids(min(setting.prompt, 128))])
    for bits in (8, 4):
        exact = setting.ours(torch.float32, device="cpu", bits=bits)(ids)[0]  # (T, V)
        logits = setting.ours(torch.float32, bits=bits)(ids.to(device))[0].cpu()
        apart = float((logits - exact).abs().max() / exact.abs().max())
        yield Finding("quantized", f"{bits} bits, fp32, beside the CPU", {"largest difference, relative": apart},
                      apart < TIE)  # fmt: skip
        model = setting.ours(setting.fastest, bits=bits)
        answer = our_answer(model, device)
        answer(ids[0].tolist(), 4)
        with _Peak(device) as peak:
            rate = answer(ids[0].tolist(), setting.new).decode_rate
        yield Finding("quantized", f"{bits} bits, {_name(setting.fastest)}", {
            "decode, tokens/s": rate, "weights, MB": n_bytes(model) / 1e6, "on top, MB": peak.added})


def training(setting: Setting) -> Iterator[Finding]:
    device, exact = torch.device(setting.device), None
    ids = torch.tensor(setting.ids(setting.rows * setting.length)).view(setting.rows, -1)
    for precision, bits in (("fp32", None), ("bf16", None), ("fp16", None), ("bf16", 8)):
        with sdpa_kernel(T4) if precision == "fp16" and device.type == "cuda" else nullcontext():
            done = two_steps(setting.path, ids, device=device, precision=precision, bits=bits)
        exact = exact or done.losses
        near = 0.05 if bits else 0.02
        right = all(abs(a / b - 1) < near for a, b in zip(done.losses, exact, strict=True))  # not so where one is NaN
        figures = {"losses": ", ".join(f"{loss:.4f}" for loss in done.losses), "seconds": done.seconds,
                   "peak, MB": done.peak / 1e6, "planned, MB": done.planned / 1e6}  # fmt: skip
        what = f"LoRA, {setting.rows} x {setting.length}, {precision}" + (f", weights of {bits} bits" if bits else "")
        yield Finding("training", what, figures, right)


def compiled(setting: Setting) -> Iterator[Finding]:
    prompts = {"decode": setting.ids(setting.prompt)}
    for mode in (None, "reduce-overhead"):
        torch._dynamo.reset()
        report = compare_compiled(setting.ours(setting.fastest), prompts, title="", length=setting.prompt + setting.new,
                                  new_tokens=setting.new, repeats=setting.repeats, mode=mode)  # fmt: skip
        rate, cost = report["decode"], report["compile"]
        figures: dict[str, float | str] = {NAMES[side]: rate.median(side) for side in rate.values}
        figures |= {"ratio": rate.ratio(PLAIN), "compile, seconds": cost.median(), "beside PyTorch": report.notes[1]}
        yield Finding("compile", f"decode {setting.new}, tokens/s, mode {mode or 'default'}", figures)


SECTIONS: dict[str, Callable[[Setting], Iterator[Finding]]] = {
    "parity": parity, "tokens": tokens, "speed": speed, "half": half, "quantized": quantized, "training": training,
    "compile": compiled,
}  # fmt: skip


def run_sections(
    setting: Setting, names: Sequence[str] = tuple(SECTIONS), *, minutes: float = 10.0,
    say: Callable[[str], None] = lambda _line: None,
) -> Iterator[Finding]:  # fmt: skip
    """Findings as they come, for at most so many minutes. What fails, or finds no time left, is a finding, too."""
    end = time.monotonic() + 60 * minutes
    for name in names:
        left = end - time.monotonic()
        if left < LEAST_S:
            yield Finding(name, f"not begun: {minutes:g} minutes are over")
            continue
        say(f"{name}, {left:.0f} s left")
        yield from _in_a_process(name, setting, left)


def _in_a_process(name: str, setting: Setting, seconds: float) -> Iterator[Finding]:
    """What a section had found before it failed or was ended, and then that."""
    with TemporaryDirectory() as folder:
        lines, words = Path(folder) / "lines", Path(folder) / "words"
        command = [sys.executable, "-m", "llamamm.experiments.gpu_run", name, json.dumps(asdict(setting)), str(lines)]
        with words.open("w") as errors:
            try:
                code = subprocess.run(command, stdout=errors, stderr=errors, timeout=seconds, check=False).returncode
            except subprocess.TimeoutExpired:
                code = None
        if lines.exists():
            yield from (Finding(**json.loads(line)) for line in lines.read_text(encoding="utf-8").splitlines())
        if code is None:
            yield Finding(name, f"ended after {seconds:.0f} s", holds=False)
        elif code:
            said = [line for line in words.read_text(errors="replace").splitlines() if line.strip()]
            yield Finding(name, f"failed: {said[-1].strip() if said else f'exit code {code}'}", holds=False)


def make_random(shape: str, folder: Path) -> Path:
    """A model of a real one's shape, with random weights, for machines that can fetch none. -> its folder.

    Blocks that change little would leave each token its own best successor, whatever else is read: theirs change much.
    """
    torch.manual_seed(0)
    model = Llama3Model(SHAPES[shape].replace(dtype=torch.float32 if shape == "tiny" else torch.bfloat16))
    for weight in model.layers.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    save_pretrained(model, folder)
    return folder


def machine(device: torch.device) -> dict[str, str]:
    """What this was measured on."""
    found = {"device": str(device), "torch": torch.__version__}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {"name": about.name, "memory": f"{about.total_memory / 2**30:.0f} GiB",
                  "compute capability": f"{about.major}.{about.minor}", "CUDA": str(torch.version.cuda)}  # fmt: skip
    return found


def write_findings(path: Path, findings: Sequence[Finding], *, about: Mapping[str, str]) -> None:
    """The findings so far as JSON, and on what machine and model they were made."""
    write_file(path, json.dumps({"about": dict(about), "findings": [asdict(one) for one in findings]}, indent=1) + "\n")


def table(findings: Sequence[Finding]) -> Table:
    out = Table("", "what", "found", "as it should be")
    for one in findings:
        out.add_row(one.section, one.what, one.told(), {None: "", True: "yes", False: "NO"}[one.holds])
    return out


class _Peak:
    """Megabytes that PyTorch took of a GPU within the block, on top of what it had; 0 elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.added = device, 0.0

    def __enter__(self) -> _Peak:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.added = (torch.cuda.max_memory_allocated(self.device) - self.before) / 1e6


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def _main(name: str, setting: str, lines: str) -> None:
    with open(lines, "a", encoding="utf-8") as file:
        for finding in SECTIONS[name](Setting(**json.loads(setting))):
            print(json.dumps(asdict(finding)), file=file, flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
