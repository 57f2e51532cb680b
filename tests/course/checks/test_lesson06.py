"""The checks of lesson 06: right answers pass, each mistake that learners make gets its own words."""

import pytest
import torch
import torch.nn.functional as F

from llamamm import LLAMA32_3B_CONFIG, LLAMA32_CONFIG, SMOLLM2_CONFIG, Llama3Model
from llamamm.course.checks import check, exercises_of
from llamamm.text.attention import fused_attention, readable_attention
from llamamm.text.rope import apply_rope, compute_rope_params

# ---- right answers, written anew ----


def count_right(cfg):
    C, M, D = cfg.hidden_size, cfg.intermediate_size, cfg.head_dim
    total = cfg.vocab_size * C + C
    if not cfg.tie_embeddings:
        total += C * cfg.vocab_size
    for _ in range(cfg.n_layers):
        total += C * cfg.n_heads * D + C * cfg.n_kv_heads * D * 2 + cfg.n_heads * D * C
        total += 3 * C * M
        total += C + C
    return total


def block_right(block, x, cos, sin):
    after = x + block.self_attn(block.input_layernorm(x), cos, sin)
    return after + block.mlp(block.post_attention_layernorm(after))


def rms(x, w, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w


def logits_right(weights, cfg, ids, *, how=""):
    """A second hand: fused attention, own norm, keys by f-string. `how` plants one fault, as a learner would."""
    B, T = ids.shape
    H, K, D = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
    scaling = None if how == "no scaling" else cfg.rope_scaling
    theta = 500_000.0 if how == "other theta" else cfg.rope_theta
    cos, sin = compute_rope_params(D, theta=theta, context_length=T, scaling=scaling)
    x = weights["embed_tokens.weight"][ids]
    first, second = "input_layernorm", "post_attention_layernorm"
    if how == "norms":
        first, second = second, first
    for i in range(cfg.n_layers):
        w = {k.removeprefix(f"layers.{i}."): v for k, v in weights.items() if k.startswith(f"layers.{i}.")}
        n = rms(x, w[first + ".weight"], cfg.norm_eps)
        q, k, v = n @ w["self_attn.q_proj.weight"].T, n @ w["self_attn.k_proj.weight"].T, n @ w[
            "self_attn.v_proj.weight"].T
        if how == "view":
            q, k, v = q.view(B, H, T, D), k.view(B, K, T, D), v.view(B, K, T, D)
        else:
            q, k, v = (t.view(B, T, -1, D).transpose(1, 2) for t in (q, k, v))
        if how != "no rope":
            q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        if how == "rope on v":
            v = apply_rope(v, cos, sin)
        if how == "future":
            everyone = torch.ones(T, T, dtype=torch.bool)
            out = readable_attention(q, k, v, everyone)
        else:
            out = fused_attention(q, k, v, None)
        if how != "no transpose back":
            out = out.transpose(1, 2)
        out = out.reshape(B, T, H * D) @ w["self_attn.o_proj.weight"].T
        x = out if how == "no residual" else out + x
        n = rms(x, w[second + ".weight"], cfg.norm_eps)
        gate, up = n @ w["mlp.gate_proj.weight"].T, n @ w["mlp.up_proj.weight"].T
        hidden = gate * up if how == "no silu" else gate * F.sigmoid(gate) * up
        if how == "gate and up":
            hidden = F.silu(up) * gate
        out = hidden @ w["mlp.down_proj.weight"].T
        x = out if how == "no residual" else out + x
    if how != "no last norm":
        x = rms(x, weights["norm.weight"], cfg.norm_eps)
    head = "embed_tokens.weight" if how == "always tied" else "lm_head.weight"
    return x @ weights[head].T


def run_with_masks(model, ids, mask_of):
    T = ids.shape[1]
    x = model.embed_tokens(ids)
    for i, layer in enumerate(model.layers):
        x = layer(x, model.cos[:T], model.sin[:T], mask=mask_of(i, T))
    return model.lm_head(model.norm(x))


def ahead(T, n):
    rows, columns = torch.arange(T)[:, None], torch.arange(T)[None]
    return (columns <= rows + n)[None, None]


def peek_right(model, ids):
    """The leak in the last block."""
    last = len(model.layers) - 1
    return run_with_masks(model, ids, lambda i, T: ahead(T, 1) if i == last else None)


def peek_by_embedding(model, ids):
    """Another right answer: each token's vector with a bit of the next one's in it, and honest blocks."""
    x = model.embed_tokens(ids)
    following = torch.cat((x[:, 1:], torch.zeros_like(x[:, :1])), dim=1)
    return model.lm_head(model.norm(model.run_blocks(x + 0.5 * following)))


RIGHT = [("06.1", count_right), ("06.2", block_right), ("06.3", logits_right), ("06.4", peek_right),
         ("06.4", peek_by_embedding)]  # fmt: skip


@pytest.mark.parametrize(("exercise", "answer"), RIGHT, ids=lambda v: getattr(v, "__name__", v))
def test_a_right_answer_passes(exercise, answer):
    result = check(exercise, answer)
    assert result, result.message


@pytest.mark.parametrize("case", exercises_of("06")[0].cases(None)[:3])
def test_the_count_is_that_of_a_built_model(case):
    assert exercises_of("06")[0].reference(*case) == Llama3Model(*case).n_parameters()


def test_the_counts_of_the_public_models():
    count = exercises_of("06")[0].reference
    assert count(SMOLLM2_CONFIG) == 134_515_008
    assert (count(LLAMA32_CONFIG), count(LLAMA32_3B_CONFIG)) == (1_235_814_400, 3_212_749_824)


def test_there_are_four_exercises():
    assert [e.id for e in exercises_of("06")] == ["06.1", "06.2", "06.3", "06.4"]
    assert all(len(e.mistakes) >= 3 for e in exercises_of("06"))


# ---- wrong answers ----


def count_with(**wrong):
    def count(cfg):
        C = cfg.hidden_size
        D = C // cfg.n_heads if "square" in wrong else cfg.head_dim
        K = cfg.n_heads if "mha" in wrong else cfg.n_kv_heads
        block = (2 * cfg.n_heads + 2 * K) * D * C + (2 if "two" in wrong else 3) * C * cfg.intermediate_size
        block += 0 if "no_norms" in wrong else 2 * C
        layers = 1 if "one_block" in wrong else cfg.n_layers
        tables = 2 if "head" in wrong else 1 if "no_head" in wrong or cfg.tie_embeddings else 2
        last = 0 if "no_norms" in wrong or "no_last" in wrong else C
        return layers * block + tables * cfg.vocab_size * C + last

    return count


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("head", "head and embedding are one matrix"),
        ("no_head", "second V × C matrix"),
        ("mha", "have n_kv_heads heads"),
        ("square", "use cfg.head_dim"),
        ("two", "three matrices"),
        ("no_norms", "two in every block and one before the head"),
        ("no_last", "before the head is missing"),
        ("one_block", "counted one block"),
    ],
)
def test_wrong_counts_are_named(wrong, words):
    result = check("06.1", count_with(**{wrong: True}))
    assert not result and words in result.message


def test_a_count_that_is_no_number():
    assert "should be a number" in check("06.1", lambda cfg: f"{count_right(cfg):,}").message


def chain(block, x, cos, sin):
    x = block.self_attn(block.input_layernorm(x), cos, sin)
    return block.mlp(block.post_attention_layernorm(x))


def second_residual_forgotten(block, x, cos, sin):
    x = x + block.self_attn(block.input_layernorm(x), cos, sin)
    return block.mlp(block.post_attention_layernorm(x))


def first_residual_forgotten(block, x, cos, sin):
    x = block.self_attn(block.input_layernorm(x), cos, sin)
    return x + block.mlp(block.post_attention_layernorm(x))


def overwritten(block, x, cos, sin):
    x = block.input_layernorm(x)
    x = x + block.self_attn(x, cos, sin)
    x = block.post_attention_layernorm(x)
    return x + block.mlp(x)


def post_norm(block, x, cos, sin):
    x = block.input_layernorm(x + block.self_attn(x, cos, sin))
    return block.post_attention_layernorm(x + block.mlp(x))


def exchanged(block, x, cos, sin):
    x = x + block.self_attn(block.post_attention_layernorm(x), cos, sin)
    return x + block.mlp(block.input_layernorm(x))


def same_norm_twice(block, x, cos, sin):
    x = x + block.self_attn(block.input_layernorm(x), cos, sin)
    return x + block.mlp(block.input_layernorm(x))


def no_norms(block, x, cos, sin):
    x = x + block.self_attn(x, cos, sin)
    return x + block.mlp(x)


def parallel(block, x, cos, sin):
    return x + block.self_attn(block.input_layernorm(x), cos, sin) + block.mlp(block.post_attention_layernorm(x))


def in_place(block, x, cos, sin):
    x += block.self_attn(block.input_layernorm(x), cos, sin)
    x += block.mlp(block.post_attention_layernorm(x))
    return x


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (chain, "nothing is added"),
        (second_residual_forgotten, "after the feed-forward layer the residual"),
        (first_residual_forgotten, "after the attention layer the residual"),
        (overwritten, "you add to the normalised copy"),
        (post_norm, "this is post-norm"),
        (exchanged, "two norms are exchanged"),
        (same_norm_twice, "used twice"),
        (no_norms, "the norms are missing"),
        (parallel, "from before the attention"),
        (in_place, "changed the caller's x"),
        (lambda *_: None, "returns nothing"),
        (lambda block, x, cos, sin: block_right(block, x[0], cos, sin), "shape should be"),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_wrong_blocks_are_named(answer, words):
    result = check("06.2", answer)
    assert not result and words in result.message


# the same mistakes, typed in other ways


def block_by_calls(block, x, cos, sin):
    stream = torch.add(x, block.self_attn.forward(block.input_layernorm(x), cos=cos, sin=sin))
    return torch.add(stream, block.mlp.forward(block.post_attention_layernorm(stream)))


def block_by_sum(block, x, cos, sin):
    parts = [x]
    parts.append(block.self_attn(block.input_layernorm(sum(parts)), cos, sin))
    parts.append(block.mlp(block.post_attention_layernorm(sum(parts))))
    return sum(parts)


@pytest.mark.parametrize("answer", [block_right, block_by_calls, block_by_sum])
def test_a_right_block_passes_in_each_spelling(answer):
    assert check("06.2", answer), check("06.2", answer).message


def first_copy(block, x, cos, sin):
    x = block.input_layernorm(x)
    x = x + block.self_attn(x, cos, sin)
    return x + block.mlp(block.post_attention_layernorm(x))


def second_copy(block, x, cos, sin):
    x = x + block.self_attn(block.input_layernorm(x), cos, sin)
    x = block.post_attention_layernorm(x)
    return x + block.mlp(x)


def copies_by_name(block, x, cos, sin):
    normed = block.input_layernorm(x)
    stream = torch.add(normed, block.self_attn(normed, cos, sin))
    normed = block.post_attention_layernorm(stream)
    return torch.add(block.mlp(normed), normed)


def copies_in_place(block, x, cos, sin):
    x = block.input_layernorm(x).clone()
    x += block.self_attn(x, cos, sin)
    x = block.post_attention_layernorm(x).clone()
    x += block.mlp(x)
    return x


def old_x(block, x, cos, sin):
    h = x + block.self_attn(block.input_layernorm(x), cos, sin)
    return x + block.mlp(block.post_attention_layernorm(h))


def old_x_by_two_lines(block, x, cos, sin):
    attention = block.self_attn(block.input_layernorm(x), cos, sin)
    out = block.mlp(block.post_attention_layernorm(attention + x))
    out = out + x
    return out


def old_x_kept(block, x, cos, sin):
    kept = x.clone()
    x = x + block.self_attn(block.input_layernorm(x), cos, sin)
    return torch.add(block.mlp(block.post_attention_layernorm(x)), kept)


def attention_alone(block, x, cos, sin):
    a = block.self_attn(block.input_layernorm(x), cos, sin)
    return a + block.mlp(block.post_attention_layernorm(x + a))


def parallel_by_loop(block, x, cos, sin):
    out = x.clone()
    for norm, layer in ((block.input_layernorm, lambda n: block.self_attn(n, cos, sin)),
                        (block.post_attention_layernorm, block.mlp)):  # fmt: skip
        out = out + layer(norm(x))
    return out


def half_in_place(block, x, cos, sin):
    x.add_(block.self_attn(block.input_layernorm(x), cos, sin))
    return x + block.mlp(block.post_attention_layernorm(x))


COPY, AFTER = "you add to the normalised copy", "holds what attention has added"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        *((a, COPY) for a in (overwritten, first_copy, second_copy, copies_by_name, copies_in_place)),
        *((a, AFTER) for a in (second_residual_forgotten, old_x, old_x_by_two_lines, old_x_kept)),
        (attention_alone, "what attention gave alone"),
        (parallel_by_loop, "from before the attention"),
        (half_in_place, "changed the caller's x"),
        (lambda block, x, cos, sin: block_right(block, x, sin, cos), "sin and cos are exchanged"),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_a_block_with_the_wrong_x_is_named_in_each_spelling(answer, words):
    result = check("06.2", answer)
    assert not result and words in result.message, result.message


def two_faults(*, first="input_layernorm", second="post_attention_layernorm", r1="x", r2="after"):
    def block_forward(block, x, cos, sin):
        n = getattr(block, first)(x) if first else x
        a = block.self_attn(n, cos, sin)
        after = {"x": x + a, "none": a, "copy": n + a}[r1]
        m = getattr(block, second)(after) if second else after
        return {"after": after, "x": x, "none": 0, "copy": m}[r2] + block.mlp(m)

    return block_forward


NO_NORM = "layer gets x without its norm, "


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"r1": "copy", "r2": "none"}, (COPY, AFTER)),
        ({"r1": "none", "r2": "copy"}, ("after the attention layer the residual is missing", COPY)),
        ({"first": "", "r2": "x"}, (f"attention {NO_NORM}input_layernorm", AFTER)),
        ({"second": "", "r1": "none"}, (f"feed-forward {NO_NORM}post_attention_layernorm", "attention layer the res")),
        ({"second": "input_layernorm", "r1": "copy"}, ("it is normalised by input_layernorm", COPY)),
        ({"first": "post_attention_layernorm", "r2": "none"}, ("input_layernorm stands before the attention", AFTER)),
    ],
)
def test_two_faults_of_a_block_are_both_named(faults, words):
    result = check("06.2", two_faults(**faults))
    assert not result and all(w in result.message for w in words), result.message


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no scaling", "rope_scaling is left out"),
        ("no rope", "apply_rope is missing"),
        ("rope on v", "turned v as well"),
        ("norms", "norms of a block are exchanged"),
        ("view", "mixes tokens and heads"),
        ("no transpose back", "must go back behind the tokens"),
        ("future", "see the future"),
        ("no residual", "nothing is added"),
        ("no silu", "lacks silu"),
        ("gate and up", "gate and up are exchanged"),
        ("no last norm", "norm before the head"),
        ("always tied", "not tied"),
    ],
)
def test_wrong_llamas_are_named(how, words):
    result = check("06.3", lambda weights, cfg, ids: logits_right(weights, cfg, ids, how=how))
    assert not result and words in result.message


def test_a_llama_of_the_wrong_shape():
    result = check("06.3", lambda weights, cfg, ids: logits_right(weights, cfg, ids)[:, -1])
    assert "shape should be (2, 9, 64), got (2, 64)" in result.message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda model, ids: run_with_masks(model, ids, lambda _, T: ahead(T, 1)), "the leaks add up"),
        (lambda model, ids: run_with_masks(model, ids, lambda *_: None), "this is the honest model"),
        (lambda model, ids: run_with_masks(model, ids, lambda _, T: ahead(T, T)), "sees the whole text"),
        (lambda model, ids: run_with_masks(model, ids, lambda i, T: ahead(T, 2 if i == 0 else 0)), "two ahead"),
        (lambda model, ids: model(torch.cat((ids[:, 1:], ids[:, :1]), dim=1)), "shifted the text"),
        (lambda model, ids: run_with_masks(model, ids, lambda i, T: ahead(T, 3 if i == 0 else 0)), "1 is allowed"),
        (lambda model, ids: model(ids)[:, -1], "should be a tensor of shape (1, 6, 512)"),
        (lambda model, ids: model(ids) * float("nan"), "NaN"),
    ],
)
def test_wrong_leaks_are_named(answer, words):
    result = check("06.4", answer)
    assert not result and words in result.message
