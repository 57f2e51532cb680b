"""From scores to a choice: temperature, top-k, top-p, min-p and the repetition penalty, each a small pure function.

Every filter takes logits (B, V) and returns logits (B, V) in which the excluded tokens are -inf; `sample` applies them
in the usual order and draws. At least one token always survives.

Sources: nucleus sampling (top-p), arXiv:1904.09751; min-p, arXiv:2407.01082; repetition penalty, arXiv:1909.05858.
Built in notebook 08.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llamamm.errors import SamplingError


@dataclass(frozen=True)
class SamplingConfig:
    """How to choose the next token. Raises SamplingError for a value outside its range.

    temperature: 0 takes the best token always; below 1 sharpens, above 1 flattens.
    top_k: keep the k best (more than the vocabulary means all); None: off.
    top_p: keep the fewest best tokens whose probabilities reach p, in (0, 1]; None: off.
    min_p: keep tokens at least p times as probable as the best one, in [0, 1]; None: off.
    repetition_penalty: above 1 makes tokens that already occurred less likely; 1: off.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise SamplingError(f"temperature must be 0 (greedy) or a positive number, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise SamplingError(f"top_k must be at least 1, or None for no limit, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise SamplingError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise SamplingError(f"min_p must be in [0, 1], got {self.min_p}")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise SamplingError(f"repetition_penalty must be a positive number, got {self.repetition_penalty}")


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive scores of seen tokens by `penalty`, multiply negative ones. seen: (B, V) bool."""
    penalty, most = min(max(penalty, 1e-30), 1e30), torch.finfo(logits.dtype).max
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty).clamp(-most, most)
    return torch.where(seen, penalized, logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Exclude all but the k best tokens of each row."""
    kth_best = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]  # (B, 1)
    return logits.masked_fill(logits < kth_best, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Exclude the tail: what comes after the best tokens have reached probability p together."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probs = ordered.softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs  # probability of everything better than this token
    tail = before >= p
    tail[..., 0] = False  # the best always stays, also for a p that float32 takes for 0
    ordered = ordered.masked_fill(tail, float("-inf"))
    return torch.empty_like(logits).scatter(-1, order, ordered)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Exclude tokens less than p times as probable as the best one."""
    probs = logits.softmax(dim=-1)
    return logits.masked_fill(probs < p * probs.amax(dim=-1, keepdim=True), float("-inf"))


def filter_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Temperature, then top-k, top-p and min-p: the logits whose softmax is drawn from. Needs temperature > 0."""
    logits, temperature = logits.float(), min(max(config.temperature, 1e-30), 1e30)
    if temperature < 1e-6:  # divided, large scores would become infinite: the best one is set to 0 first
        logits = logits - logits.amax(dim=-1, keepdim=True)
    logits = logits / temperature
    if config.top_k is not None:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p is not None and config.top_p < 1:
        logits = keep_top_p(logits, config.top_p)
    if config.min_p is not None:
        logits = keep_min_p(logits, config.min_p)
    return logits


def sample(
    logits: Tensor,
    config: SamplingConfig,
    *,
    seen: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The next token of each row. logits (B, V) -> ids (B,). seen: (B, V) bool, for the repetition penalty.

    Raises SamplingError where logits are NaN, which a damaged checkpoint or an fp16 overflow causes.
    """
    if seen is not None and config.repetition_penalty != 1:
        logits = penalize_repetition(logits, seen, config.repetition_penalty)
    best = logits.argmax(dim=-1)  # (B,); argmax takes NaN for the largest, so one look at it finds any
    if logits.gather(-1, best[:, None]).isnan().any():
        raise SamplingError("the model's logits are NaN; `llamamm doctor FILE` looks for damaged weights")
    if config.temperature == 0:
        return best
    if logits.gather(-1, best[:, None]).isinf().any():
        raise SamplingError("the model's best score is infinite, as after an fp16 overflow: there is no probability to "
                            "draw by; take float32, or temperature 0")
    probs = filter_logits(logits, config).softmax(dim=-1)
    return torch.multinomial(probs, num_samples=1, generator=generator).squeeze(-1)  # (B,)
