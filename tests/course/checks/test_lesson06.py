"""The checks of lesson 06: right answers pass, each mistake that learners make gets its own words."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from llamamm import LLAMA32_3B_CONFIG, LLAMA32_CONFIG, SMOLLM2_CONFIG, Llama3Model
from llamamm.course.checks import check, exercises_of
from llamamm.text.attention import fused_attention, readable_attention
from llamamm.text.rope import apply_rope, compute_rope_params
from tests.course.checks.ways import assert_right, assert_told

# ---- right answers, written anew ----


def count_by_formula(cfg, has=()):
    C = cfg.hidden_size
    D = C // cfg.n_heads if "square" in has else cfg.head_dim
    K = cfg.n_heads if "all heads" in has else cfg.n_kv_heads
    block = (2 * cfg.n_heads + 2 * K) * D * C + (2 if "two matrices" in has else 3) * C * cfg.intermediate_size
    block += 0 if "no norms" in has else C if "one norm" in has else 2 * C
    layers = 1 if "one block" in has else cfg.n_layers
    tables = 2 if "head twice" in has else 1 if "no head" in has or cfg.tie_embeddings else 2
    return layers * block + tables * cfg.vocab_size * C + (0 if "no last norm" in has else C)


def count_by_loop(cfg, has=()):
    C, M, D = cfg.hidden_size, cfg.intermediate_size, cfg.head_dim
    if "square" in has:
        D = C // cfg.n_heads
    total = cfg.vocab_size * C
    if "no last norm" not in has:
        total += C
    if "head twice" in has or not cfg.tie_embeddings and "no head" not in has:
        total += C * cfg.vocab_size
    for layer in range(cfg.n_layers):
        if layer and "one block" in has:
            break
        for heads in (cfg.n_heads, cfg.n_heads, *[cfg.n_heads if "all heads" in has else cfg.n_kv_heads] * 2):
            total += C * heads * D
        total += C * M + M * C + (M * C if "two matrices" not in has else 0)
        total += sum(C for norm in (1, 2) if "no norms" not in has and not (norm == 2 and "one norm" in has))
    return total


def count_by_shapes(cfg, has=()):
    C, width = cfg.hidden_size, cfg.n_heads * cfg.head_dim
    width = C // cfg.n_heads * cfg.n_heads if "square" in has else width
    kv = width if "all heads" in has else width // cfg.n_heads * cfg.n_kv_heads
    block = {"q": (C, width), "k": (C, kv), "v": (C, kv), "o": (width, C), "gate": (C, cfg.intermediate_size),
             "up": (C, cfg.intermediate_size),
             "down": (cfg.intermediate_size, C), "one": (C,), "two": (C,)}  # fmt: skip
    for fault, gone in (("two matrices", ("up",)), ("no norms", ("one", "two")), ("one norm", ("two",))):
        block = {k: v for k, v in block.items() if not (fault in has and k in gone)}
    shapes = [*block.values()] * (1 if "one block" in has else cfg.n_layers) + [(cfg.vocab_size, C)]
    shapes += [(C,)] * ("no last norm" not in has)
    shapes += [(cfg.vocab_size, C)] * ("head twice" in has or not (cfg.tie_embeddings or "no head" in has))
    return sum(math.prod(shape) for shape in shapes)


def rms(x, w, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w


def logits_by_names(weights, cfg, ids, has=()):
    """Fused attention, own norm, keys by f-string."""
    B, T = ids.shape
    H, K, D = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
    cos, sin = compute_rope_params(D, theta=10_000.0 if "theta" in has else cfg.rope_theta, context_length=T,
                                   scaling=None if "scaling" in has else cfg.rope_scaling)  # fmt: skip
    eps = 1e-5 if "eps" in has else cfg.norm_eps
    x = weights["embed_tokens.weight"][ids]
    first, second = "input_layernorm", "post_attention_layernorm"
    if "norms" in has:
        first, second = second, first
    for i in range(cfg.n_layers):
        start = f"layers.{i * ('layer' not in has)}."
        w = {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}
        n = rms(x, w[first + ".weight"], eps)
        q, k, v = (n @ w[f"self_attn.{name}_proj.weight"].T for name in "qkv")
        if "view" in has:
            q, k, v = q.view(B, H, T, D), k.view(B, K, T, D), v.view(B, K, T, D)
        else:
            q, k, v = (t.view(B, T, -1, D).transpose(1, 2) for t in (q, k, v))
        if "rope" not in has:
            q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        if "rope v" in has:
            v = apply_rope(v, cos, sin)
        if "repeat" in has:
            k, v = (t.repeat(1, H // K, 1, 1) for t in (k, v))
        if "future" in has:
            out = readable_attention(q, k, v, torch.ones(T, T, dtype=torch.bool))
        else:
            out = fused_attention(q, k, v, None)
        if "back" not in has:
            out = out.transpose(1, 2)
        out = out.reshape(B, T, H * D) @ w["self_attn.o_proj.weight"].T
        x = out if "residual" in has else out + x
        n = rms(x, w[second + ".weight"], eps)
        gate, up = n @ w["mlp.gate_proj.weight"].T, n @ w["mlp.up_proj.weight"].T
        if "gate" in has:
            gate, up = up, gate
        hidden = gate * up if "silu" in has else gate * F.sigmoid(gate) * up
        out = hidden @ w["mlp.down_proj.weight"].T
        x = out if "residual" in has else out + x
    if "last norm" not in has:
        x = rms(x, weights["norm.weight"], eps)
    return x @ weights["embed_tokens.weight" if "tied" in has else "lm_head.weight"].T


def logits_by_heads(weights, cfg, ids, has=()):
    """One text and one head at a time, softmax and mask written out."""
    return torch.stack([_one_text(weights, cfg, row, has) for row in ids])


def _one_text(weights, cfg, row, has):
    T, D, H = len(row), cfg.head_dim, cfg.n_heads
    scaling = cfg.rope_scaling if "scaling" not in has else None
    cos, sin = compute_rope_params(D, theta=cfg.rope_theta if "theta" not in has else 10_000.0, context_length=T,
                                   scaling=scaling)  # fmt: skip
    x = F.embedding(row, weights["embed_tokens.weight"])

    def norm(x, name):
        return F.rms_norm(x, x.shape[1:], weights[name + ".weight"], 1e-5 if "eps" in has else cfg.norm_eps)

    def turned(t):
        return torch.cat((t[:, : D // 2] * cos[:, : D // 2] - t[:, D // 2 :] * sin[:, : D // 2],
                          t[:, D // 2 :] * cos[:, : D // 2] + t[:, : D // 2] * sin[:, : D // 2]), 1)  # fmt: skip

    names = {"attention": "input_layernorm", "mlp": "post_attention_layernorm"}
    if "norms" in has:
        names = dict(zip(names, reversed(names.values()), strict=True))
    for i in [0] * cfg.n_layers if "layer" in has else range(cfg.n_layers):
        def w(name, i=i):
            return weights[f"layers.{i}.{name}_proj.weight"]

        n, outs = norm(x, f"layers.{i}.{names['attention']}"), []
        for h in range(H):
            g = h % cfg.n_kv_heads if "repeat" in has else h // (H // cfg.n_kv_heads)
            q, k, v = ((n @ w(f"self_attn.{c}").T).reshape(-1)[j * T * D : (j + 1) * T * D].view(T, D) if "view" in has
                       else n @ w(f"self_attn.{c}")[j * D : (j + 1) * D].T
                       for c, j in (("q", h), ("k", g), ("v", g)))  # fmt: skip
            q, k = (q, k) if "rope" in has else (turned(q), turned(k))
            v = turned(v) if "rope v" in has else v
            scores = q @ k.T / D**0.5
            if "future" not in has:
                scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf"))
            outs.append(scores.softmax(1) @ v)
        joined = torch.cat(outs).view(T, H * D) if "back" in has else torch.cat(outs, 1)
        kept = 0 if "residual" in has else 1
        x = kept * x + joined @ w("self_attn.o").T
        n = norm(x, f"layers.{i}.{names['mlp']}")
        gate, up = (n @ w(f"mlp.{name}").T for name in (("up", "gate") if "gate" in has else ("gate", "up")))
        x = kept * x + (gate if "silu" in has else F.silu(gate)).mul(up) @ w("mlp.down").T
    x = x if "last norm" in has else norm(x, "norm")
    return F.linear(x, weights["embed_tokens.weight"] if "tied" in has else weights["lm_head.weight"])


@torch.no_grad()
def logits_by_model(weights, cfg, ids, has=()):
    """The package's model, with other weights, another configuration, other parts where a fault is to be."""
    weights, T = dict(weights), ids.shape[1]
    if "tied" in has:
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    for i in range(cfg.n_layers):
        start = f"layers.{i}."
        if "layer" in has:
            weights |= {start + k[9:]: v for k, v in weights.items() if k.startswith("layers.0.")}
        for fault, one, two in (("norms", "input_layernorm", "post_attention_layernorm"),
                                ("gate", "mlp.gate_proj", "mlp.up_proj")):  # fmt: skip
            if fault in has and not ("layer" in has and i):
                one, two = f"{start}{one}.weight", f"{start}{two}.weight"
                weights[one], weights[two] = weights[two], weights[one]
    if "layer" in has:
        weights |= {f"layers.{i}.{k[9:]}": v for i in range(cfg.n_layers) for k, v in weights.items()
                    if k.startswith("layers.0.")}  # fmt: skip
    if "eps" in has:
        cfg = cfg.replace(norm_eps=1e-5)
    cfg = cfg.replace(rope_theta=10_000.0) if "theta" in has else cfg
    cfg = cfg.replace(rope_scaling=None) if "scaling" in has else cfg

    def attend(q, k, v, mask):
        if "view" in has:  # undo the transposed view, and cut at other places
            q, k, v = (t.transpose(1, 2).reshape(t.shape) for t in (q, k, v))
        if "rope" not in has:
            q, k = (apply_rope(t, model.cos[:T], model.sin[:T]) for t in (q, k))
        if "rope v" in has:
            v = apply_rope(v, model.cos[:T], model.sin[:T])
        if "repeat" in has:
            k, v = (torch.cat([t] * (cfg.n_heads // cfg.n_kv_heads), dim=1) for t in (k, v))
        out = readable_attention(q, k, v, torch.ones(T, T, dtype=torch.bool) if "future" in has else mask)
        if "back" in has:
            out = out.reshape(out.shape[0], T, cfg.n_heads, -1).transpose(1, 2)
        return out

    model = Llama3Model(cfg, attend=attend)
    model.load_state_dict(weights)
    x, silent = model.embed_tokens(ids), (torch.ones(T, cfg.head_dim), torch.zeros(T, cfg.head_dim))
    for layer in model.layers:
        kept = 0 if "residual" in has else 1
        x = kept * x + layer.self_attn(layer.input_layernorm(x), *silent)
        n, mlp = layer.post_attention_layernorm(x), layer.mlp
        x = kept * x + (mlp.down_proj(mlp.gate_proj(n) * mlp.up_proj(n)) if "silu" in has else mlp(n))
    return model.lm_head(x if "last norm" in has else model.norm(x))


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


def peek_by_prefixes(model, ids, reach=1):
    """A third: the honest model at the end of each text that is `reach` tokens longer than what a position may see."""
    T = ids.shape[1]
    return torch.stack([model(ids[:, : min(T, t + 1 + reach)])[:, -1] for t in range(T)], dim=1)


RIGHT = [("06.4", peek_right), ("06.4", peek_by_embedding), ("06.4", peek_by_prefixes)]


@pytest.mark.parametrize(("exercise", "answer"), RIGHT, ids=lambda v: getattr(v, "__name__", v))
def test_a_right_answer_passes(exercise, answer):
    result = check(exercise, answer)
    assert result, result.message


@pytest.mark.parametrize("case", exercises_of("06")[0].properties[-1].inputs()[:3])
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


# ---- 06.2 in three ways: line by line, a loop over norms and layers, what each layer adds ----


def norms_of(block, has):
    """What stands before attention and before the feed-forward layer."""
    first, second = block.input_layernorm, block.post_attention_layernorm
    nothing = torch.clone
    own = nothing if "first bare" in has else second if "first other" in has else first
    return own, nothing if "second bare" in has else first if "second other" in has else second


def block_by_lines(block, x, cos, sin, has=()):
    if "post-norm" in has:
        after = block.input_layernorm(x + block.self_attn(x, cos, sin))
        after = block.post_attention_layernorm(after + block.mlp(after))
        return x.copy_(after) if "in place" in has else after
    first, second = norms_of(block, has)
    normed, angles = first(x), (sin, cos) if "sin and cos" in has else (cos, sin)
    attention = block.self_attn(normed, *angles)
    after = attention if "no first" in has else normed + attention if "first copy" in has else x + attention
    read = second(x if "parallel" in has else after)
    fed = block.mlp(read)
    out = x + fed if "no second" in has else read + fed if "second copy" in has else after + fed
    out = attention + fed if "alone" in has else out
    return x.copy_(out) if "in place" in has else out


def block_by_loop(block, x, cos, sin, has=()):
    given, kept = x, x.clone()
    x, post = x.clone(), "post-norm" in has
    named = {"cos": sin, "sin": cos} if "sin and cos" in has else {"cos": cos, "sin": sin}
    layers = zip(norms_of(block, has), (lambda n: block.self_attn(n, **named), block.mlp), strict=True)
    for n, (norm, layer) in enumerate(layers):
        read = x if post else norm(kept if n and "parallel" in has else x)
        gone = ("no first", "no second")[n] in has
        stream = read if ("first copy", "second copy")[n] in has else kept * n if gone else x
        added = layer(read)
        stream = stream - kept if n and "alone" in has else stream
        x = norm(stream + added) if post else stream + added
    if "in place" in has:
        given *= 0
        given += x
    return x


def block_by_additions(block, x, cos, sin, has=()):
    first, second = norms_of(block, has)
    parts = [x.clone()]
    if "post-norm" in has:
        parts.append(block.self_attn(parts[0], cos, sin))
        middle = first(torch.stack(parts).sum(0))
        out = second(torch.add(block.mlp(middle), middle))
    else:
        if "sin and cos" in has:
            cos, sin = sin, cos
        normed = first(parts[0])
        attention = block.self_attn(normed, cos, sin)
        parts = [] if "no first" in has else [normed] if "first copy" in has else parts
        parts.append(attention)
        read = second(x.clone() if "parallel" in has else torch.stack(parts).sum(0))
        parts = parts[1:] if "alone" in has else [x.clone()] if "no second" in has else parts
        parts = [read] if "second copy" in has else parts
        out = torch.stack([block.mlp(read), *parts]).sum(0)
    if "in place" in has:
        x[:] = out
    return out


WAYS = {
    "06.1": (count_by_formula, count_by_loop, count_by_shapes),
    "06.2": (block_by_lines, block_by_loop, block_by_additions),
    "06.3": (logits_by_names, logits_by_heads, logits_by_model),
}
TOLD = {
    "06.1": {"head twice": "head and embedding are one matrix", "no head": "second V × C matrix",
             "all heads": "have n_kv_heads heads", "square": "use cfg.head_dim", "two matrices": "three matrices",
             "one norm": "one before each layer", "no norms": "two norms have weights", 
             "no last norm": "before the head is missing", "one block": "counted one block"},
    "06.2": {"first bare": "the attention layer gets x without its norm",
             "first other": "it is normalised by post_attention_layernorm",
             "second bare": "the feed-forward layer gets x without its norm",
             "second other": "it is normalised by input_layernorm",
             "post-norm": "this is post-norm", "sin and cos": "sin and cos are exchanged",
             "no first": "after the attention layer the residual", "first copy": "after attention: you add to the norm",
             "parallel": "from before the attention", "no second": "holds what attention has added",
             "second copy": "after the feed-forward layer: you add to the normalised copy",
             "alone": "what attention gave alone", "in place": "changed the caller's x"},
    "06.3": {"last norm": "norm before the head", "rope": "q and k were not turned", "rope v": "turned v as well",
             "theta": "use cfg.rope_theta", "scaling": "rope_scaling is left out", "eps": "use cfg.norm_eps",
             "norms": "norms of a block are exchanged", "layer": "weights of layer 0", "view": "mixes tokens and heads",
             "back": "must go back behind the tokens", "repeat": "in the order 0, 1, 0, 1", "future": "see the future",
             "residual": "nothing is added", "gate": "gate and up are exchanged", "silu": "lacks silu",
             "tied": "not tied"},
}  # fmt: skip
# faults that cannot stand in one answer, or of which one hides the other
APART = {
    "06.1": [
        {"one norm", "no norms"},  # none is no longer one
        {"head twice", "no head"},  # each says whether the head counts
        {"no last norm", "one block"},  # the one block's second norm is as large as the last
    ],
    "06.2": [
        {"first bare", "first other", "post-norm", "sin and cos"},  # one sentence on what attention reads
        {"second bare", "second other", "post-norm"},  # each says what stands before the feed-forward layer
        {"first other", "second other"},  # together the norms are exchanged, which has a sentence of its own
        {"no first", "first copy", "parallel"},  # one sentence on what the feed-forward layer reads
        {"no second", "second copy", "alone"},  # each says what the feed-forward's result is added to
        {"first bare", "first copy"}, {"second bare", "second copy"},  # without a norm there is no normalised copy
        {"parallel", "second copy"},  # a copy of the old x, which lacks what attention has added
        *({"post-norm", other} for other in ("no first", "first copy", "parallel", "no second", "second copy")),
        # a post-norm block has no such places
        *({"alone", other} for other in ("first bare", "first other", "second bare", "second other", "post-norm",
                                         "no first", "first copy", "parallel")),
        # "alone" is told by the real block, whose numbers the other fault changes
    ],
    "06.3": [
        {"gate", "silu"},  # without silu gate and up may change places
        {"rope", "theta"}, {"rope", "scaling"},  # what isn't turned needs no angles
    ],
}  # fmt: skip


@pytest.mark.parametrize("exercise", WAYS)
def test_the_right_answer_passes_however_it_is_written(exercise):
    assert_right(exercise, WAYS[exercise])


@pytest.mark.parametrize("exercise", WAYS)
def test_each_fault_gets_its_sentence_alone_and_beside_another(exercise):
    assert_told(exercise, WAYS[exercise], TOLD[exercise], APART[exercise])


@pytest.mark.parametrize("way", range(3))
def test_exchanged_norms_are_called_so(way):
    message = check("06.2", partial(WAYS["06.2"][way], has=("first other", "second other"))).message
    assert "two norms are exchanged" in message and "post-norm" not in message, message


def test_a_count_that_is_no_number():
    assert "should be a number" in check("06.1", lambda cfg: f"{count_by_loop(cfg):,}").message


def chain(block, x, cos, sin):
    x = block.self_attn(block.input_layernorm(x), cos, sin)
    return block.mlp(block.post_attention_layernorm(x))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (chain, "nothing is added"),
        (lambda *_: None, "returns nothing"),
        (lambda block, x, cos, sin: block_by_lines(block, x[0], cos, sin), "shape should be"),
    ],
)
def test_wrong_blocks_are_named(answer, words):
    result = check("06.2", answer)
    assert not result and words in result.message, result.message


def test_a_llama_of_the_wrong_shape():
    result = check("06.3", lambda weights, cfg, ids: logits_by_names(weights, cfg, ids)[:, -1])
    assert "shape should be (2, 9, 64), got (2, 64)" in result.message


def masks(mask_of):
    return lambda model, ids: run_with_masks(model, ids, mask_of)


def with_biases(reach, blocks=None):
    """Masks of numbers that are added to the scores: 0 or minus infinity."""
    def bias(i, T):
        of_block = reach if blocks is None or i in blocks else 0
        return torch.full((T, T), -torch.inf).triu(of_block + 1)[None, None]

    return lambda model, ids: run_with_masks(model, ids, bias)


def by_index(model, ids):
    T = ids.shape[1]
    return model(ids[:, [(t + 1) % T for t in range(T)]])


# an answer leaks in one way, so no two of these stand together
LEAKS = {
    "the leaks add up": (masks(lambda _, T: ahead(T, 1)), with_biases(1),
                         lambda model, ids: peek_by_prefixes(model, ids, len(model.layers))),
    "this is the honest model": (masks(lambda *_: None), lambda model, ids: model(ids),
                                 lambda model, ids: peek_by_prefixes(model, ids, 0)),
    "sees the whole text": (masks(lambda _, T: ahead(T, T)), with_biases(99, blocks=(0,)),
                            lambda model, ids: peek_by_prefixes(model, ids, 99)),
    "two ahead": (masks(lambda i, T: ahead(T, 2 if i == 0 else 0)), with_biases(2, blocks=(1,)),
                  lambda model, ids: peek_by_prefixes(model, ids, 2)),
    "shifted the text": (lambda model, ids: model(torch.cat((ids[:, 1:], ids[:, :1]), dim=1)), by_index,
                         lambda model, ids: model(ids.roll(-1, dims=1))),
    "1 is allowed": (masks(lambda i, T: ahead(T, 3 if i == 0 else 0)), with_biases(3, blocks=(1,)),
                     lambda model, ids: peek_by_prefixes(model, ids, 3)),
}  # fmt: skip


@pytest.mark.parametrize(("words", "answer"), [(words, a) for words, answers in LEAKS.items() for a in answers])
def test_wrong_leaks_are_named_in_each_spelling(words, answer):
    result = check("06.4", answer)
    assert not result
    assert [other for other in LEAKS if other in result.message] == [words], result.message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda model, ids: model(ids)[:, -1], "should be a tensor of shape (1, 6, 512)"),
        (lambda model, ids: model(ids) * float("nan"), "NaN"),
    ],
)
def test_what_are_no_logits_is_said(answer, words):
    result = check("06.4", answer)
    assert not result and words in result.message
