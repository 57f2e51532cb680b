"""experiments.quantized_quality: the same answers spread out, llama.cpp's rule of perplexity by hand, and its
program's mistakes in one line."""

import math
import stat

import pytest
import torch

from llamamm import Llama3Model, TextConfig
from llamamm.errors import InputError
from llamamm.experiments import quantized_quality as quality
from llamamm.experiments.quantized_quality import Form, measure_quantized, perplexity_in_chunks, spread_out, table
from llamamm.fast.quantized import QuantizedLinear, quantize
from llamamm.generation.prompts import as_processor
from llamamm.pretrained.ready import Ready
from llamamm.tasks.held_out import HeldOut, Sample, Source

WORDS = "It was the best of times, it was the worst of times. " * 60


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Llama3Model(TextConfig.tiny(vocab_size=49_152, n_layers=1)).eval()


@torch.no_grad()
def test_spread_out_it_answers_the_same(small):
    ids = torch.arange(9)[None]
    before = quantize(small, 4)(ids)
    spread_out(small)
    assert not any(isinstance(m, QuantizedLinear) for m in small.modules())
    torch.testing.assert_close(small(ids), before)


@torch.no_grad()
def test_perplexity_in_chunks_by_hand(small, smol):
    ids = smol.encode(WORDS)
    nats = []
    for begin in (0, 32, 64):
        logits = small(torch.tensor([ids[begin : begin + 32]]))[0].log_softmax(dim=-1)
        nats += [-float(logits[j - 1, ids[begin + j]]) for j in range(17, 32)]  # 256 of 512 would be left out: 0 to 256
    found = perplexity_in_chunks(small, smol, WORDS, length=32, n_chunks=3)
    assert found == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-4)
    with pytest.raises(InputError, match="two chunks of 4096"):
        perplexity_in_chunks(small, smol, WORDS, length=4096)


def test_a_table_of_forms_beside_another_program(small, smol, monkeypatch, tmp_path):
    held_out = HeldOut("wiki", "Wikipedia", "reading", [Sample(str(n), WORDS[n:400], group=str(n)) for n in range(3)])
    monkeypatch.setattr(quality, "load_ready", lambda *_, **__: Ready("m", small, as_processor(smol)))
    monkeypatch.setitem(quality.SETS, "wiki", Source(lambda: held_out))
    monkeypatch.setattr(quality, "calibration_rows", lambda *_, **__: torch.arange(1024).view(8, 128))
    monkeypatch.setattr(quality, "perplexity_in_chunks", lambda *_: 20.0)
    program = tmp_path / "llama-perplexity"
    said = 'echo "Final estimate: PPL = 10.0 +"'
    program.write_text(f'#!/bin/sh\n[ "$1" = -m ] && head -c 4 "$2" | grep -q GGUF && {said}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    forms = [Form(), Form(8), Form(4, 64, "gptq")]
    found = measure_quantized("m", forms=forms, n_items={"wiki": 3}, peer=tmp_path)
    assert [one.theirs for one in found] == [10.0, 10.0, None] and found[1].n_bytes < found[0].n_bytes * 2
    bits = [one.figures["wiki"].value for one in found]
    assert abs(bits[1] - bits[0]) < 0.01 < 1 < bits[0] and bits[2] != bits[0]
    assert len(table("m", found).rows) == 3
    program.write_text("#!/bin/sh\necho 'error: bad file' >&2; exit 1\n")
    with pytest.raises(InputError, match="did not read the file: error: bad file"):
        measure_quantized("m", forms=forms[:1], n_items={}, peer=tmp_path)
    with pytest.raises(InputError, match="no llama-perplexity in"):
        measure_quantized("m", peer=tmp_path / "elsewhere")
