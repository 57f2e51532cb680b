"""Checks of lesson 06: counting parameters, the block, a Llama from a dictionary of tensors, a model that peeks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.course.checks.core import Exercise, Mistake, Property
from llamamm.course.checks.faults import Cases, fault_exercise
from llamamm.text.attention import readable_attention
from llamamm.text.config import LLAMA32_3B_CONFIG, SMOLLM2_CONFIG, RopeScaling, TextConfig
from llamamm.text.layers import RMSNorm
from llamamm.text.model import Llama3Model, TransformerBlock
from llamamm.text.rope import apply_rope, compute_rope_params

# ---- 06.1: count_parameters ----


def _given(*cases: tuple) -> Cases:
    """Cases that need no random numbers."""
    return lambda _: list(cases)


def _count(cfg: TextConfig, faults: Collection[str] = ()) -> int:
    """A test holds it equal to built models."""
    C, D = cfg.hidden_size, cfg.hidden_size // cfg.n_heads if "square" in faults else cfg.head_dim
    K = cfg.n_heads if "all heads" in faults else cfg.n_kv_heads
    norms = 0 if "no norms" in faults else 1 if "one norm" in faults else 2
    matrices = 2 if "two matrices" in faults else 3
    block = 2 * cfg.n_heads * D * C + 2 * K * D * C + matrices * cfg.intermediate_size * C + norms * C
    tables = 2 if "head twice" in faults else 1 if cfg.tie_embeddings or "no head" in faults else 2
    n_layers = 1 if "one block" in faults else cfg.n_layers
    return n_layers * block + tables * cfg.vocab_size * C + C * ("no last norm" not in faults)


def _integers_differ(expected: int, got: Any) -> str | None:
    return None if expected == got else f"the result should be {expected}, got {got}"


def _count_cases(_: torch.Generator) -> list[tuple]:
    tiny = ({}, {"head_dim": 24, "tie_embeddings": False, "n_layers": 1}, {"n_kv_heads": 1, "intermediate_size": 200})
    return [(cfg,) for cfg in (*(TextConfig.tiny(**c) for c in tiny), SMOLLM2_CONFIG, LLAMA32_3B_CONFIG)]


# with these numbers no two faults give the same
ODD = {"vocab_size": 512, "hidden_size": 60, "intermediate_size": 77, "n_layers": 5, "n_heads": 6, "n_kv_heads": 2,
       "head_dim": 14}  # fmt: skip
TIED, UNTIED = TextConfig.tiny(**ODD), TextConfig.tiny(**ODD, tie_embeddings=False)
COUNT = fault_exercise(
    _count,
    {
        "head twice": "You counted a tied head: where cfg.tie_embeddings is true, head and embedding are one matrix",
        "no head": "You left the head out of a model that is not tied: there it is a second V × C matrix",
        "all heads": "k_proj and v_proj have n_kv_heads heads, not n_heads",
        "square": "Use cfg.head_dim: a head need not have the size hidden_size / n_heads",
        "two matrices": "The feed-forward layer has three matrices: gate, up and down",
        "one norm": "A block has two norms, one before each layer",
        "no norms": "A block's two norms have weights, too: C each",
        "no last norm": "The norm before the head is missing: C more",
        "one block": "You counted one block: there are cfg.n_layers of them",
    },
    {
        "a tied head": (_given((TIED,)), ("head twice",)),
        "a head of its own": (_given((UNTIED,)), ("no head",)),
        "attention": (_given((TIED,)), ("all heads", "square")),
        "the feed-forward layer": (_given((TIED,)), ("two matrices",)),
        "the norms": (_given((TIED,)), ("one norm", "no norms", "no last norm")),
        "all blocks": (_given((TIED,)), ("one block",)),
    },
    _count_cases,
    differs=_integers_differ, run=lambda answer, case: answer(*case),
    id="06.1", name="count_parameters", minutes=5, level="warm-up",
)  # fmt: skip


# ---- 06.2: block_forward ----


@cache
def _block(T: int, **changes: Any) -> tuple[TransformerBlock, Tensor, Tensor]:
    torch.manual_seed(T)
    cfg = TextConfig.tiny(**changes)
    block = TransformerBlock(cfg)
    for module in block.modules():
        if isinstance(module, RMSNorm):  # not ones, so that exchanged norms show
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return block, *compute_rope_params(cfg.head_dim, theta=cfg.rope_theta, context_length=T)


def _block_cases(generator: torch.Generator) -> list[tuple]:
    cases = []
    for B, T, changes in ((1, 1, {}), (2, 7, {}), (1, 5, {"n_kv_heads": 1, "head_dim": 24})):
        block, cos, sin = _block(T, **changes)
        cases.append((block, 3 * torch.randn(B, T, 64, generator=generator), cos, sin))
    return cases


def _run_block(answer: Callable[..., Any], case: tuple) -> Any:
    with torch.no_grad():
        return answer(*case)


def _post_norm(block: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x = block.input_layernorm(x + block.self_attn(x, cos, sin))
    return block.post_attention_layernorm(x + block.mlp(x))


def _block_forward(*, first: str = "input_layernorm", second: str = "post_attention_layernorm",
                   keep: tuple[int, int] = (1, 1), copies: tuple[bool, bool] = (False, False), parallel: bool = False,
                   alone: bool = False) -> Callable[..., Tensor]:  # fmt: skip
    """The right block, and with one of the arguments a wrong one."""
    def forward(block: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        def norm(name: str, x: Tensor) -> Tensor:
            return getattr(block, name)(x) if name else x

        n = norm(first, x)
        added = block.self_attn(n, cos, sin)
        after = keep[0] * (n if copies[0] else x) + added
        n = norm(second, x if parallel else after)
        return keep[1] * (n if copies[1] else added if alone else after) + block.mlp(n)

    return forward


_IN_PLACE = "you changed the caller's x: write x = x + ..., not x += ..."

# Stand-ins for the parts, which show one thing each: a vector of two numbers goes in one direction or in another.


class _Times(nn.Module):
    """A norm that only scales, or with `whole` one that first brings x to length 1."""

    def __init__(self, factor: float, *, whole: bool = False) -> None:
        super().__init__()
        self.factor, self.whole, self.seen = factor, whole, None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.clone() if self.seen is None else self.seen
        return self.factor * (F.normalize(x, dim=-1) if self.whole else x)


class _Gives(nn.Module):
    """A layer that gives the same vector whatever it reads, and remembers what it read first."""

    def __init__(self, *numbers: float) -> None:
        super().__init__()
        self.numbers, self.seen = torch.tensor(numbers).float(), []

    def forward(self, x: Tensor, *angles: Tensor, **named: Tensor) -> Tensor:
        if not self.seen:
            self.seen = [x.clone(), *angles, *(named[name] for name in ("cos", "sin") if name in named)]
        return self.numbers.expand(x.shape)


def _parts(x: Sequence[float], *, norms: tuple[_Times, _Times], attention: _Gives, mlp: _Gives) -> tuple:
    """A case: a block of stand-ins, one token x, angles."""
    block = nn.Module()
    block.input_layernorm, block.post_attention_layernorm = norms
    block.self_attn, block.mlp = attention, mlp
    return block, torch.tensor([[list(x)]]).float(), torch.ones(1, 2), torch.zeros(1, 2)


def _read_first(block: nn.Module, name: str) -> list[Tensor]:
    seen = getattr(block, name).seen
    if not seen:
        raise ValueError(f"block.{name} is never called")
    return seen


def _read_by_attention(answer: Callable[..., Any], case: tuple) -> Any:
    """What attention read, and whether the first norm had read x; None where it read nothing, or stood in the other's
    place as well."""
    block, x, cos, sin = case
    answer(block, x.clone(), cos, sin)
    read, other = block.input_layernorm.seen, block.post_attention_layernorm.seen
    instead = read is not None and other is None and not torch.equal(read, x)
    return _read_first(block, "self_attn"), None if read is None or instead else torch.equal(read, x)


def _stream_after_attention(answer: Callable[..., Any], case: tuple) -> Any:
    """Seen in what the feed-forward layer reads, whatever its length."""
    answer(*case)
    read = _read_first(case[0], "mlp")[0]
    return read / read.abs().max().clamp(min=1e-9)


def _norm_before_mlp(answer: Callable[..., Any], case: tuple) -> Any:
    """Seen in the length of what the feed-forward layer reads. Post-norm is told by other properties."""
    answer(case[0], case[1].clone(), *case[2:])
    length, last = round(float(_read_first(case[0], "mlp")[0].norm())), case[0].post_attention_layernorm.seen
    if length == 3 and last is not None and not torch.equal(last, case[1]):
        return "post_attention_layernorm"
    return {3: "input_layernorm", 5: "post_attention_layernorm"}.get(length, "no norm")


def _result(answer: Callable[..., Any], case: tuple) -> Any:
    return answer(*case)


def _x_afterwards(answer: Callable[..., Any], case: tuple) -> Any:
    x = case[1].clone()
    answer(case[0], x, *case[2:])
    return x


def _same_x(result: Tensor, case: tuple) -> str | None:
    return None if torch.equal(result, case[1]) else _IN_PLACE


_POST_NORM = "this is post-norm: Llama normalises what goes into a layer, not the sum that comes after it"
_NO_NORM = "layer gets x without its norm, "
_COPY = "you add to the normalised copy: the norm is for what goes into a layer, the sum uses x itself"

BLOCK = Exercise(
    id="06.2", name="block_forward", minutes=10, level="core",
    reference=_block_forward(),
    properties=(
        Property(
            "what the attention layer reads",
            lambda _: [_parts((1, 2), norms=(_Times(2), _Times(3)), attention=_Gives(0, 1), mlp=_Gives(1, 1))],
            (
                Mistake(_block_forward(first=""), f"the attention {_NO_NORM}input_layernorm"),
                Mistake(_block_forward(first="post_attention_layernorm"),
                        "it is normalised by post_attention_layernorm: input_layernorm stands before the attention"),
                Mistake(_block_forward(first="post_attention_layernorm", second="input_layernorm"),
                        "the two norms are exchanged: input_layernorm stands before the attention"),
                Mistake(_post_norm, _POST_NORM),
                Mistake(lambda block, x, cos, sin: _block_forward()(block, x, sin, cos), "sin and cos are exchanged"),
            ),
            run=_read_by_attention,
        ),
        Property(
            "the stream after attention",
            lambda _: [_parts((1, 0), norms=(_Times(2), _Times(2)), attention=_Gives(0, 1), mlp=_Gives(1, 1))],
            (
                Mistake(_block_forward(keep=(0, 1)),
                        "after the attention layer the residual is missing: x + self_attn(...)"),
                Mistake(_block_forward(copies=(True, False)), _COPY),
                Mistake(_block_forward(parallel=True),
                        "the feed-forward layer reads the x from before the attention: it should read the sum"),
            ),
            run=_stream_after_attention,
        ),
        Property(
            "the norm before the feed-forward layer",
            lambda _: [_parts((2, 1), norms=(_Times(3, whole=True), _Times(5, whole=True)), attention=_Gives(4, 2),
                              mlp=_Gives(1, 1))],
            (
                Mistake(_block_forward(second=""), f"the feed-forward {_NO_NORM}post_attention_layernorm"),
                Mistake(_block_forward(second="input_layernorm"), "it is normalised by input_layernorm: the "
                        "feed-forward layer has its own norm, post_attention_layernorm"),
            ),
            run=_norm_before_mlp,
        ),
        Property(
            "the stream after the feed-forward layer",
            lambda _: [_parts((0, 0), norms=(_Times(2), _Times(2)), attention=_Gives(3, 1), mlp=_Gives(10, 20))],
            (
                Mistake(_block_forward(keep=(1, 0)),
                        "after the feed-forward layer the residual is missing: add to the stream, which holds what "
                        "attention has added, and not to the x from before it"),
                Mistake(_block_forward(copies=(False, True)), _COPY),
                Mistake(_post_norm, _POST_NORM),
            ),
            run=_result,
        ),
        Property(
            "x stays as it is",
            lambda _: [_parts((1, 2), norms=(_Times(2), _Times(3)), attention=_Gives(0, 1), mlp=_Gives(5, 3))],
            run=_x_afterwards, accept=_same_x,
        ),
        Property(
            "a real block",
            _block_cases,
            (
                Mistake(_block_forward(keep=(0, 0)), "nothing is added to the stream: both layers need x + ..."),
                Mistake(_block_forward(keep=(1, 0)),
                        "after the feed-forward layer the residual is missing: add the stream after attention"),
                Mistake(_block_forward(keep=(0, 1)),
                        "after the attention layer the residual is missing: x + self_attn(...)"),
                *(Mistake(_block_forward(copies=copies), _COPY)
                  for copies in ((True, True), (True, False), (False, True))),
                Mistake(_block_forward(alone=True), "the feed-forward's result is added to what attention gave alone: "
                        "the stream is x + self_attn(...)"),
                Mistake(_post_norm, _POST_NORM),
                Mistake(_block_forward(first="post_attention_layernorm", second="input_layernorm"),
                        "the two norms are exchanged: input_layernorm stands before the attention"),
                Mistake(_block_forward(second="input_layernorm"), "input_layernorm is used twice: the feed-forward "
                        "layer has its own, post_attention_layernorm"),
                Mistake(_block_forward(first="", second=""),
                        "the norms are missing: each layer gets a normalised copy"),
                Mistake(_block_forward(second=""), f"the feed-forward {_NO_NORM}post_attention_layernorm"),
                Mistake(_block_forward(first=""), f"the attention {_NO_NORM}input_layernorm"),
                Mistake(_block_forward(parallel=True),
                        "the feed-forward layer reads the x from before the attention: it should read the sum"),
            ),
            run=_run_block, tolerance=1e-4, strict=False,  # of one token angles change nothing
        ),
    ),
)  # fmt: skip


# ---- 06.3: llama_logits ----


@cache
def _weights(T: int, **changes: Any) -> tuple[dict[str, Tensor], TextConfig]:
    torch.manual_seed(T)
    model = Llama3Model(TextConfig.tiny(vocab_size=64, context_length=64, **changes))
    for parameter in model.parameters():  # large enough that every part can be seen in the logits
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    return model.state_dict(), model.cfg  # detached


def _logits_cases(generator: torch.Generator) -> list[tuple]:
    shapes = (
        (2, 9, {"n_heads": 6, "n_kv_heads": 2, "head_dim": 12, "n_layers": 3}),
        (1, 1, {}),
        (1, 12, {"tie_embeddings": False, "norm_eps": 1e-2}),
        (1, 40, {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 16), "n_kv_heads": 1, "rope_theta": 500.0}),
    )
    return [(*_weights(T, **changes), torch.randint(64, (B, T), generator=generator)) for B, T, changes in shapes]


@torch.no_grad()
def _from_modules(weights: dict[str, Tensor], cfg: TextConfig, ids: Tensor) -> Tensor:
    model = Llama3Model(cfg, attend=readable_attention)
    model.load_state_dict(weights)
    return model(ids)


@torch.no_grad()
def _logits(weights: dict[str, Tensor], cfg: TextConfig, ids: Tensor, faults: Collection[str] = ()) -> Tensor:
    """The right answer, with faults in it."""
    (B, T), D = ids.shape, cfg.head_dim
    cos, sin = compute_rope_params(D, theta=10_000.0 if "theta" in faults else cfg.rope_theta, context_length=T,
                                   scaling=None if "scaling" in faults else cfg.rope_scaling)  # fmt: skip

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weights[f"{name}.weight"], 1e-5 if "eps" in faults else cfg.norm_eps)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"])

    def heads(x: Tensor) -> Tensor:
        return x.view(B, -1, T, D) if "view" in faults else x.view(B, T, -1, D).transpose(1, 2)

    x = F.embedding(ids, weights["embed_tokens.weight"])
    norms = ["input_layernorm", "post_attention_layernorm"][:: -1 if "norms" in faults else 1]
    for i in range(cfg.n_layers):
        layer = "layers.0" if "layer" in faults else f"layers.{i}"
        n = norm(x, f"{layer}.{norms[0]}")
        q, k, v = (heads(linear(n, f"{layer}.self_attn.{p}_proj")) for p in "qkv")
        if "rope" not in faults:
            q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        if "rope v" in faults:
            v = apply_rope(v, cos, sin)
        if "repeat" in faults:
            k, v = (t.repeat(1, cfg.n_heads // cfg.n_kv_heads, 1, 1) for t in (k, v))
        mask = torch.ones(T, T, dtype=torch.bool) if "future" in faults else None
        out = readable_attention(q, k, v, mask)
        out = out.reshape(B, T, -1) if "back" in faults else out.transpose(1, 2).reshape(B, T, -1)
        added = linear(out, f"{layer}.self_attn.o_proj")
        x = added if "residual" in faults else x + added
        n = norm(x, f"{layer}.{norms[1]}")
        gate, up = linear(n, f"{layer}.mlp.gate_proj"), linear(n, f"{layer}.mlp.up_proj")
        if "gate" in faults:
            gate, up = up, gate
        added = linear((gate if "silu" in faults else F.silu(gate)) * up, f"{layer}.mlp.down_proj")
        x = added if "residual" in faults else x + added
    if "last norm" not in faults:
        x = norm(x, "norm")
    return linear(x, "embed_tokens" if "tied" in faults else "lm_head")


_LOGITS_MESSAGES = {
    "last norm": "the norm before the head, norm.weight, is missing",
    "rope": "q and k were not turned: apply_rope is missing, so the order of the tokens is lost",
    "rope v": "you turned v as well: RoPE belongs to q and k only",
    "theta": "use cfg.rope_theta: your angles come from a default",
    "scaling": "cfg.rope_scaling is left out: compute_rope_params takes scaling=",
    "eps": "use cfg.norm_eps: your epsilon is the default 1e-5",
    "norms": "the two norms of a block are exchanged: input_layernorm stands before the attention",
    "layer": "every layer uses the weights of layer 0",
    "view": "view(B, H, T, D) mixes tokens and heads: view(B, T, H, D) first, then transpose(1, 2)",
    "back": "after the attention the heads must go back behind the tokens: transpose(1, 2), then reshape(B, T, H * D)",
    "repeat": "repeat gives the key heads in the order 0, 1, 0, 1; neighbouring query heads share one: 0, 0, 1, 1 "
    "(readable_attention repeats them itself)",
    "future": "tokens see the future: readable_attention is causal with mask=None",
    "residual": "nothing is added to the stream: x = x + what the layer gives",
    "gate": "gate and up are exchanged: silu goes over gate_proj",
    "silu": "the feed-forward layer lacks silu: down(silu(gate(x)) * up(x))",
    "tied": "you score with the embedding also where it is not tied: the head is lm_head.weight",
}


def _everything_shows(_: torch.Generator) -> list[tuple]:
    """One case in which every fault can be seen: two layers, not tied, stretched angles, its own epsilon and base."""
    changes = {"n_heads": 6, "n_kv_heads": 2, "head_dim": 12, "tie_embeddings": False, "norm_eps": 0.1,
               "rope_theta": 500.0, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 16)}  # fmt: skip
    return [(*_weights(3, **changes), torch.tensor([[5, 9, 33, 2, 60, 7]]))]


_known: dict[tuple, Tensor] = {}  # each property asks again


def _logits_once(weights: dict[str, Tensor], cfg: TextConfig, ids: Tensor, faults: Collection[str]) -> Tensor:
    key = cfg, tuple(ids.flatten().tolist()), tuple(faults)
    if key not in _known:
        _known[key] = _logits(weights, cfg, ids, faults)
    return _known[key]


LOGITS = fault_exercise(
    _logits_once,
    {name: message[0].upper() + message[1:] if name not in ("rope", "view", "repeat") else message
     for name, message in _LOGITS_MESSAGES.items()},
    {
        "the order of the tokens": (_everything_shows, ("rope", "rope v", "theta", "scaling", "future")),
        "the heads": (_everything_shows, ("view", "back", "repeat")),
        "the stream and its norms": (_everything_shows, ("residual", "norms", "eps", "layer")),
        "the feed-forward layer": (_everything_shows, ("gate", "silu")),
        "the head": (_everything_shows, ("last norm", "tied")),
    },
    _logits_cases,
    tolerance=1e-3, at_once=2, run=lambda answer, case: answer(*case),
    id="06.3", name="llama_logits", minutes=30, level="hard", reference=_from_modules,
)  # fmt: skip


# ---- 06.4: peek ----


@cache
def _peekable(n_layers: int) -> Llama3Model:
    torch.manual_seed(n_layers)
    model = Llama3Model(TextConfig.tiny(n_layers=n_layers)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.15)  # so that a leak is far above rounding
    return model


def _peek_cases(generator: torch.Generator) -> list[tuple]:
    shapes = ((1, 6, 2), (2, 5, 3), (1, 1, 2))
    return [(_peekable(n_layers), torch.randint(512, (B, T), generator=generator)) for B, T, n_layers in shapes]


def _run_peek(answer: Callable[..., Any], case: tuple) -> Any:
    """(T, T) bool: do the logits at t (row) move when token s (column) is changed? A text where there are none."""
    model, ids = case
    B, T = ids.shape
    with torch.no_grad():
        logits = answer(model, ids.clone())
        expected = (B, T, model.cfg.vocab_size)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            return f"the logits should be a tensor of shape {expected}, got {what}"
        if not torch.isfinite(logits).all():
            return "the logits hold NaN or infinity: is a row of your mask empty?"
        moved = torch.zeros(T, T, dtype=torch.bool)
        for s in range(T):
            changed = ids.clone()
            changed[:, s] = (changed[:, s] + 1) % model.cfg.vocab_size
            moved[:, s] = ((answer(model, changed) - logits).abs().amax(dim=(0, 2))) > 1e-4
    return moved


def _judge_peek(result: Any, _: tuple) -> str | None:
    if isinstance(result, str):
        return result
    T = len(result)
    wanted = torch.ones(T, T, dtype=torch.bool).tril(1)
    if torch.equal(result, wanted):
        return None
    if not (result & torch.ones_like(result).triu(1)).any():
        return "nothing leaks: no logit depends on a later token"
    t, s = (result != wanted).nonzero()[0].tolist()
    if result[t, s]:
        return f"the logits at position {t} depend on token {s}: that is {s - t} ahead, and 1 is allowed"
    return f"the logits at position {t} do not depend on token {s}, and should"


def _masked(model: Llama3Model, ids: Tensor, mask_of: Callable[[int, int], Tensor | None]) -> Tensor:
    T = ids.shape[1]
    x = model.embed_tokens(ids)
    for i, layer in enumerate(model.layers):
        x = layer(x, model.cos[:T], model.sin[:T], mask=mask_of(i, T))
    return model.lm_head(model.norm(x))


def _ahead(T: int, n: int) -> Tensor:
    return torch.ones(T, T, dtype=torch.bool).tril(n)[None, None]


def _one_mask(n: int) -> Callable[..., Tensor]:
    return lambda model, ids: _masked(model, ids, lambda _, T: _ahead(T, n))


PEEK = Exercise(
    id="06.4", name="peek", minutes=15, level="break it",
    reference=lambda model, ids: _masked(model, ids, lambda i, T: _ahead(T, 1) if i == 0 else None),
    cases=_peek_cases, run=_run_peek, accept=_judge_peek,
    mistakes=(
        Mistake(_one_mask(1), "the leaks add up: every block hands on what the block before has seen, so L blocks that "
                "look one ahead see L ahead"),
        Mistake(lambda model, ids: model(ids), "nothing leaks: this is the honest model"),
        Mistake(lambda model, ids: _masked(model, ids, lambda _, T: _ahead(T, T)),
                "every position sees the whole text: one block's mask should end one column right of the diagonal, "
                "tril(1)"),
        Mistake(lambda model, ids: _masked(model, ids, lambda i, T: _ahead(T, 2) if i == 0 else None),
                "two ahead, not one: tril(1) keeps the diagonal and one column right of it"),
        Mistake(lambda model, ids: model(ids.roll(-1, dims=1)),
                "you shifted the text: position t sees token t + 1, but the first token is seen only by the last "
                "position, round the corner"),
    ),
)  # fmt: skip


EXERCISES: tuple[Exercise, ...] = (COUNT, BLOCK, LOGITS, PEEK)
