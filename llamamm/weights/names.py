"""Four conventions for the same weights: Hugging Face's names, Meta's, GGUF's, and this package's.

Ours are Hugging Face's without the leading `model.`. Meta's and GGUF's files also store the rows of q and k in another
order, because their RoPE turns neighbouring rows (0, 1), (2, 3), ... while ours turns (0, D/2), (1, D/2 + 1), ...
Read with the wrong order every shape fits, and the model talks nonsense. Built in notebook 07.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from llamamm.errors import CheckpointError
from llamamm.text.config import TextConfig
from llamamm.weights.tensors import TensorRef

META_NAMES = {
    "tok_embeddings.weight": "embed_tokens.weight",
    "norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",
    "layers.N.attention_norm.weight": "layers.N.input_layernorm.weight",
    "layers.N.attention.wq.weight": "layers.N.self_attn.q_proj.weight",
    "layers.N.attention.wk.weight": "layers.N.self_attn.k_proj.weight",
    "layers.N.attention.wv.weight": "layers.N.self_attn.v_proj.weight",
    "layers.N.attention.wo.weight": "layers.N.self_attn.o_proj.weight",
    "layers.N.ffn_norm.weight": "layers.N.post_attention_layernorm.weight",
    "layers.N.feed_forward.w1.weight": "layers.N.mlp.gate_proj.weight",
    "layers.N.feed_forward.w2.weight": "layers.N.mlp.down_proj.weight",
    "layers.N.feed_forward.w3.weight": "layers.N.mlp.up_proj.weight",
}
GGUF_NAMES = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",
    "blk.N.attn_norm.weight": "layers.N.input_layernorm.weight",
    "blk.N.attn_q.weight": "layers.N.self_attn.q_proj.weight",
    "blk.N.attn_k.weight": "layers.N.self_attn.k_proj.weight",
    "blk.N.attn_v.weight": "layers.N.self_attn.v_proj.weight",
    "blk.N.attn_output.weight": "layers.N.self_attn.o_proj.weight",
    "blk.N.ffn_norm.weight": "layers.N.post_attention_layernorm.weight",
    "blk.N.ffn_gate.weight": "layers.N.mlp.gate_proj.weight",
    "blk.N.ffn_down.weight": "layers.N.mlp.down_proj.weight",
    "blk.N.ffn_up.weight": "layers.N.mlp.up_proj.weight",
}
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What some files carry though the configuration determines it; ours computes it.
_DERIVED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|rope\.freqs|rope_freqs\.weight)$")


def without_wrappers(refs: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """The tensors without what `torch.compile` and parallel training put into names: `_orig_mod.`, `module.`, ...

    Raises CheckpointError where two names mean the same weight.
    """
    out: dict[str, TensorRef] = {}
    for name, ref in refs.items():
        plain = _WRAPPERS.sub("", name)
        if plain in out:
            raise CheckpointError(f"the checkpoint holds {plain} twice, as {out[plain].name} and as {name}")
        out[plain] = ref
    return out


def to_our_names(refs: Mapping[str, TensorRef], cfg: TextConfig) -> dict[str, TensorRef]:
    """Recognise the convention, rename, and put the rows of q and k into half-split order.

    Names that no convention knows stay as they are, to be listed as unexpected when loading.
    Raises CheckpointError where two names mean the same weight.
    """
    refs = {name: ref for name, ref in without_wrappers(refs).items() if not _DERIVED.search(name)}
    if "token_embd.weight" in refs:
        table, interleaved = GGUF_NAMES, True
    elif "tok_embeddings.weight" in refs:
        table, interleaved = META_NAMES, True
    else:
        table, interleaved = None, False
    out: dict[str, TensorRef] = {}
    for name, ref in refs.items():
        ours = name.removeprefix("model.") if table is None else _translate(name, table)
        if ours in out:
            raise CheckpointError(f"the checkpoint holds {ours} twice, as {out[ours].name} and as {name}")
        if interleaved and ours.endswith(("q_proj.weight", "k_proj.weight")):
            n_heads = cfg.n_heads if ours.endswith("q_proj.weight") else cfg.n_kv_heads
            ref = ref.then(lambda w, n=n_heads: interleaved_to_half_split(w, n))
        out[ours] = ref
    return out


def interleaved_to_half_split(weight: Tensor, n_heads: int) -> Tensor:
    """Reorder the rows of a q or k projection, in each head: 0, 2, 4, ..., 1, 3, 5, ... Keeps (heads * D, C)."""
    rows, width = weight.shape
    pairs = weight.view(n_heads, rows // n_heads // 2, 2, width)  # (H, D/2, 2, C): neighbours
    return pairs.transpose(1, 2).reshape(rows, width)  # (H, 2, D/2, C): first halves, then second halves


def half_split_to_interleaved(weight: Tensor, n_heads: int) -> Tensor:
    """The inverse of `interleaved_to_half_split`."""
    rows, width = weight.shape
    halves = weight.view(n_heads, 2, rows // n_heads // 2, width)  # (H, 2, D/2, C)
    return halves.transpose(1, 2).reshape(rows, width)


def _translate(name: str, table: Mapping[str, str]) -> str:
    number = re.search(r"\d+", name)
    if number is None:
        return table.get(name, name)
    generic = name[: number.start()] + "N" + name[number.end() :]
    return table[generic].replace("N", number.group()) if generic in table else name
