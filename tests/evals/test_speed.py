"""evals.speed: what is returned and shown, and a core that is kept busy. Speeds themselves are not compared here."""

import json
import sys

import psutil
import pytest
import torch

from llamamm import from_pretrained, save_pretrained
from llamamm.errors import InputError, LlamammError
from llamamm.evals.harness_speed import run_harness_bench
from llamamm.evals.llama_cpp import LlamaBench
from llamamm.evals.report import Report, Row
from llamamm.evals.speed import one_core_busy, run_bench
from llamamm.evals.train_speed import run_train_bench
from tests.cli.test_main import run, tiny_dir  # noqa: F401 (a fixture)

SMALL = dict(dtype=torch.float32, device=torch.device("cpu"), prompt_tokens=8, new_tokens=6, prefill_tokens=32)


def test_a_table_by_hand():
    rows = [Row("speed", "speed, m/s", {"llamamm": [2.0, 4.0, 9.0], "transformers": [1.0, 4.0, 3.0]}),
            Row("load", "load, seconds", {"llamamm": [3.0], "transformers": [4.0]}, lower_is_better=True)]  # fmt: skip
    report = Report("t", rows, [], {"llamamm": "llamamm", "transformers": "transformers + peft"})
    assert report["speed"].median() == 4 and report["speed"].median("transformers") == 3
    assert report["speed"].ratio() == 2  # of 2, 1 and 3
    cells = [list(column.cells) for column in report.table().columns]
    assert cells == [["speed, m/s", "load, seconds"], ["4 (2 to 9)", "3"], ["3 (1 to 4)", "4"],
                     ["2.00 x", "0.75 x (less is better)"]]  # fmt: skip
    assert [c.header for c in report.table().columns] == ["", "llamamm", "transformers + peft", "ratio"]
    alone = Report("t", [Row("speed", "speed, m/s", {"llamamm": [2.0]})], [], {"llamamm": "llamamm"})
    assert [list(column.cells) for column in alone.table().columns] == [["speed, m/s"], ["2"]]


def test_a_table_of_three_sides():
    row = Row("speed", "speed, m/s", {"llamamm": [6.0], "transformers": [3.0], "llama.cpp": [4.0]})
    load = Row("load", "load, seconds", {"llamamm": [3.0], "transformers": [4.0]}, lower_is_better=True)
    table = Report("t", [row, load], [], {side: side for side in row.values}).table()
    assert [c.header for c in table.columns][-2:] == ["by transformers", "by llama.cpp"]
    cells = [list(column.cells) for column in table.columns]
    assert cells[-3:] == [["4", ""], ["2.00 x", "0.75 x (less is better)"], ["1.50 x", ""]]


def test_large_figures_are_written_out():
    row = Row("read", "read, tokens/s", {"llamamm": [11_810.4, 123_456.0, 9.87654]})
    assert row.cells(["llamamm"]) == ["11,810 (9.88 to 123,456)"]


def test_a_busy_core_is_given_back_even_after_an_error():
    with one_core_busy() as pid:
        child = psutil.Process(pid)
        before = child.cpu_times().user
        while child.cpu_times().user < before + 0.1:  # it computes
            assert child.is_running()
    assert not psutil.pid_exists(pid)
    with pytest.raises(KeyboardInterrupt), one_core_busy() as pid:
        raise KeyboardInterrupt
    assert not psutil.pid_exists(pid)


def test_busy_adds_a_row_for_each_side_and_ends_its_process(tiny_dir):  # noqa: F811
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    report = run_bench(str(tiny_dir), repeats=2, against="transformers", busy=True, **SMALL)
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= before
    assert [row.key for row in report.rows] == ["load", "memory", "read", "decode", "decode_long", "decode_busy"]
    for key in ("read", "decode", "decode_long", "decode_busy"):
        assert {side: len(values) for side, values in report[key].values.items()} == {"llamamm": 2, "transformers": 2}
        assert report[key].median() > 0 and report[key].ratio() > 0
    assert report["decode_busy"].title == "decode 6 after 8, one core busy, tokens/s"
    assert "one core busy llamamm keeps" in report.notes[0] and ", transformers keeps" in report.notes[0]


LLAMA_BENCH = """#!{python}
import json, pathlib, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
file = pathlib.Path(options["-m"])
with open({log!r}, "a") as log:
    log.write(json.dumps([options, file.stat().st_size]) + chr(10))
print(json.dumps([{{"avg_ts": {rate}}}]) if {rate} else "no")
"""


@pytest.fixture
def llama_bench(tmp_path, monkeypatch):
    """Puts a program in llama-bench's place, which notes what it was asked and says that rate."""
    def put(rate):
        program, log = tmp_path / "llama-bench", tmp_path / "log"
        program.write_text(LLAMA_BENCH.format(python=sys.executable, log=str(log), rate=rate))
        program.chmod(0o755)
        monkeypatch.setenv("LLAMA_BENCH", str(program))
        return log

    return put


@pytest.mark.parametrize("bits", [None, 8, 16])
def test_llama_cpp_is_asked_for_the_same_lengths_in_turn(tiny_dir, tmp_path, llama_bench, bits):  # noqa: F811
    log = llama_bench(7.5)
    if bits == 16:  # what fits in them
        model, tokenizer = from_pretrained(tiny_dir, dtype=torch.float16)
        tiny_dir = tmp_path / "half"
        save_pretrained(model, tiny_dir, tokenizer=tokenizer)
    report = run_bench(str(tiny_dir), repeats=1, against="llama.cpp", bits=bits, **{**SMALL, "new_tokens": 3})
    asked = [json.loads(line) for line in log.read_text().splitlines()][2:]  # without the warm-up
    lengths = [[options.get(name) for name in ("-p", "-n", "-d")] for options, _ in asked]
    assert lengths == [["8", "0", None], ["0", "3", "8"], ["32", "0", None], ["0", "3", "32"]]
    matrix = 49_152 * 64  # the embedding, in fp16 where the head is whole numbers, and the head
    n_bytes = matrix * 2 + matrix * 34 / 32 if bits == 8 else 2 * matrix * 4  # 16 bits: fp32's own numbers
    assert n_bytes < asked[0][1] < n_bytes + 3e6  # and the tokenizer
    assert report["decode"].values["llama.cpp"] == [7.5] and report["decode_long"].ratio("llama.cpp") > 0
    assert "llama.cpp" not in report["memory"].values
    assert ("weights of 8 bits" in report.title) == (bits == 8) and "float32" in report.title


def test_a_comparison_that_cannot_be_made_is_refused(tiny_dir, llama_bench, monkeypatch):  # noqa: F811
    monkeypatch.setenv("LLAMA_BENCH", str(tiny_dir / "nothing"))
    with pytest.raises(InputError, match="set LLAMA_BENCH to the program's path"):
        run_bench(str(tiny_dir), against="llama.cpp", **SMALL)
    for against in ("ollama", "llama.cpp,llama.cpp"):
        with pytest.raises(InputError, match="--against takes"):
            run_bench(str(tiny_dir), against=against, **SMALL)
    with pytest.raises(InputError, match="not compared with transformers"):
        run_bench(str(tiny_dir), against="transformers", bits=8, **SMALL)
    with pytest.raises(InputError, match="kept in 16 bits, or rounded to 8 or 4, got 5"):
        run_bench(str(tiny_dir), bits=5, **SMALL)
    llama_bench(0)
    with pytest.raises(InputError, match="give another --dtype"):
        run_bench(str(tiny_dir), against="llama.cpp", **{**SMALL, "dtype": torch.bfloat16})


def test_transformers_is_not_measured_on_what_it_would_read_as_random_weights(tiny_dir, tmp_path):  # noqa: F811
    model, tokenizer = from_pretrained(tiny_dir, bits=8)
    save_pretrained(model, tmp_path / "small", tokenizer=tokenizer)
    small, cpu = str(tmp_path / "small"), torch.device("cpu")
    for measure, options in ((run_bench, {**SMALL, "against": "transformers"}), (run_harness_bench, {"device": cpu}),
                             (run_train_bench, {"device": cpu, "against": "transformers"})):  # fmt: skip
        with pytest.raises(InputError, match="small is quantized in this package's form, which transformers does not"):
            measure(small, **options)
    with pytest.raises(LlamammError, match="^loading with llamamm failed: the model is quantized already"):
        run_bench(small, bits=4, repeats=1, **SMALL)


def test_a_program_that_says_nothing_is_told(tmp_path, llama_bench):
    llama_bench(0)
    with pytest.raises(LlamammError, match="gave no figures"):
        LlamaBench(tmp_path / "model.gguf", n_threads=1).read(8)


def test_the_command_shows_what_is_kept(tiny_dir):  # noqa: F811
    result = run("bench", "--model", tiny_dir, "--dtype", "float32", "--prompt-tokens", 8, "--new-tokens", 6,
                 "--prefill-tokens", 32, "--repeats", 1, "--busy")  # fmt: skip
    assert result.exit_code == 0, result.exception
    assert "decode 6 after 8, one core busy" in result.stdout and "llamamm keeps " in result.stdout
    assert "ratio" not in result.stdout
