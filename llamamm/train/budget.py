"""How long a training takes, known before it begins: tokens, floating point operations, hours.

    a product of x (T, C) with W (N, C)     2 T N C operations: forward; once more for the gradient of x; once more for
                                            that of W, where W trains
    attention                               4 T S H D: scores and their sums of values; backward twice that

So a model of N weights that all train takes 6 N operations a token, and attention 12 L H D T of a row of T tokens, as
if every token saw the whole row: kernels that leave out what is masked take less. With frozen weights and LoRA it is
4 N and a little. Computing activations twice adds a forward pass.

Devices never reach their peak in training: a share of it, the utilisation, is stated, not known; 30 to 50 % is usual
for large models. Sources: Scaling Laws, arXiv:2001.08361; PaLM, arXiv:2204.02311, appendix B. Used in notebook 19.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.utils.flop_counter import FlopCounterMode

from llamamm.errors import InputError
from llamamm.multimodal.config import MultimodalConfig
from llamamm.text.config import TextConfig
from llamamm.text.model import Llama3Model
from llamamm.train.config import TrainConfig
from llamamm.train.plan import media_runs, meta_model, model_shape, seen_by, stages_of

if TYPE_CHECKING:
    from rich.table import Table

TFLOPS = 312.0  # of an A100, bf16, dense: NVIDIA's data sheet
UTILISATION = 0.4


@dataclass(frozen=True)
class Budget:
    """What a stage takes, on all devices together. tokens: of full rows; flops: floating point operations."""

    name: str
    steps: int
    tokens: int
    flops: int

    def hours(self, gpus: int, tflops: float, utilisation: float) -> float:
        return self.flops / (gpus * tflops * 1e12 * utilisation) / 3600


def plan_work(cfg: TrainConfig) -> list[Budget]:
    """Each stage's, or the one of a run without stages. Raises as `plan_memory`."""
    shape = model_shape(cfg)
    return [_work(stage, shape) for stage in stages_of(cfg)]


def _work(cfg: TrainConfig, shape: TextConfig | MultimodalConfig) -> Budget:
    model, _ = meta_model(cfg, shape)
    rows = cfg.batch_size * (1 + (cfg.method == "dpo"))
    of_a_row = media_flops(model, align=cfg.method == "align")
    if cfg.method != "align":
        of_a_row += text_flops(model, cfg.length, twice=cfg.checkpoint_activations, reference=cfg.method == "dpo")
    return Budget(cfg.output.name if cfg.output else "", cfg.steps, cfg.steps * rows * cfg.length,
                  cfg.steps * rows * of_a_row)  # fmt: skip


def media_flops(model: Llama3Model, *, align: bool = False) -> int:
    """Of a training step with one picture, through its bridge and an eye that trains: forward, and backward twice that.

    align: of the picture or of the longest sound, whichever is more.
    """
    def of(names: Sequence[str]) -> int:
        with FlopCounterMode(display=False) as counter:
            for name in names:
                runs[name]()
        return 3 * counter.get_total_flops()

    model = model.to(model.embed_tokens.weight.dtype)
    runs = media_runs(model)
    picture = of([name for name in seen_by(model) if name in runs])
    return max(picture, of(["audio_bridge"])) if align and "audio_bridge" in runs else picture


def text_flops(model: Llama3Model, length: int, *, twice: bool = False, reference: bool = False) -> int:
    """Of a training step with one row of `length` tokens, through the blocks and the head. Norms and the like are left
    out.

    twice: activations are computed again in the backward pass, the head's aside; reference: a forward pass more.
    """
    cfg = model.cfg
    blocks = [p for p in model.layers.parameters() if p.dim() == 2]
    head = [p for p in model.lm_head.parameters() if p.dim() == 2]
    attention = 4 * cfg.n_layers * length * cfg.n_heads * cfg.head_dim  # a token's, forward
    forward = 2 * sum(p.numel() for p in blocks) + attention
    scores = 2 * sum(p.numel() for p in head)
    trained = 2 * sum(p.numel() for p in (*blocks, *head) if p.requires_grad)
    backward = forward + attention + scores + trained
    return length * ((1 + twice + reference) * forward + (1 + reference) * scores + backward)


def table(budgets: Sequence[Budget], *, gpus: int, tflops: float, utilisation: float) -> Table:
    """A row for each stage, and one for all. Raises InputError for a peak or a share of it that cannot be."""
    from rich.box import SIMPLE
    from rich.table import Table

    if not (0 < tflops < float("inf") and 0 < utilisation <= 1):
        raise InputError(f"a peak rate is above 0 and its share from 0 to 1, got {tflops:g} and {utilisation:g}")
    found = Table("stage", "steps", "tokens", "10¹⁵ operations", "hours", box=SIMPLE)
    total = Budget("all", *(sum(getattr(b, part) for b in budgets) for part in ("steps", "tokens", "flops")))
    for b in [*budgets, total] if len(budgets) > 1 else budgets:
        found.add_row(b.name, f"{b.steps:,}", f"{b.tokens:,}", f"{b.flops / 1e15:,.3g}",
                      f"{b.hours(gpus, tflops, utilisation):,.2g}")  # fmt: skip
    return found
