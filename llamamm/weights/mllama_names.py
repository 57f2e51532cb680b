"""Llama 3.2 Vision's weights under the names of its repository -> this package's names. Built in notebook 15.

On disk: `language_model.model.layers.3.cross_attn.q_proj.weight`, `language_model.lm_head.weight`,
`vision_model.transformer.layers.0...`, `multi_modal_projector...`; transformers 5 keeps them in memory with another
front, `model.language_model.layers...`, and both are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from llamamm.errors import CheckpointError
from llamamm.weights.names import without_wrappers
from llamamm.weights.tensors import TensorRef

_FRONT = re.compile(
    r"^(model\.)?(language_model\.)?(model\.)?(?=embed_tokens|layers|norm|lm_head|vision_model|multi_modal)"
)
_TILES = (
    (r"(?<=transformer)\.layers\.", "."),
    (r"\.input_layernorm\.", ".layer_norm1."),
    (r"\.post_attention_layernorm\.", ".layer_norm2."),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
)
_IN_MEMORY = (
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head(?=\.|$)", "lm_head"),
    (r"^(?=(vision_model|multi_modal_projector)\.)", "model."),
)


def mllama_names(refs: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """All tensors under our names; unknown ones stay as they are, to be listed.

    Raises CheckpointError where two names mean the same weight.
    """
    out: dict[str, TensorRef] = {}
    for name, ref in without_wrappers(refs).items():
        ours = _FRONT.sub("", name)
        if ours.startswith("vision_model."):
            for pattern, replacement in _TILES:
                ours = re.sub(pattern, replacement, ours)
        if ours in out:
            raise CheckpointError(f"the checkpoint holds {ours} twice, as {out[ours].name} and as {name}")
        out[ours] = ref
    return out


def name_in_memory(name: str) -> str:
    """What transformers 5 calls in memory what is `name` on disk; other names, and other models', stay as they are."""
    for pattern, replacement in _IN_MEMORY:
        name = re.sub(pattern, replacement, name)
    return name
