"""fast.decoder: the same tokens and logits as PyTorch's steps, and no step where the model is something else."""

import copy
import pickle
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamm import (
    Llama3Model,
    TextConfig,
    apply_lora,
    from_pretrained,
    generate,
    merge_lora,
    pad_left,
    set_lora_enabled,
)
from llamamm.errors import InputError, MissingDependencyError
from llamamm.fast import decoder
from llamamm.fast.decoder import FastDecoder, equip
from llamamm.fast.quantized import narrow, quantize
from llamamm.text import attention
from llamamm.text.layers import RMSNorm
from tests.llama32_vision.test_model import build as build_mllama
from tests.llama32_vision.test_model import inputs, theirs  # noqa: F401 (a fixture)
from tests.multimodal.test_model import CROSS, SPLICED, build

pytest.importorskip("numba")
CFG = TextConfig.tiny(hidden_size=64, intermediate_size=192, n_heads=4, n_kv_heads=2, vocab_size=512, n_layers=3)


class Counting(FastDecoder):
    """Counts the steps that it took."""

    def __init__(self):
        super().__init__()
        self.taken = self.scored = 0

    def run_blocks(self, *args):
        out = super().run_blocks(*args)
        self.taken += out is not None
        return out

    def head(self, *args):
        out = super().head(*args)
        self.scored += out is not None
        return out

    def step(self, *args):
        out = super().step(*args)
        self.taken += out is not None
        self.scored += out is not None
        return out


def make(cfg=CFG, *, seed=0, std=0.15, dtype=torch.float32):
    torch.manual_seed(seed)
    model = Llama3Model(cfg).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=std)
    return model.to(dtype)


@torch.inference_mode()
def steps(model, ids, fast, *, n=4, padding=None, **first):
    """Logits of n steps with tokens that do not depend on them, and the cache's keys."""
    model.fast = fast
    cache = model.make_cache(len(ids), ids.shape[1] + n)
    model(ids, cache=cache, padding=padding, **first)
    logits = []
    for k in range(n):
        if padding is not None:
            padding = torch.cat((padding, torch.ones_like(padding[:, :1])), dim=1)
        logits.append(model(torch.full((len(ids), 1), 7 + k), cache=cache, padding=padding))
    return torch.cat(logits, dim=1).float(), cache.keys.clone()


def assert_equal_steps(model, ids, *, atol=2e-5, taken=True, **options):
    fast = Counting()
    ours, our_keys = steps(model, ids, fast, **options)
    eager, keys = steps(model, ids, None, **options)
    torch.testing.assert_close(ours, eager, atol=atol, rtol=1e-4)
    torch.testing.assert_close(our_keys, keys, atol=atol, rtol=1e-4)
    first_too = ids.shape[1] == 1  # a prompt of one token is a step like any other
    assert fast.taken == fast.scored == (4 + first_too if taken else 0)


def prompt(n=5, rows=1, seed=0):
    return torch.randint(8, 500, (rows, n), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("changes", [{}, {"n_heads": 4, "n_kv_heads": 4}, {"n_heads": 8, "n_kv_heads": 1},
                                     {"tie_embeddings": False},
                                     {"vocab_size": 509, "intermediate_size": 70}])  # fmt: skip
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_steps_equal_pytorchs(changes, rows):
    assert_equal_steps(make(CFG.replace(**changes)), prompt(rows=rows))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 99))
def test_padded_rows_equal_pytorchs(lengths, seed):
    rows = [prompt(n, seed=seed + n)[0].tolist() for n in lengths]
    ids, padding = pad_left(rows)
    assert_equal_steps(make(seed=seed), ids, padding=padding)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_nearer_to_the_truth_than_pytorchs(dtype):
    model = make(dtype=dtype)
    whole = copy.deepcopy(model).float()
    truth, _ = steps(whole, prompt(), None)
    ours, keys = steps(model, prompt(), Counting())
    eager, _ = steps(model, prompt(), None)
    assert keys.dtype == dtype
    assert (ours - truth).abs().max() <= (eager - truth).abs().max()


@pytest.mark.parametrize("bits", [8, 4])
def test_whole_numbers_equal_their_own_spread_out_weights(bits):
    assert_equal_steps(quantize(make(), bits), prompt(rows=2), atol=2e-3)  # x has 16 bits


@pytest.mark.parametrize("bits", [8, 4])
def test_beside_whole_numbers_keys_and_values_are_kept_in_half_the_room(bits):
    model = equip(make(), fast=True, bits=bits)
    assert model.make_cache(1, 8).keys.dtype == torch.float16
    assert_equal_steps(model, prompt(rows=2), atol=4e-3)
    left = equip(make(), fast=False, bits=bits)
    assert left.make_cache(1, 8).keys.dtype == torch.float32  # PyTorch would spread it out for each token


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_kept_in_16_bits_are_computed_with_in_fp32(dtype):
    assert_equal_steps(narrow(make(dtype=dtype).float()), prompt(rows=2))


def test_tokens_are_the_same_over_many_prompts():
    model = make()
    for seed in range(20):
        ids = prompt(seed=seed, rows=2)
        model.fast = None
        eager = generate(model, ids, 60)
        model.fast = FastDecoder()
        assert torch.equal(generate(model, ids, 60), eager)


# ---- adapters ----


def test_adapters_beside_merged_and_off():
    model = make()
    apply_lora(model, r=3, alpha=6, targets=["q_proj", "o_proj", "gate_proj", "down_proj"])
    for name, parameter in model.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.eval()
    fast = Counting()
    beside, _ = steps(model, prompt(), fast)
    assert_equal_steps(model, prompt())
    merge_lora(model)
    merged, _ = steps(model, prompt(), fast)  # the same decoder: it must see that the weights are others
    torch.testing.assert_close(merged, beside, atol=1e-4, rtol=1e-4)
    set_lora_enabled(model, False)
    off, _ = steps(model, prompt(), fast)
    torch.testing.assert_close(off, steps(model, prompt(), None)[0], atol=2e-5, rtol=1e-4)
    assert (off - merged).abs().max() > 1e-3 and fast.taken == 12


def test_dora_and_halves_are_left_to_pytorch():
    model = make()
    apply_lora(model, r=2, alpha=2, dora=True)
    assert_equal_steps(model.eval(), prompt(), taken=False)


# ---- what is not what the kernels compute ----


class Louder(RMSNorm):
    def forward(self, x):
        return 2 * super().forward(x)


def hook(_module, _args, out):
    return out + 1


CHANGES = {
    "a hook": lambda model: model.layers[1].mlp.register_forward_hook(hook),
    "a hook on the head's entry": lambda model: model.layers[0].self_attn.q_proj.register_forward_pre_hook(
        lambda _module, args: (args[0] * 2,)),
    "another norm": lambda model: setattr(model.layers[2], "input_layernorm", Louder(64)),
    "another forward": lambda model: setattr(model.layers[0].mlp, "forward", lambda x: x),
    "another attention": lambda model: setattr(model.layers[0].self_attn, "attend", attention.readable_attention),
    "biases": lambda model: setattr(model.layers[0].mlp, "up_proj", torch.nn.Linear(64, 192)),
    "training": lambda model: model.train(),
}
ENDS = {
    "a hook on the embeddings": lambda model: model.embed_tokens.register_forward_hook(hook),
    "another last norm": lambda model: setattr(model, "norm", Louder(64)),
    "a hook on the head": lambda model: model.lm_head.register_forward_hook(hook),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("late", [False, True])
def test_a_changed_model_is_left_to_pytorch(change, late):
    """late: the kernels have run before, and must notice."""
    model, fast = make(), Counting()
    if late:
        steps(model, prompt(), fast)
    before = fast.taken
    change(model)
    ours, _ = steps(model, prompt(), fast)
    assert fast.taken == before
    torch.testing.assert_close(ours, steps(model, prompt(), None)[0], rtol=0, atol=0)


@pytest.mark.parametrize("change", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("late", [False, True])
def test_the_blocks_alone_are_taken_between_changed_ends(change, late):
    model, fast = make(), Counting()
    if late:
        steps(model, prompt(), fast)
    change(model)
    ours, eager = (steps(model, prompt(), way)[0] for way in (fast, None))
    torch.testing.assert_close(ours, eager, atol=5e-5, rtol=1e-4)


WITHIN = CHANGES | ENDS | {
    "an adapter switched off": lambda model: set_lora_enabled(model, False),
    "an adapter merged": merge_lora,
    "a weight of its own": lambda model: setattr(model.layers[0].self_attn.v_proj, "weight",
                                                 torch.nn.Parameter(torch.zeros(32, 64))),
}  # fmt: skip


@pytest.mark.parametrize("change", WITHIN.values(), ids=WITHIN)
def test_a_change_within_an_answer_is_seen_at_once(change):
    found = []
    for fast in (Counting(), None):
        model = make()
        if change in (WITHIN["an adapter switched off"], WITHIN["an adapter merged"]):
            apply_lora(model, r=3, alpha=6, targets=["q_proj", "down_proj"])
            for name, parameter in model.named_parameters():
                if "lora_b" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
            model.eval()
        model.fast, cache = fast, model.make_cache(1, 12)
        with torch.inference_mode():
            model(prompt(), cache=cache)
            for token in (7, 8):
                before = model(torch.tensor([[token]]), cache=cache)
        change(model)
        with torch.inference_mode():
            found.append((before, model(torch.tensor([[9]]), cache=cache).float()))
    torch.testing.assert_close(found[0][0], found[1][0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], atol=5e-5, rtol=1e-4)


def test_another_text_is_looked_at_whole():
    model, fast = make(), Counting()
    first, _ = steps(model, prompt(), fast)
    model.layers[2].mlp.up_proj.weight.data = -model.layers[2].mlp.up_proj.weight.data.clone()
    assert_second_differs(model, fast, first)


def test_a_long_text_is_worth_large_pages_once(monkeypatch):
    model, asked = make(), []
    monkeypatch.setattr(decoder, "MANY_STEPS", 3)
    monkeypatch.setattr(decoder, "use_large_pages_beside", asked.append)
    fast = Counting()
    for _ in range(3):
        steps(model, prompt(), fast)
    (storages,) = asked
    assert {s.data_ptr() for s in storages} == {p.untyped_storage().data_ptr() for p in model.parameters()}


@pytest.mark.parametrize("bad", [-1, 512])
def test_an_id_outside_the_vocabulary_is_told_as_ever(bad):
    model, fast = make(), Counting()
    cache = model.make_cache(1, 8)
    model.fast = fast
    with torch.inference_mode():
        model(prompt(), cache=cache)
        with pytest.raises(InputError, match=f"{bad} is outside"):
            model(torch.tensor([[bad]]), cache=cache)
        assert model(torch.tensor([[3]]), cache=cache).isfinite().all() and fast.taken == 1


@pytest.mark.parametrize(("owner", "name"), [(attention, "apply_rope"), (RMSNorm, "forward"),
                                             (Llama3Model, "scores")])
def test_a_changed_package_is_left_to_pytorch(monkeypatch, owner, name):
    model, real = make(), getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args: real(*args) * 0.5)
    assert_equal_steps(model, prompt(), taken=False)


def test_a_changed_head_is_noticed():
    model, fast = make(), Counting()
    steps(model, prompt(), fast)
    model.lm_head.register_forward_hook(hook)
    assert (steps(model, prompt(), fast)[0] - steps(model, prompt(), None)[0]).abs().max() < 1e-4


def test_weights_are_read_where_they_are():
    model, fast = make(), Counting()
    first, _ = steps(model, prompt(), fast)
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight.mul_(-1)
    assert_second_differs(model, fast, first)
    model.layers[0].self_attn.v_proj.weight = torch.nn.Parameter(torch.zeros(32, 64))
    assert_second_differs(model, fast, first)
    model.double().float()  # other memory
    assert_second_differs(model, fast, first)


def assert_second_differs(model, fast, first):
    before = fast.taken
    ours, _ = steps(model, prompt(), fast)
    torch.testing.assert_close(ours, steps(model, prompt(), None)[0], atol=2e-5, rtol=1e-4)
    assert (ours - first).abs().max() > 1e-3 and fast.taken == before + 4


def test_gradients_doubles_and_gaps_are_left_to_pytorch():
    model, fast = make(), Counting()
    model.fast = fast
    cache = model.make_cache(1, 9)
    model(prompt(), cache=cache)
    assert model(prompt(1), cache=cache).requires_grad and fast.taken == 0
    steps(model.double(), prompt(), fast)
    assert fast.taken == 0
    gap = torch.tensor([[True, False, True, True, True]])
    assert_equal_steps(model.float(), prompt(), padding=gap, taken=False)
    steps(model, prompt(rows=9), fast)
    assert fast.taken == 0


def test_a_full_cache_and_a_full_context_are_told_as_ever():
    model = make(CFG.replace(context_length=8))
    model.fast = FastDecoder()
    with torch.inference_mode():
        for room, error in ((6, "the KV cache holds 6"), (8, "pass the context of 8")):
            cache = model.make_cache(1, room)
            model(prompt(6 if room == 6 else 8), cache=cache)
            with pytest.raises(Exception, match=error):
                model(prompt(1), cache=cache)


def test_weights_that_are_nan_are_told_as_ever():
    model = make()
    model.fast = FastDecoder()
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight[0] = float("nan")
    with pytest.raises(Exception, match=r"(?i)nan"):
        generate(model, prompt(), 5, temperature=1.0)


# ---- models that see and hear ----


@pytest.mark.parametrize("changes", [SPLICED["spliced"], CROSS["cross"], CROSS["cross, prompts"]], ids=str)
def test_models_that_see(changes):
    model = build(changes)
    fast = Counting()
    ids = prompt()
    torch.testing.assert_close(steps(model, ids, fast)[0], steps(model, ids, None)[0], atol=2e-5, rtol=1e-4)
    assert fast.taken == 4


def test_llama32_vision(theirs):  # noqa: F811
    model, fast = build_mllama(theirs), Counting()
    words, images, sees = inputs([[4, 2], [1, 3]])
    given_ = {"images": images, "sees": sees}
    assert_close = torch.testing.assert_close
    assert_close(steps(model, words, fast, **given_)[0], steps(model, words, None, **given_)[0], atol=1e-4, rtol=1e-4)
    assert fast.taken == 4


# ---- the door ----


def test_auto_takes_large_models_on_a_cpu(monkeypatch):
    small = make()
    assert equip(small, fast="auto").fast is None and isinstance(equip(small, fast=True).fast, FastDecoder)
    monkeypatch.setattr(decoder, "LEAST_WEIGHTS", 1000)
    assert isinstance(equip(small).fast, FastDecoder) and equip(small, fast=False).fast is None
    monkeypatch.setattr(decoder, "is_available", lambda: False)
    assert equip(small, fast="auto").fast is None
    with pytest.raises(MissingDependencyError, match=r"pip install 'llamamm\[fast\]'"):
        equip(small, fast=True)
    with pytest.raises(InputError, match="'auto', True or False"):
        equip(small, fast="yes")


def test_other_devices_are_left_to_pytorch():
    with torch.device("meta"):
        model = Llama3Model(CFG)
    with pytest.raises(InputError, match="is for the CPU"):
        equip(model, fast=True)


def test_copies_have_decoders_of_their_own():
    model = make()
    model.fast = FastDecoder()
    first, _ = steps(model, prompt(), model.fast)
    other = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert isinstance(other.fast, FastDecoder) and other.fast is not model.fast
    torch.testing.assert_close(steps(other, prompt(), other.fast)[0], first)


def test_two_threads_take_turns():
    models = [make(seed=n) for n in range(2)]
    alone = [generate(model, prompt(), 40) for model in models]
    found = {}

    def run(n):
        models[n].fast = FastDecoder()
        found[n] = generate(models[n], prompt(), 40)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(torch.equal(found[n], alone[n]) for n in range(2))


def test_a_step_keeps_its_place_while_another_thread_waits_for_its_turn(monkeypatch):
    model, texts, found, waits = make(), (prompt(5), prompt(9, seed=1)), {}, threading.Event()
    with torch.inference_mode():
        right = [steps(model, text, None, n=1)[0] for text in texts]
        model.fast = FastDecoder()
        caches = [model.make_cache(1, 10) for _ in texts]
        for text, cache in zip(texts, caches, strict=True):
            model(text, cache=cache)

    @torch.inference_mode()
    def step(n):
        found[n] = model(torch.tensor([[7]]), cache=caches[n])

    class Lock:
        """Tells when the second thread has come as far as this."""

        def __init__(self):
            self.lock = threading.Lock()

        def __enter__(self):
            if threading.current_thread() is second:
                waits.set()
            self.lock.acquire()

        def __exit__(self, *_):
            self.lock.release()

    second, run_all = threading.Thread(target=step, args=(1,)), decoder.run_all

    def late(*args):
        if not waits.is_set():
            second.start()
            assert waits.wait(60)
        run_all(*args)

    monkeypatch.setattr(decoder, "_ONE_AT_A_TIME", Lock())
    monkeypatch.setattr(decoder, "run_all", late)
    step(0)
    second.join(60)
    for n in (0, 1):
        torch.testing.assert_close(found[n], right[n], atol=2e-5, rtol=1e-4)


def test_the_real_model_says_the_same(smollm2_dir):
    """Greedy tokens of an answer; of a tie either is right, and there is none here."""
    model, tokenizer = from_pretrained(smollm2_dir, dtype=torch.float32)
    equip(model, fast="auto")
    assert isinstance(model.fast, FastDecoder)
    ids = torch.tensor([tokenizer.encode("The capital of France is")])
    ours = generate(model, ids, 32)
    model.fast = None
    assert torch.equal(ours, generate(model, ids, 32))
