"""How much memory Llama 3.2 Vision takes on one device, part by part, from its configuration alone.

    print(memory_plan(MllamaConfig.llama32_11b_vision(), context=8192, n_images=1))

Weights, the KV cache and what is kept of images are counted exactly; what reading images and the prompt takes for a
moment is an estimate, whose functions say what they count. Built in notebook 15.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llamamm.errors import ConfigError
from llamamm.llama32_vision.config import EXTRA_EMBEDDINGS, MllamaConfig, TiledVisionConfig

FP32 = 4


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of each part.

    Weights: embedding (token table and head), self_blocks, cross_blocks, vision (tower and projector).
    Beside them: rope (the table of angles), kv_cache (of `context` tokens), image_views (keys and values of all images
    in all cross-attention blocks). tower_work and prompt_work are free again when the first word comes.
    """

    context: int
    n_images: int
    prompt_tokens: int
    embedding: int
    self_blocks: int
    cross_blocks: int
    vision: int
    rope: int
    kv_per_token: int
    view_per_image: int
    tower_per_image: int
    prompt_work: int
    largest_tensor: int

    @property
    def weights(self) -> int:
        """Of the whole model: what its files take."""
        return self.embedding + self.self_blocks + self.cross_blocks + self.vision

    @property
    def kv_cache(self) -> int:
        """Of `context` tokens; taken at once."""
        return self.kv_per_token * self.context

    @property
    def image_views(self) -> int:
        """Keys and values of all images in all cross-attention blocks; kept as long as the cache."""
        return self.view_per_image * self.n_images

    @property
    def tower_work(self) -> int:
        """While the tower reads all images at once; an estimate."""
        return self.tower_per_image * self.n_images

    @property
    def total(self) -> int:
        """The peak of an answer: all but the two works, which follow each other."""
        return self.weights + self.rope + self.kv_cache + self.image_views + max(self.tower_work, self.prompt_work)

    @property
    def loading_peak(self) -> int:
        """While the weights are read one by one onto the CPU: all, and one that is still in the file's pages.

        Onto a GPU: there the weights alone, and on the CPU the largest tensor twice. A cast adds one in its old dtype.
        """
        return self.weights + self.rope + self.largest_tensor

    def rows(self) -> list[tuple[str, int]]:
        """The table that `str` prints: what, and its bytes."""
        return [
            ("token table and head", self.embedding),
            ("self-attention blocks", self.self_blocks),
            ("cross-attention blocks", self.cross_blocks),
            ("vision tower and projector", self.vision),
            ("weights", self.weights),
            ("RoPE table", self.rope),
            (f"KV cache, {self.context:,} tokens ({_mb(1000 * self.kv_per_token)} per 1,000)", self.kv_cache),
            (f"keys and values of images, {self.n_images} ({_mb(self.view_per_image)} each)", self.image_views),
            ("reading the images, about", self.tower_work),
            (f"reading {self.prompt_tokens:,} tokens of prompt at once, about", self.prompt_work),
            ("an answer's peak", self.total),
            ("peak while loading on the CPU", self.loading_peak),
        ]

    def __str__(self) -> str:
        width = max(len(what) for what, _ in self.rows())
        return "\n".join(f"{what:{width}}  {size / 1e9:8.3f} GB" for what, size in self.rows())


def memory_plan(
    cfg: MllamaConfig,
    *,
    dtype: torch.dtype = torch.bfloat16,
    context: int = 8192,
    n_images: int = 1,
    prompt_tokens: int | None = None,
) -> MemoryPlan:
    """What one prompt and its answer take. context: tokens of both; dtype: of the weights, and of all that follows.

    prompt_tokens: how many are read at once, None for all of the context: a prompt with images is read in one piece.
    An image takes as much with one tile as with all: those it lacks are filled up. Raises ConfigError.
    """
    if not 1 <= context <= cfg.text.context_length or n_images < 0:
        raise ConfigError(f"context must be 1 to {cfg.text.context_length}, n_images at least 0; got {context} and "
                          f"{n_images}")
    prompt_tokens = context if prompt_tokens is None else prompt_tokens
    if not 1 <= prompt_tokens <= context:
        raise ConfigError(f"prompt_tokens must be 1 to the context of {context}, got {prompt_tokens}")
    text, vision, size = cfg.text, cfg.vision, dtype.itemsize
    n_cross = len(cfg.cross_layers)
    n_self = text.n_layers - n_cross
    table = (text.vocab_size + EXTRA_EMBEDDINGS) * text.hidden_size
    keys_values = 2 * text.n_kv_heads * text.head_dim  # of one token in one block
    return MemoryPlan(
        context=context,
        n_images=n_images,
        prompt_tokens=prompt_tokens,
        embedding=size * (table + text.vocab_size * text.hidden_size + text.hidden_size),  # and the last norm
        self_blocks=size * n_self * _block(cfg),
        cross_blocks=size * n_cross * (_block(cfg) + 2 * text.head_dim + 2),  # norms of q and k, two gates
        vision=size * (_tower(vision) + (vision.n_features + 1) * text.hidden_size),
        rope=FP32 * 2 * text.context_length * text.head_dim,
        kv_per_token=size * n_self * keys_values,
        view_per_image=size * n_cross * keys_values * vision.max_tiles * vision.n_tokens,
        tower_per_image=_tower_work(vision, size),
        prompt_work=_prompt_work(cfg, size, prompt_tokens, context, n_images),
        largest_tensor=size * max(table, (len(vision.aspect_ratios) + 1) * vision.max_tiles * vision.n_tokens
                                  * vision.encoder.hidden_size, text.hidden_size * text.intermediate_size),
    )  # fmt: skip


def _block(cfg: MllamaConfig) -> int:
    """Parameters of a text block: four projections, three feed-forward matrices, two norms."""
    text = cfg.text
    C, heads = text.hidden_size, 2 * text.n_heads + 2 * text.n_kv_heads
    return C * heads * text.head_dim + 3 * C * text.intermediate_size + 2 * C


def _tower(vision: TiledVisionConfig) -> int:
    """Parameters of the vision tower."""
    e, N = vision.encoder, vision.n_tokens
    C, F = e.hidden_size, e.intermediate_size
    block = 4 * C * C + (C * F + F) + (F * C + C) + 4 * C  # attention without bias, feed-forward, two norms
    rows = len(vision.aspect_ratios) + 1
    tiles = vision.max_tiles
    embeddings = 3 * vision.patch_size**2 * C + C + (N * C + rows * tiles * N * C + 1) + 2 * (rows * tiles * C + 1)
    return embeddings + 4 * C + e.n_layers * block + vision.n_global_layers * (block + 2)


def _tower_work(vision: TiledVisionConfig, size: int) -> int:
    """Bytes that one image takes in the tower at its worst moment, without gradients, with fused attention.

    S tokens of C numbers: the row itself, its normalised copy, queries, keys, values, the attended and the row before;
    the intermediates kept so far; the feed-forward before and after its activation; and who may look at whom, S x S,
    as bytes and once more in the dtype, as the fused kernels want it.
    """
    S, C = vision.max_tiles * (vision.n_tokens + -vision.n_tokens % 8), vision.encoder.hidden_size
    return size * S * ((7 + len(vision.intermediates)) * C + 2 * vision.encoder.intermediate_size) + S * S * (1 + size)


def _prompt_work(cfg: MllamaConfig, size: int, n_tokens: int, context: int, n_images: int) -> int:
    """Bytes that a text block takes while it reads n_tokens: the row before, the row, its normalised copy, and three
    of the feed-forward's width; who may look at whom, among words and from words to images, as in `_tower_work`.
    """
    seen = context + n_images * cfg.vision.max_tiles * cfg.vision.n_tokens
    return size * n_tokens * 3 * (cfg.text.hidden_size + cfg.text.intermediate_size) + n_tokens * seen * (1 + size)


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"
