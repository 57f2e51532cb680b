"""experiments.gpu_run on the CPU, with a tiny model: each section runs, and tells right from wrong."""

import json
from dataclasses import replace

import pytest
import torch

from llamamm.errors import InputError
from llamamm.experiments import gpu_run
from llamamm.experiments.gpu_run import FEW, SECTIONS, Finding, Setting, make_random, run_sections, table
from llamamm.fast.quantized import quantized_linears
from tests.cli.test_main import run


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return Setting(str(make_random("tiny", tmp_path_factory.mktemp("random") / "model")), "cpu", **FEW)


@pytest.mark.parametrize("name", [name for name in SECTIONS if name != "compile"])
def test_each_section_finds_what_it_is_for(setting, name):
    found = list(SECTIONS[name](setting))
    assert found and {one.section for one in found} == {name}
    assert all(one.holds is not False for one in found), found
    assert any(one.holds for one in found) or name == "speed"
    assert len(table(found).rows) == len(found) and all(one.told() for one in found)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_compiled_step_is_measured_in_both_modes(setting, monkeypatch):
    compile_, modes = torch.compile, []

    def traced(*args, mode=None, **options):
        modes.append(mode)
        return compile_(*args, **{**options, "backend": "aot_eager"})

    monkeypatch.setattr(torch, "compile", traced)
    found = list(SECTIONS["compile"](setting))
    assert "reduce-overhead" in modes and [one.holds for one in found] == [None] * 2
    assert all("4 of 4 identical" in one.told() for one in found)
    torch._dynamo.reset()


def spoilt(model):
    """A hundredth of one matrix's size, in all of its numbers."""
    with torch.no_grad():
        for linear in quantized_linears(model).values():
            linear.scales[:1] *= 1.02
        weight = model.layers[0].mlp.down_proj.weight
        if isinstance(weight, torch.nn.Parameter):
            weight += 0.3 * weight.std()
    return model


@pytest.mark.parametrize("name", ["parity", "half", "quantized"])
def test_a_model_that_is_a_little_wrong_on_the_device_does_not_pass(setting, monkeypatch, name):
    ours, calls = Setting.ours, []

    def wrong(self, dtype, *, device=None, **options):
        calls.append(device)
        model = ours(self, dtype, device=device, **options)
        return model if device == "cpu" else spoilt(model)  # which says so is what others are held against

    monkeypatch.setattr(Setting, "ours", wrong)
    verdicts = [one.holds for one in SECTIONS[name](setting) if one.holds is not None]
    assert calls and verdicts and not any(verdicts)


def test_tokens_that_are_not_the_best_ones_do_not_pass(setting, monkeypatch):
    generate = gpu_run.generate

    def forgetful(model, ids, n):
        """As with a cache whose first half is lost."""
        return torch.cat((ids, generate(model, ids[:, ids.shape[1] // 2 :], n)[:, -n:]), dim=1)

    monkeypatch.setattr(gpu_run, "generate", forgetful)
    assert [one.holds for one in SECTIONS["tokens"](setting)] == [False]


def test_a_training_that_takes_other_steps_does_not_pass(setting, monkeypatch):
    two_steps = gpu_run.two_steps

    def wrong(path, ids, *, precision, **options):
        done = two_steps(path, ids, precision=precision, **options)
        return done if precision == "fp32" else replace(done, losses=[done.losses[0], float("nan")])

    monkeypatch.setattr(gpu_run, "two_steps", wrong)
    assert [one.holds for one in SECTIONS["training"](setting)] == [True, False, False, False]


def test_what_fails_or_takes_too_long_is_a_finding_and_the_others_go_on(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_run, "LEAST_S", 0.0)
    broken = replace(setting, path=str(tmp_path / "nowhere"))
    (one,) = run_sections(broken, ["tokens"], minutes=2)
    assert one.holds is False and one.what.startswith("failed: ") and "nowhere" in one.what
    (one,) = run_sections(setting, ["tokens"], minutes=0.2 / 60)
    assert one.holds is False and one.what == "ended after 0 s"
    monkeypatch.setattr(gpu_run, "LEAST_S", 15.0)
    found = list(run_sections(setting, ["parity", "tokens"], minutes=0.1))
    assert [one.what for one in found] == ["not begun: 0.1 minutes are over"] * 2
    assert not any(one.holds for one in found)


def test_the_command_writes_what_it_found(tmp_path):
    """One section, in a process of its own."""
    file = tmp_path / "found.json"
    done = run("experiment", "gpu", "--random", "tiny", "--few", "--sections", "tokens", "--device", "cpu",
               "--out", file)  # fmt: skip
    assert done.exit_code == 0, done.output
    kept = json.loads(file.read_text())
    assert kept["about"]["device"] == "cpu" and kept["about"]["model"] == "tiny"
    assert [Finding(**one).holds for one in kept["findings"]] == [True]
    assert "best ones 4 of 4" in done.stdout and str(file) in done.stdout.replace("\n", "")


def test_a_finding_that_is_wrong_is_the_exit_code(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_run, "run_sections", lambda *_, **__: iter([Finding("parity", "bf16", {}, holds=False)]))
    done = run("experiment", "gpu", "--random", "tiny", "--few", "--device", "cpu", "--out", tmp_path / "found.json")
    assert done.exit_code == 1 and "NO" in done.stdout


@pytest.mark.parametrize(("words", "message"), [
    (["--device", "cpu"], "this is for a GPU, and the best device here is cpu: --few"),
    (["--few", "--sections", "parity,speeed"], "--sections speeed: there are parity, tokens"),
    (["smollm2", "--random", "1B", "--few"], "name two models")])
def test_refusals(words, message):
    done = run("experiment", "gpu", *words)
    assert isinstance(done.exception, InputError) and message in str(done.exception)
