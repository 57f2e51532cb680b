"""evals.compile_speed: what is returned and shown, and a missing compiler in one line; speeds are not compared."""

import pytest
import torch

from llamamm import Llama3Model, TextConfig, Tokenizer, save_pretrained
from llamamm.errors import InputError, LlamammError
from llamamm.evals import compile_speed
from llamamm.evals.compile_speed import OURS, PLAIN, _pays_after, run_compile_bench
from llamamm.evals.report import Row
from llamamm.fast.fixed_cache import FixedCacheStep
from tests.cli.test_main import run, shell

SMALL = dict(dtype=torch.float32, device=torch.device("cpu"), prompt_tokens=6, long_tokens=20, new_tokens=6, repeats=1)


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory, smollm2_dir):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_pretrained(Llama3Model(TextConfig.tiny(vocab_size=49_152)), folder, tokenizer=Tokenizer(smollm2_dir))
    return folder


@pytest.fixture(autouse=True)
def _traced_alone(monkeypatch):
    """The compiler itself takes a minute; `aot_eager` traces and compiles nothing."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: compile_(
        *args, **{**options, "mode": None, "backend": "aot_eager"}))  # fmt: skip
    monkeypatch.setattr(compile_speed, "require_compiler", lambda _device: None)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_it_measures_a_compiled_step_beside_a_plain_one(tiny_dir):
    report = run_compile_bench(str(tiny_dir), **SMALL)
    assert {row.key: set(row.values) for row in report.rows} == {
        "compile": {OURS}, "decode": {OURS, PLAIN}, "decode_long": {OURS, PLAIN}}
    assert report["decode"].ratio(PLAIN) > 0
    assert "26 places" in report.notes[0]
    assert report.notes[1:3] == ["greedy tokens after 6: 6 of 6 identical", "greedy tokens after 20: 6 of 6 identical"]


def test_when_compiling_has_paid_by_hand():
    def rows(ours, plain):
        return [Row("compile", "", {OURS: [30.0]}), Row("decode", "", {OURS: [ours], PLAIN: [plain]})]

    assert _pays_after(rows(20.0, 10.0)) == pytest.approx(600)  # 50 ms saved at each token
    assert _pays_after(rows(10.0, 10.0)) is _pays_after(rows(5.0, 10.0)) is None


def test_a_machine_without_a_compiler_is_told_so_in_one_line():
    """In a process of its own, since PyTorch looks for one when it is loaded."""
    code, out, err = shell("bench", "compile", "--device", "cpu", CXX="/nowhere/g++")
    assert code == 2 and out == "" and err.splitlines()[-1].startswith("error: on a CPU torch.compile needs a C++")


def test_what_the_compiler_stumbles_over_is_one_line(tiny_dir, monkeypatch):
    def fails(*_args):
        raise torch._dynamo.exc.TorchDynamoException("out of something\nmore")

    monkeypatch.setattr(FixedCacheStep, "run_blocks", fails)
    with pytest.raises(LlamammError, match="torch.compile failed: out of something$"):
        run_compile_bench(str(tiny_dir), **SMALL)


@pytest.mark.parametrize("changes", [{"new_tokens": 1}, {"repeats": 0}, {"long_tokens": 0}])
def test_a_bench_of_nothing_is_refused(changes):
    with pytest.raises(InputError, match="2 new tokens or more"):
        run_compile_bench("smollm2", **{**SMALL, **changes})


def test_the_command(monkeypatch):
    asked = []
    monkeypatch.setattr(compile_speed, "run_compile_bench", lambda name, **options: asked.append((name, options)) or (
        compile_speed.Report("title", [], ["a note"], compile_speed.NAMES)))  # fmt: skip
    result = run("bench", "compile", "--model", "m", "--new-tokens", 6, "--mode", "reduce-overhead", "--device", "cpu")
    assert result.exit_code == 0 and "a note" in result.stdout, result.exception
    assert asked[0][0] == "m" and asked[0][1]["new_tokens"] == 6 and asked[0][1]["mode"] == "reduce-overhead"
