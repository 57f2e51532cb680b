"""Measuring a model: loading, memory, reading a prompt, decoding, and how near decoding comes to the memory's speed.

For each new token every weight is read once from memory, so bandwidth / bytes of weights is the limit of decoding one
prompt. Machines are noisy: each figure is a median over rounds, and a comparison runs both sides in turn, so that a
slow minute hits both; the ratio is the median of the rounds' ratios. Machines are shared, too: with `busy` each round
decodes once more while another process takes one core.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from llamamm.errors import InputError, LlamammError, MissingDependencyError, counted
from llamamm.evals.llama_cpp import LlamaBench, find_program, write_gguf_file
from llamamm.evals.report import LLAMA_CPP, OURS, THEIRS, Report, Row
from llamamm.fast.decoder import MANY_STEPS, Fast, require_possible
from llamamm.fast.quantized import n_bytes
from llamamm.files import read_json
from llamamm.generation.generate import CausalLM, TokenStream
from llamamm.pretrained.load import from_pretrained, load_tokenizer
from llamamm.pretrained.locate import locate
from llamamm.pretrained.packed import is_packed
from llamamm.text.layers import few_rows_linear
from llamamm.text.model import Llama3Model

TEXT = (
    "A river begins as a spring on a hillside, and nobody who steps over it would guess what it becomes. It gathers "
    "streams, cuts a valley, turns a mill, carries boats, and feeds a city before it meets the sea. "
)
WARM_UP = 4 + MANY_STEPS  # tokens before anything is timed: by then weights lie in large pages
BUSY_TOKENS = 32  # decoded on a busy machine, where some libraries take a second for each
# Ends by itself where whoever started it was killed and could not end it.
BUSY = "import os\nparent = os.getppid()\nprint(flush=True)\nwhile os.getppid() == parent: sum(range(100_000))"


@dataclass(frozen=True)
class Run:
    """One greedy answer: the seconds until its first token, and tokens per second from then on. tokens: where they are
    told; llama.cpp's benchmark tells none."""

    first_s: float
    decode_rate: float
    tokens: list[int] | None = None

    @classmethod
    def of(cls, start: float, times: list[float], tokens: list[int]) -> Run:
        """times: when each token came, by the clock that said start."""
        return cls(times[0] - start, (len(times) - 1) / (times[-1] - times[0]), tokens)


Answer = Callable[[list[int], int], Run]


def run_bench(
    model: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    prompt_tokens: int = 64,
    new_tokens: int = 128,
    prefill_tokens: int = 1024,
    repeats: int = 5,
    against: str | None = None,
    busy: bool = False,
    fast: Fast = "auto",
    bits: int | None = None,
) -> Report:
    """Measure one model. Rows: load, memory, read, decode, decode_long, and decode_busy.

    against: "transformers", "llama.cpp" (by its own benchmark, see `llama_cpp`), or both with a comma: these are
    measured too, in turn, transformers without bits alone. busy: decodes again while another process takes one core.
    fast, bits: as in `from_pretrained`.
    Raises InputError for what cannot be measured, LlamammError where loading fails.
    """
    sides = [OURS, *(against.split(",") if against else [])]
    if set(sides[1:]) - {THEIRS, LLAMA_CPP} or len(set(sides)) < len(sides):
        raise InputError(f"--against takes 'transformers', 'llama.cpp' or 'transformers,llama.cpp', got {against!r}")
    if bits and THEIRS in sides:
        raise InputError("--bits is not compared with transformers: give --against llama.cpp")
    if LLAMA_CPP in sides and device.type != "cpu":
        raise InputError(f"llama.cpp is compared on the CPU, not on {device}: give --device cpu")
    if min(prompt_tokens, prefill_tokens, repeats) < 1 or new_tokens < 2:
        raise InputError("bench needs prompts of 1 token or more, 2 new tokens or more, and 1 round or more")
    require_possible(fast, bits, device)
    path = locate(model)
    if THEIRS in sides:
        require_theirs(path)

    ids = prompt_ids(path, max(prompt_tokens, prefill_tokens))
    short, long = ids[:prompt_tokens], ids[:prefill_tokens]
    loaded = [side for side in sides if side != LLAMA_CPP]
    with tempfile.TemporaryDirectory() as folder:
        peer = _llama_cpp_answer(path, Path(folder), dtype, bits) if LLAMA_CPP in sides else None
        probes = {side: _probe_loading(side, path, dtype, device, fast, bits) for side in loaded}
        llama, _ = from_pretrained(path, dtype=dtype, device=device, progress=False, fast=fast, bits=bits)
        answers: dict[str, Answer] = {OURS: our_answer(llama, device)}
        if THEIRS in sides:
            answers[THEIRS] = their_answer(load_theirs(path, dtype, device), device)
        if peer:
            answers[LLAMA_CPP] = peer
        runs, busy_rates = _rounds(answers, short, long, new_tokens=new_tokens, repeats=repeats, busy=busy)

    def row(key: str, title: str, value: Callable[[str], list[float]], *, lower_is_better: bool = False) -> Row:
        return Row(key, title, {side: value(side) for side in (probes if lower_is_better else sides)}, lower_is_better)

    rows = [
        row("load", "load, seconds", lambda s: [probes[s]["load_s"]], lower_is_better=True),
        row("memory", "peak memory, loaded and one token read, MB", lambda s: [probes[s]["peak_mb"]],
            lower_is_better=True),
        row("read", f"read {prefill_tokens} tokens, tokens/s", lambda s: [prefill_tokens / r.first_s
                                                                          for _, r in runs[s]]),
        row("decode", f"decode {new_tokens} after {prompt_tokens}, tokens/s", lambda s: [r.decode_rate
                                                                                         for r, _ in runs[s]]),
        row("decode_long", f"decode {new_tokens} after {prefill_tokens}, tokens/s", lambda s: [r.decode_rate
                                                                                               for _, r in runs[s]]),
    ]  # fmt: skip
    notes = []
    if busy:
        busy_tokens = min(new_tokens, BUSY_TOKENS)
        title = f"decode {busy_tokens} after {prompt_tokens}, one core busy, tokens/s"
        rows.append(row("decode_busy", title, lambda s: busy_rates[s]))
        kept = {s: statistics.median(b / r.decode_rate for b, (r, _) in zip(busy_rates[s], runs[s], strict=True))
                for s in sides}  # fmt: skip
        notes.append("with one core busy " + ", ".join(f"{s} keeps {x:.2f} of its speed" for s, x in kept.items()))
    if THEIRS in sides:
        for which, name in ((0, prompt_tokens), (1, prefill_tokens)):
            same = sum(a == b for a, b in zip(*(runs[s][0][which].tokens for s in loaded), strict=True))
            notes.append(f"greedy tokens after {name}: {same} of {new_tokens} identical")
    bandwidth, weight_bytes = read_bandwidth(device), probes[OURS]["weight_bytes"]
    share = statistics.median(r.decode_rate for r, _ in runs[OURS]) * weight_bytes / bandwidth
    notes.append(
        f"memory reads {bandwidth / 1e9:.1f} GB/s here; {weight_bytes / 1e6:.0f} MB of weights a token allow "
        f"{bandwidth / weight_bytes:.1f} tokens/s; llamamm reaches {share:.0%} of that"
    )
    weights = {None: "", 16: ", weights in 16 bits"}.get(bits, f", weights of {bits} bits")
    precision = str(dtype).removeprefix("torch.") + weights
    title = (f"{model}, {precision} on {device}, {torch.get_num_threads()} threads; "
             f"{counted(repeats, 'round')}, medians" + (" (lowest to highest)" if repeats > 2 else ""))  # fmt: skip
    return Report(title, rows, notes, {side: side for side in sides})


def _rounds(
    answers: dict[str, Answer], short: list[int], long: list[int], *, new_tokens: int, repeats: int, busy: bool
) -> tuple[dict[str, list[tuple[Run, Run]]], dict[str, list[float]]]:
    """Of each side what it answered to both prompts, round by round, and its speed beside a busy core."""
    for answer in answers.values():
        answer(short, WARM_UP)
    runs: dict[str, list[tuple[Run, Run]]] = {side: [] for side in answers}
    busy_rates: dict[str, list[float]] = {side: [] for side in answers}
    for _ in range(repeats):
        for side, answer in answers.items():
            runs[side].append((answer(short, new_tokens), answer(long, new_tokens)))
            if busy:
                with one_core_busy():
                    busy_rates[side].append(answer(short, min(new_tokens, BUSY_TOKENS)).decode_rate)
    return runs, busy_rates


@contextmanager
def one_core_busy() -> Iterator[int]:
    """Another process computes without a pause, until the end of the block. -> its process id."""
    child = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE)
    try:
        child.stdout.readline()  # it has begun
        yield child.pid
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def read_bandwidth(device: torch.device | str = "cpu", *, megabytes: int = 512, repeats: int = 8) -> float:
    """Bytes per second that this machine reads, by the fastest of several passes over a block larger than any cache."""
    block = torch.ones(4096, megabytes * 2**20 // 4 // 4096, device=device)
    vector = torch.ones(1, block.shape[1], device=device)
    passes = (block.sum, lambda: few_rows_linear(vector, block, n_slices=4))
    seconds = []
    for read in passes:
        for _ in range(repeats):
            wait_for(device)
            start = time.perf_counter()
            read()
            wait_for(device)
            seconds.append(time.perf_counter() - start)
    return block.nbytes / min(seconds)


def our_answer(model: CausalLM, device: torch.device) -> Answer:
    """How a model of ours, on that device, answers greedily and is timed."""

    def answer(ids: list[int], n: int) -> Run:
        times, tokens, start = [], [], time.perf_counter()
        for token in TokenStream(model, torch.tensor([ids], device=device), max_new_tokens=n):
            tokens.append(int(token))
            times.append(time.perf_counter())
        return Run.of(start, times, tokens)

    return answer


def load_theirs(path: Path, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    return import_transformers().AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device).eval()


def their_answer(model: torch.nn.Module, device: torch.device) -> Answer:
    """The same of a model of transformers."""

    class Clock:
        """A streamer: `generate` hands it the prompt first, then each token."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, _tokens: torch.Tensor) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def answer(ids: list[int], n: int) -> Run:
        clock, prompt = Clock(), torch.tensor([ids], device=device)
        start = time.perf_counter()
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n, do_sample=False, eos_token_id=None,
            pad_token_id=0, streamer=clock,
        )  # fmt: skip
        return Run.of(start, clock.times[1:], out[0, len(ids) :].tolist())

    return answer


def _llama_cpp_answer(path: Path, folder: Path, dtype: torch.dtype, bits: int | None) -> Answer:
    find_program()  # before minutes of writing
    program = LlamaBench(write_gguf_file(path, folder, dtype=dtype, bits=bits), n_threads=torch.get_num_threads())

    def answer(ids: list[int], n: int) -> Run:
        return Run(len(ids) / program.read(len(ids)), program.decode(len(ids), n))

    return answer


def prompt_ids(path: Path, n: int) -> list[int]:
    tokenizer = load_tokenizer(path)
    if tokenizer is None:
        raise InputError(f"{path.name} has no tokenizer; bench reads a text with it")
    ids = tokenizer.encode(TEXT)
    return (ids * (n // len(ids) + 1))[:n]


def _probe_loading(
    side: str, path: Path, dtype: torch.dtype, device: torch.device, fast: Fast, bits: int | None
) -> dict[str, float]:
    """Load and read one token in a process of its own: its peak memory, with the imports subtracted, is theirs alone.

    One token, because a library may map the file and leave the weights on disk until they are used.
    """
    command = [sys.executable, "-m", "llamamm.evals.speed", side, str(path), str(dtype), str(device),
               json.dumps({"fast": fast, "bits": bits})]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LlamammError(f"loading with {side} failed: {last_words(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def last_words(stderr: str) -> str:
    """What a process said last, such as why it failed; an error of this package without the name of its class."""
    lines = stderr.strip().splitlines()
    return re.sub(r"^llamamm\.errors\.\w+: ", "", lines[-1]) if lines else "it said nothing"


def _load_and_report(side: str, path: str, dtype_name: str, device: str, ours: str) -> None:
    dtype = getattr(torch, dtype_name.removeprefix("torch."))
    if side == THEIRS:
        auto = import_transformers().AutoModelForCausalLM
    baseline = psutil.Process().memory_info().rss
    start = time.perf_counter()
    if side == OURS:
        options = {"dtype": dtype, "device": device, "progress": False, **json.loads(ours)}
        model: torch.nn.Module = from_pretrained(path, **options)[0]
    else:
        model = auto.from_pretrained(path, dtype=dtype).to(device)
    load_s = time.perf_counter() - start
    with torch.inference_mode():
        model(torch.tensor([[1]], device=device))
    weights = read_bytes(model) if side == OURS else 0
    print(json.dumps({"load_s": load_s, "peak_mb": (peak_rss() - baseline) / 1e6, "weight_bytes": weights}))


def read_bytes(model: Llama3Model) -> int:
    """Bytes of weights that a step of one token reads: all, but of an embedding that is not the head's a row alone."""
    embedding = model.embed_tokens.weight
    tied = any(p is embedding for p in model.lm_head.parameters())
    return n_bytes(model) - (0 if tied else embedding.nbytes)


def peak_rss() -> int:
    """Bytes, of this process alone. Linux says so in /proc: its `getrusage` begins with the peak of the program that
    started this one. Windows calls it peak_wset; macOS reports bytes."""
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):
        return info.peak_wset
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def wait_for(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def require_theirs(path: Path) -> None:
    """Refuse what transformers does not read, or, which is worse, reads as random weights. Raises InputError."""
    if path.suffix == ".gguf":
        raise InputError(f"{path.name} is a GGUF file, which transformers does not take here; give a folder")
    config = (path if path.is_dir() else path.parent) / "config.json"
    if config.is_file() and is_packed(read_json(config)):
        raise InputError(f"{path} is quantized in this package's form, which transformers does not read: give the "
                         f"model that it was made of, or measure it without transformers")  # fmt: skip


def import_transformers():
    try:
        import transformers
    except ImportError:
        raise MissingDependencyError("a comparison needs transformers: pip install 'llamamm[test]'") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


if __name__ == "__main__":
    _load_and_report(*sys.argv[1:])
