"""How much memory a training takes, known before it begins: from configurations alone, by tensors without content.

    weights      as they are loaded: 16 bits where they are frozen on a GPU or `precision: bf16` is asked for, else 32
    gradients    one fp32 number for each that trains
    optimizer    AdamW's two moments, fp32
    activations  what a backward pass needs of the rows that are computed at once, and of matrices that train copies
                 in the 16 bits that they are multiplied in
    buffers      what processes exchange: under DDP each gradient once more; under FSDP, which keeps a part of each
                 matrix, what is gathered whole at once: two blocks (one runs, one is on its way) and what stands in no
                 block (embedding, norm, head), each with its gradients

On PyTorch's "meta" device a model has shapes and no numbers. Activations are counted by running one block of it there:
what autograd would keep is linear in the number of tokens, since fused attention keeps no table of them. What is left
out: the allocator's waste, the libraries' own memory (a GiB on CUDA), frozen towers at work. Rows are taken to be full,
each with one picture. `method: align` runs no block: there a row is the longest sound, 30 s, or a picture, with scores
of the whole vocabulary, of which data hold a part. Source of the sharding: ZeRO, arXiv:1910.02054, stage 3; PyTorch's
FSDP2. Named in notebook 16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from llamamm.devices import pick_device
from llamamm.errors import InputError
from llamamm.files import read_json
from llamamm.lora.lean import lean_blocks
from llamamm.multimodal.config import MODEL_TYPE, MultimodalConfig
from llamamm.multimodal.model import MultimodalLlama
from llamamm.pretrained.compose import read_composed_config
from llamamm.pretrained.load import read_config
from llamamm.pretrained.locate import DEFAULT_MODEL, locate, locate_config
from llamamm.pretrained.skill import parts_of
from llamamm.text.config import TextConfig
from llamamm.text.model import Llama3Model
from llamamm.train.config import TrainConfig
from llamamm.train.loop import resolve_precision
from llamamm.train.losses import CHUNK_BYTES
from llamamm.train.prepare import make_trainable, weights_dtype
from llamamm.train.processes import shards_of
from llamamm.weights.gguf import GGUFFile

if TYPE_CHECKING:
    from rich.table import Table

GIB = 2**30
PROBE = 61  # tokens of the row that is counted: no other size of a model is 61


@dataclass(frozen=True)
class Plan:
    """Bytes of a stage on each device."""

    name: str
    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers


def plan_memory(cfg: TrainConfig, *, gpus: int = 1) -> list[Plan]:
    """Each stage's, or the one of a run without stages, on each of `gpus` devices. Of Hub repositories config.json
    alone is downloaded. Raises ConfigError, FetchError and InputError as training does."""
    shape = model_shape(cfg)
    return [_plan(stage, shape, gpus) for stage in stages_of(cfg)]


def stages_of(cfg: TrainConfig) -> list[TrainConfig]:
    """The settings of each stage; of a run without stages its own."""
    return cfg.stage_settings() or [cfg]


def model_shape(cfg: TrainConfig) -> TextConfig | MultimodalConfig:
    """The configuration of the model that a run begins with."""
    if cfg.compose is not None:
        return read_composed_config(**cfg.compose)
    if cfg.shape is not None:
        if "vocab_size" not in cfg.shape:
            raise InputError("a plan for a new model needs shape.vocab_size: the number of its tokenizer's tokens")
        return TextConfig.tiny(**{"context_length": max(256, cfg.length), **cfg.shape})
    if str(cfg.model).endswith(".gguf"):
        return GGUFFile(locate(cfg.model)).config
    folder = locate_config(cfg.model or DEFAULT_MODEL)
    if parts := parts_of(folder):
        return read_composed_config(**parts)
    data = read_json(folder / "config.json")
    return MultimodalConfig.from_hf(data) if data.get("model_type") == MODEL_TYPE else read_config(folder)


def meta_model(cfg: TrainConfig, shape: TextConfig | MultimodalConfig) -> tuple[Llama3Model, torch.dtype | None]:
    """The model of a stage, without numbers, in the types that it is kept in; and the short type that it computes in,
    None where it computes in fp32."""
    device = torch.device(cfg.device) if cfg.device else pick_device(None)
    unknown = cfg.precision == "auto" and device.type == "cuda" and not torch.cuda.is_available()
    low_precision = torch.bfloat16 if unknown else resolve_precision(cfg.precision, device)[0]
    with torch.device("meta"):
        model = MultimodalLlama(shape) if isinstance(shape, MultimodalConfig) else Llama3Model(shape)
    model = model.to("meta", weights_dtype(cfg, device, low_precision))
    make_trainable(model, cfg)
    return model.to("meta"), low_precision  # a fresh adapter, too


def _plan(cfg: TrainConfig, shape: TextConfig | MultimodalConfig, gpus: int) -> Plan:
    if cfg.batch_size % gpus:
        raise InputError(f"batch_size {cfg.batch_size} is not a multiple of {gpus} devices, each of which takes its "
                         f"share of the rows")
    model, low_precision = meta_model(cfg, shape)
    sharded = gpus if cfg.parallel == "fsdp" else 1
    blocks, whole = shards_of(model) if sharded > 1 else ([], set(model.parameters()))
    split = [p for p in model.parameters() if p not in whole]
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = n_bytes(whole) + sum(part_bytes(p, sharded) for p in split)
    gradients = sum(part_bytes(p, sharded if p not in whole else 1) for p in trained)
    buffers = _gathered_bytes(blocks, split) if sharded > 1 else gradients if gpus > 1 else 0
    copied = [p for p in trained if p.dim() > 1 and low_precision]
    copies = sum(p.numel() for p in copied) * low_precision.itemsize if low_precision else 0
    activations = copies + _activations(model.to(low_precision or torch.float32), cfg, gpus)
    return Plan(cfg.output.name if cfg.output else "", weights, gradients, 2 * gradients, activations, buffers)


def part_bytes(parameter: Tensor, n_processes: int) -> int:
    """Of the largest part of a parameter that FSDP cuts by rows: ceil(rows / n) of them."""
    rows = -(-parameter.shape[0] // n_processes)
    return rows * (parameter.numel() // parameter.shape[0]) * parameter.element_size()


def _gathered_bytes(blocks: Sequence[nn.Module], split: Sequence[Tensor]) -> int:
    """What FSDP holds whole beside its parts where it holds the most of it, in a backward pass."""
    def both(parameters: Iterable[Tensor]) -> int:
        return sum(n_bytes([p]) * (1 + p.requires_grad) for p in parameters)

    in_blocks = {p for block in blocks for p in block.parameters()}
    return both(p for p in split if p not in in_blocks) + 2 * max(both(block.parameters()) for block in blocks)


def _activations(model: Llama3Model, cfg: TrainConfig, gpus: int) -> int:
    """model: on "meta", in the dtype that it computes in."""
    rows = min(cfg.micro_batch_size or cfg.batch_size, cfg.batch_size // gpus)
    rows *= 1 + (cfg.method == "dpo")  # pairs are two rows each
    dtype, width, n_layers = model.embed_tokens.weight.dtype, model.cfg.hidden_size, model.cfg.n_layers
    tokens = rows * cfg.length
    if cfg.method == "align":
        return rows * _aligned(model)

    def empty(*size: int) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta", requires_grad=True)

    model.layers = model.layers[:1]
    with lean_blocks(model):
        block = tokens * kept_bytes(model, lambda: model.run_blocks(empty(1, PROBE, width))) // PROBE
    stream = tokens * width * dtype.itemsize
    blocks = n_layers * stream + block if cfg.checkpoint_activations else n_layers * block
    vocabulary = model.lm_head.weight.numel() // width
    head = 4 * stream + min(CHUNK_BYTES, tokens * vocabulary * 4)  # norm, loss, and their gradients
    head += model.lm_head.weight.numel() * 4 if model.lm_head.weight.requires_grad else 0
    return blocks + head + rows * _of_a_picture(model)


def _aligned(model: Llama3Model) -> int:
    """What a bridge keeps of one sound or one picture, whichever is more, and the fp32 scores of its tokens."""
    shape, runs, sizes = model.multimodal_cfg, media_runs(model), []
    if "audio_bridge" in runs:
        heard = kept_bytes(model, runs["audio_bridge"])
        sizes.append((heard, shape.n_audio_tokens(shape.audio.n_positions)))
    if "image_bridge" in runs:
        sizes.append((_of_a_picture(model), shape.n_image_tokens()))
    width, vocabulary = model.cfg.hidden_size, model.lm_head.weight.numel() // model.cfg.hidden_size
    return max(kept + n * 4 * (width + 1 + vocabulary) for kept, n in sizes)


def _of_a_picture(model: Llama3Model) -> int:
    """What the eye, if it trains, and its bridge keep of one picture."""
    runs = media_runs(model)
    return sum(kept_bytes(model, runs[name]) for name in seen_by(model) if name in runs)


def seen_by(model: Llama3Model) -> list[str]:
    """The parts through which a picture goes in every step: a frozen eye looks before, once."""
    eye = getattr(model, "vision_tower", None)
    trains = eye is not None and any(p.requires_grad for p in eye.parameters())
    return [*(["vision_tower"] if trains else []), "image_bridge"]


def media_runs(model: Llama3Model) -> dict[str, Callable[[], Any]]:
    """A forward pass of one picture through the eye and through its bridge, and of the longest sound through its
    bridge, for a model on "meta"; none of what the model lacks."""
    shape = getattr(model, "multimodal_cfg", None)
    dtype, runs = model.embed_tokens.weight.dtype, {}

    def empty(*size: int) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta", requires_grad=True)

    if shape is not None and shape.vision is not None:
        rows, columns = shape.grid
        features = (1, rows * columns, shape.vision.encoder.hidden_size)
        runs["vision_tower"] = lambda: model.vision_tower(empty(1, 3, *shape.pixels), layer=shape.image_layer)
        runs["image_bridge"] = lambda: model.image_bridge(empty(*features), grid=shape.grid)
    if shape is not None and shape.audio is not None:
        heard = (1, shape.audio.n_positions, shape.audio.encoder.hidden_size)
        runs["audio_bridge"] = lambda: model.audio_bridge(empty(*heard))
    return runs


def kept_bytes(model: nn.Module, run: Callable[[], Any]) -> int:
    """Of the tensors that autograd keeps of a call for its backward pass, each once, without the model's own and
    without attention's tables, which only the unfused path of "meta" makes."""
    own = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        table = tensor.dim() > 2 and tensor.shape[-1] == tensor.shape[-2]
        if tensor.untyped_storage()._cdata not in own and not (tensor.is_meta and table):
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def n_bytes(tensors: Iterable[Tensor]) -> int:
    """Of all of them together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def table(plans: Sequence[Plan], *, memory: float | None = None) -> Table:
    """In GiB, a row for each stage. memory: of a device, in GiB; then a column says whether it is enough. Raises
    InputError where there cannot be so much."""
    from rich.box import SIMPLE
    from rich.table import Table

    if memory is not None and not 0 < memory < float("inf"):
        raise InputError(f"the memory of a device is a number of GiB above 0, got {memory:g}")
    parts = ("weights", "gradients", "optimizer", "activations", "buffers", "total")
    found = Table("GiB", *parts, box=SIMPLE, collapse_padding=True)  # so that 80 columns are enough
    if memory is not None:
        found.add_column(f"fits {memory:g}")
    for plan in plans:
        sizes = (f"{getattr(plan, part) / GIB:.2f}" for part in parts)
        found.add_row(plan.name, *sizes, *([] if memory is None else ["yes" if plan.total <= memory * GIB else "no"]))
    return found
