"""The Llama: token embedding, a stack of blocks, a final norm, and the head that scores every word of the vocabulary.

    ids (B, T) -> embeddings (B, T, C) -> n_layers blocks -> (B, T, C) -> logits (B, T, V)

Parameter names are those of Hugging Face checkpoints without the leading `model.`, so loading real weights is little
more than a prefix strip.

Sources: Llama 3, arXiv:2407.21783; Llama, arXiv:2302.13971. Built in notebook 06.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llamamm.errors import ContextOverflowError, InputError
from llamamm.text.attention import AttentionFn, GroupedQueryAttention, fused_attention
from llamamm.text.cache import KVCache
from llamamm.text.config import TextConfig
from llamamm.text.layers import FeedForward, Linear, RMSNorm
from llamamm.text.masks import build_mask, packed_mask, packed_positions
from llamamm.text.pace import Pace
from llamamm.text.rope import compute_rope_params


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each on a normalised copy and added back: x + f(norm(x)). Keeps (B, T, C)."""

    def __init__(self, cfg: TextConfig, layer: int = 0, *, attend: AttentionFn = fused_attention) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(cfg.hidden_size, cfg.norm_eps, dtype=cfg.dtype)
        self.self_attn = GroupedQueryAttention(cfg, layer, attend=attend)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, cfg.norm_eps, dtype=cfg.dtype)
        self.mlp = FeedForward(cfg)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask=mask, cache=cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Stepper(Protocol):
    """What may decode in place of the blocks and the head, a token at a time; None where it does not."""

    def run_blocks(
        self, model: Llama3Model, x: Tensor, cache: KVCache | None, padding: Tensor | None,
        before: Callable[[int, Tensor], Tensor] | None, skipped: Collection[int],
    ) -> Tensor | None: ...  # fmt: skip

    def head(self, model: Llama3Model, x: Tensor) -> Tensor | None: ...

    def step(
        self, model: Llama3Model, ids: Tensor, cache: KVCache | None, padding: Tensor | None
    ) -> Tensor | None: ...  # fmt: skip


class Llama3Model(nn.Module):
    """A text-only Llama of the shape in `cfg`, with fresh random weights.

    attend: `fused_attention`, or `readable_attention` to follow every step.
    """

    def __init__(
        self,
        cfg: TextConfig,
        *,
        attend: AttentionFn = fused_attention,
        make_blocks: Callable[[AttentionFn], Iterable[nn.Module]] | None = None,
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.n_kv_heads = cfg.n_kv_heads  # those in this process (see `llamamm.text.tensor_parallel`)
        self.pace = Pace()
        self.fast: Stepper | None = None  # takes the steps of decoding that it can
        self.cache_dtype: torch.dtype | None = None  # of keys and values; None: as they are computed
        attend = self.pace.steady(attend)
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size, dtype=cfg.dtype)
        own = (TransformerBlock(cfg, i, attend=attend) for i in range(cfg.n_layers))
        self.layers = nn.ModuleList(own if make_blocks is None else make_blocks(attend))  # others: for Llama 3.2 Vision
        self.norm = RMSNorm(cfg.hidden_size, cfg.norm_eps, dtype=cfg.dtype)
        self.lm_head = Linear(cfg.hidden_size, cfg.vocab_size, dtype=cfg.dtype)
        if cfg.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight  # one matrix reads tokens in and scores them out
        cos, sin = compute_rope_params(
            cfg.head_dim, theta=cfg.rope_theta, context_length=cfg.context_length, scaling=cfg.rope_scaling
        )
        # Buffers move with the model; they are not saved, since the configuration determines them.
        self.register_buffer("cos", cos, persistent=False)  # (context_length, D)
        self.register_buffer("sin", sin, persistent=False)
        self.apply(_init_weights)

    def forward(
        self,
        ids: Tensor,
        *,
        cache: KVCache | None = None,
        padding: Tensor | None = None,
        segments: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Scores of every vocabulary entry as the next token. ids (B, T) int64 -> logits (B, T, V).

        cache: holds what was read before; padding: (B, S) bool, True for real tokens, which stand on the right;
        segments: (B, T) int64, where a row packs several texts (see `packed_mask`), without cache and padding;
        last_only: logits of the last token alone, (B, 1, V), which saves most of the head's work on a prompt.
        Raises InputError for ids outside the vocabulary, ContextOverflowError past the context.
        """
        if self.fast is not None and segments is None:
            logits = self.fast.step(self, ids, cache, padding)
            if logits is not None:
                return logits
        x = self.hidden_states(ids, cache=cache, padding=padding, segments=segments)
        if last_only:
            x = x[:, -1:]
        return self.scores(x)

    def scores(self, x: Tensor) -> Tensor:
        """The head: what `hidden_states` gives -> logits. (B, T, C) -> (B, T, V)."""
        if self.fast is not None and x.shape[1] == 1:
            logits = self.fast.head(self, x)
            if logits is not None:
                return logits
        return self.pace.follow(self.lm_head, x)

    def hidden_states(
        self,
        ids: Tensor,
        *,
        cache: KVCache | None = None,
        padding: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """What the head reads: the last block's output, normalised. Arguments as above. (B, T) -> (B, T, C)."""
        self._check(ids)
        x = self.embed_tokens(ids)  # (B, T, C)
        return self.norm(self.run_blocks(x, cache=cache, padding=padding, segments=segments))

    def run_blocks(
        self,
        x: Tensor,
        *,
        cache: KVCache | None = None,
        padding: Tensor | None = None,
        segments: Tensor | None = None,
        before: Callable[[int, Tensor], Tensor] | None = None,
        skipped: Collection[int] = (),
    ) -> Tensor:
        """All blocks, before the final norm. Embeddings (B, T, C) -> (B, T, C).

        before: gets the number of each block and what would enter it, and gives what enters instead.
        skipped: numbers of blocks of another kind, which `before` runs in their place.
        """
        T = x.shape[1]
        start = self._start(T, cache)
        if self.fast is not None and T == 1 and segments is None:
            stepped = self.fast.run_blocks(self, x, cache, padding, before, skipped)
            if stepped is not None:
                return stepped
        if segments is None:
            cos, sin = self._angles(start, T, padding)
            mask = build_mask(T, start=start, padding=padding, device=x.device)
        elif cache is None and padding is None:
            cos, sin = self._angles_at(packed_positions(segments))
            mask = packed_mask(segments)
        else:
            raise InputError("segments are for rows read at once: they take neither a cache nor padding")
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        for n, layer in enumerate(self.layers):
            x = x if before is None else before(n, x)
            if n not in skipped:
                x = self.pace.run(layer, x, cos, sin, mask=mask, cache=cache)
        if cache is not None:
            cache.advance(T)
        return x

    def make_cache(self, batch_size: int = 1, max_length: int | None = None) -> KVCache:
        """An empty KV cache on this model's device and in its dtype; max_length in tokens, by default the context."""
        cfg = self.cfg.replace(n_kv_heads=self.n_kv_heads)
        return KVCache(cfg, batch_size=batch_size, max_length=max_length, **self.cache_options())

    def cache_options(self) -> dict[str, Any]:
        """What a cache of any kind is made with so that it fits this model; `keep` where it is told to keep less."""
        weight, less = self.embed_tokens.weight, {} if self.cache_dtype is None else {"keep": self.cache_dtype}
        return {"dtype": weight.dtype, "device": weight.device, **less}

    def n_parameters(self) -> int:
        """Number of parameters; tied ones count once."""
        return sum(p.numel() for p in self.parameters())

    @property
    def full_config(self) -> TextConfig:
        """What a folder's config.json says of the whole model, as its weights are now: their dtype, tied or not."""
        weight = self.embed_tokens.weight
        return self.cfg.replace(dtype=weight.dtype, tie_embeddings=self.lm_head.weight is weight)

    @staticmethod
    def hf_name(name: str) -> str:
        """Hugging Face's name of a parameter or module of ours."""
        return name if name.partition(".")[0] == "lm_head" else f"model.{name}"

    def _start(self, n_tokens: int, cache: KVCache | None) -> int:
        start = 0 if cache is None else cache.length
        if start + n_tokens > self.cfg.context_length:
            raise ContextOverflowError(
                f"start {start} + {n_tokens} tokens = {start + n_tokens} pass the context of "
                f"{self.cfg.context_length}; shorten the prompt"
            )
        return start

    def _angles(self, start: int, n_tokens: int, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        if padding is None:
            return self.cos[start : start + n_tokens], self.sin[start : start + n_tokens]  # (T, D)
        # Behind left padding, a row's first real token is its position 0.
        return self._angles_at((padding.long().cumsum(dim=1) - 1).clamp(min=0)[:, -n_tokens:])

    def _angles_at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.cos[positions][:, None], self.sin[positions][:, None]  # (B, T) -> (B, 1, T, D)

    def _check(self, ids: Tensor) -> None:
        if torch.compiler.is_compiling():  # a check that looks at values would break the graph
            return
        if ids.numel() == 0:  # first, since an empty list becomes a tensor of floats
            raise InputError("no tokens: give at least one, the begin-of-text token for an empty prompt")
        if ids.dim() != 2 or ids.dtype not in (torch.int64, torch.int32):
            raise InputError(f"ids must be whole numbers of shape (B, T), got {ids.dtype} {tuple(ids.shape)}")
        device = self.embed_tokens.weight.device
        if ids.device != device:
            raise InputError(f"ids are on {ids.device}, the model on {device}; move them with ids.to({str(device)!r})")
        low, high, n_rows = int(ids.min()), int(ids.max()), self.embed_tokens.num_embeddings
        if low < 0 or high >= n_rows:
            bad = low if low < 0 else high
            raise InputError(
                f"token id {bad} is outside the vocabulary of {n_rows} (0 to {n_rows - 1}); "
                f"is this the model's own tokenizer?"
            )


def _init_weights(module: nn.Module) -> None:
    """Normal with standard deviation 0.02, as the reference: small enough that the first logits are nearly uniform."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
