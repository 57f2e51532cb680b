"""text.model: equality with transformers on many shapes, cache, padding, packing, limits, parameter counts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from llamamm import (
    LLAMA32_3B_CONFIG,
    LLAMA32_CONFIG,
    SMOLLM2_CONFIG,
    Llama3Model,
    RopeScaling,
    TextConfig,
    generate,
    pad_left,
)
from llamamm.errors import ContextOverflowError, InputError
from llamamm.text.attention import readable_attention


def reference(model: Llama3Model, *, attention: str = "sdpa") -> PreTrainedModel:
    """transformers' model with the same weights."""
    hf_cfg = LlamaConfig(**model.cfg.to_hf(), attn_implementation=attention)
    hf = AutoModelForCausalLM.from_config(hf_cfg, dtype=model.cfg.dtype).eval()
    hf.load_state_dict({k if k == "lm_head.weight" else f"model.{k}": v for k, v in model.state_dict().items()})
    return hf


def random_ids(cfg, *shape, seed=0):
    return torch.randint(cfg.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


SHAPES = {
    "MHA": {"n_heads": 4, "n_kv_heads": 4},
    "GQA": {"n_heads": 4, "n_kv_heads": 2},
    "MQA": {"n_heads": 4, "n_kv_heads": 1},
    "head_dim 24": {"head_dim": 24},
    "untied": {"tie_embeddings": False},
    "eps, theta": {"norm_eps": 1e-3, "rope_theta": 500_000.0},
    "scaled past the original context": {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 32), "n_layers": 3},
    "scaled by 32": {"rope_scaling": RopeScaling(32.0, 1.0, 4.0, 64), "rope_theta": 500_000.0},
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
@torch.no_grad()
def test_logits_equal_transformers(changes):
    torch.manual_seed(1)
    model = Llama3Model(TextConfig.tiny(**changes)).eval()
    ids = random_ids(model.cfg, 2, 200)
    difference = (model(ids) - reference(model)(ids).logits).abs().max()
    assert difference < 1e-5, f"largest difference {difference}"


@settings(max_examples=15)
@given(kv=st.integers(1, 3), group=st.integers(1, 3), half=st.integers(1, 12), layers=st.integers(1, 3),
       tied=st.booleans(), seed=st.integers(0, 1000))  # fmt: skip
@torch.no_grad()
def test_logits_equal_transformers_on_random_shapes(kv, group, half, layers, tied, seed):
    torch.manual_seed(seed)
    heads = kv * group
    cfg = TextConfig.tiny(hidden_size=8 * heads, n_heads=heads, n_kv_heads=kv, head_dim=2 * half, n_layers=layers,
                          tie_embeddings=tied)  # fmt: skip
    model = Llama3Model(cfg).eval()
    ids = random_ids(cfg, 1, 33, seed=seed)
    assert (model(ids) - reference(model)(ids).logits).abs().max() < 1e-5


@torch.no_grad()
def test_bf16_logits_equal_transformers_bit_for_bit():
    """Step by step on both sides, every cast stands in the same place."""
    torch.manual_seed(0)
    model = Llama3Model(TextConfig.tiny(dtype=torch.bfloat16), attend=readable_attention).eval()
    ids = random_ids(model.cfg, 1, 50)
    assert torch.equal(model(ids), reference(model, attention="eager")(ids).logits)


@torch.no_grad()
def test_readable_attention_gives_the_same_logits(tiny_model):
    readable = Llama3Model(tiny_model.cfg, attend=readable_attention)
    readable.load_state_dict(tiny_model.state_dict())
    ids = random_ids(tiny_model.cfg, 2, 40)
    torch.testing.assert_close(readable(ids), tiny_model(ids), rtol=0, atol=1e-5)


@settings(max_examples=20)
@given(pieces=st.lists(st.integers(1, 9), min_size=1, max_size=5))
@torch.no_grad()
def test_cached_in_pieces_equals_uncached(pieces):
    torch.manual_seed(0)
    model = Llama3Model(TextConfig.tiny()).eval()
    ids = random_ids(model.cfg, 2, sum(pieces))
    cache = model.make_cache(2, sum(pieces))
    cached = torch.cat([model(piece, cache=cache) for piece in ids.split(pieces, dim=1)], dim=1)
    assert cache.length == sum(pieces)
    torch.testing.assert_close(cached, model(ids), rtol=0, atol=1e-5)


@settings(max_examples=20)
@given(lengths=st.lists(st.integers(1, 12), min_size=2, max_size=4))
@torch.no_grad()
def test_padded_batch_equals_one_at_a_time(lengths):
    torch.manual_seed(0)
    model = Llama3Model(TextConfig.tiny()).eval()
    prompts = [random_ids(model.cfg, n, seed=n).tolist() for n in lengths]
    ids, padding = pad_left(prompts)
    batch = model(ids, padding=padding)
    assert torch.isfinite(batch).all()
    for row, prompt in enumerate(prompts):
        alone = model(torch.tensor([prompt]))[0]
        torch.testing.assert_close(batch[row, -len(prompt) :], alone, rtol=0, atol=1e-5)


@settings(max_examples=15)
@given(rows=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=3),
       seed=st.integers(0, 999))  # fmt: skip
@torch.no_grad()
def test_packed_texts_give_the_logits_of_each_alone(rows, seed):
    torch.manual_seed(0)
    model = Llama3Model(TextConfig.tiny()).eval()
    width = max(map(sum, rows))
    ids = random_ids(model.cfg, len(rows), width, seed=seed)
    segments = torch.zeros_like(ids)
    for row, lengths in enumerate(rows):
        numbers = torch.arange(1, len(lengths) + 1).repeat_interleave(torch.tensor(lengths))
        segments[row, : len(numbers)] = numbers
    packed = model(ids, segments=segments)
    assert torch.isfinite(packed).all()
    for row, lengths in enumerate(rows):
        for text, logits in zip(ids[row].split([*lengths, width - sum(lengths)]),
                                packed[row].split([*lengths, width - sum(lengths)]), strict=True):  # fmt: skip
            if len(text):
                torch.testing.assert_close(logits, model(text[None])[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_segments_are_refused_beside_a_cache_or_padding(tiny_model):
    ids, segments = random_ids(tiny_model.cfg, 1, 4), torch.tensor([[1, 1, 2, 2]])
    cache = tiny_model.make_cache(1, 8)
    with pytest.raises(InputError, match="neither a cache nor padding"):
        tiny_model(ids, segments=segments, cache=cache)
    assert cache.length == 0
    with pytest.raises(InputError, match="neither a cache nor padding"):
        tiny_model(ids, segments=segments, padding=torch.ones(1, 4, dtype=torch.bool))


@torch.no_grad()
def test_hidden_states_are_what_the_head_reads(tiny_model):
    ids = random_ids(tiny_model.cfg, 2, 9)
    segments = torch.tensor([[1] * 4 + [2] * 5, [1] * 9])
    hidden = tiny_model.hidden_states(ids, segments=segments)
    assert hidden.shape == (2, 9, tiny_model.cfg.hidden_size)
    torch.testing.assert_close(tiny_model.lm_head(hidden), tiny_model(ids, segments=segments))


@torch.no_grad()
def test_last_only_is_the_last_row(tiny_model):
    ids = random_ids(tiny_model.cfg, 2, 9)
    torch.testing.assert_close(tiny_model(ids, last_only=True), tiny_model(ids)[:, -1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([[1, 512]]), "512 is outside the vocabulary of 512"),
        (torch.tensor([[-1, 3]]), "-1 is outside"),
        (torch.empty(1, 0, dtype=torch.int64), "no tokens"),
        (torch.tensor([[]]), "no tokens"),
        (torch.tensor([1, 2]), r"shape \(B, T\)"),
        (torch.tensor([[0.5]]), "float32"),
        (torch.zeros(1, 2, dtype=torch.int64, device="meta"), "meta.*cpu"),
    ],
)
def test_ids_the_model_cannot_take_are_refused(tiny_model, ids, message):
    with pytest.raises(InputError, match=message):
        tiny_model(ids)


@torch.no_grad()
def test_past_the_context_is_refused_and_the_cache_is_unharmed(tiny_model):
    cfg = tiny_model.cfg
    with pytest.raises(ContextOverflowError, match=r"0 \+ 257 tokens = 257.*256"):
        tiny_model(random_ids(cfg, 1, 257))
    cache = tiny_model.make_cache(1, 10)
    tiny_model(random_ids(cfg, 1, 8), cache=cache)
    with pytest.raises(ContextOverflowError, match=r"8 \+ 3 new = 11"):
        tiny_model(random_ids(cfg, 1, 3), cache=cache)
    assert cache.length == 8


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [(LLAMA32_CONFIG, 1_235_814_400), (LLAMA32_3B_CONFIG, 3_212_749_824), (SMOLLM2_CONFIG, 134_515_008)],
)
def test_parameter_counts_of_the_public_models(cfg, expected):
    with torch.device("meta"):
        assert Llama3Model(cfg.replace(context_length=8)).n_parameters() == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_whole_model_compiles_without_a_break_and_gives_the_same_tokens(tiny_model):
    """Prompt and single steps, with the cache. `aot_eager` traces as the real compiler does, and needs none."""
    compiled = Llama3Model(tiny_model.cfg).eval()
    compiled.load_state_dict(tiny_model.state_dict())
    compiled.compile(dynamic=True, fullgraph=True, backend="aot_eager")
    ids = random_ids(tiny_model.cfg, 1, 7)
    assert generate(compiled, ids, 12).tolist() == generate(tiny_model, ids, 12).tolist()
    with torch._dynamo.config.patch(error_on_recompile=True):  # a prompt and a step have their graphs, for all lengths
        for prompt in (random_ids(tiny_model.cfg, 1, n) for n in (5, 21)):  # up to 4 rows have products of their own
            assert generate(compiled, prompt, 7).tolist() == generate(tiny_model, prompt, 7).tolist()


def test_rope_tables_are_not_saved(tiny_model):
    assert not {"cos", "sin"} & set(tiny_model.state_dict())


def test_gradients_reach_every_parameter(tiny_model):
    tiny_model(random_ids(tiny_model.cfg, 1, 8)).square().mean().backward()
    assert [n for n, p in tiny_model.named_parameters() if p.grad is None or not p.grad.any()] == []
