"""The towers' weights under the names of their repositories -> this package's names.

Ours are CLIP's, shortened. The others' blocks are the same blocks under other names, as old repositories have them
(`encoder.layer.0.attention.attention.query`) and as transformers 5 writes them (`layers.0.attention.q_proj`).

Built in notebook 11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from llamamm.errors import CheckpointError
from llamamm.weights.names import without_wrappers
from llamamm.weights.tensors import TensorRef

# (pattern, replacement), each tried in turn on the whole name
_PICTURES = (
    (r"^embeddings\.(class_embedding|cls_token)$", "class_embedding"),
    (r"^embeddings\.patch_embeddings?\.(projection\.)?", "patch_embedding."),
    (r"^embeddings\.position_embeddings?(\.weight)?$", "position_embedding"),
    (r"^pre_layrnorm\.", "pre_layernorm."),  # so spelled in CLIP's files
    (r"^layernorm\.", "post_layernorm."),
    (r"^(encoder\.)?layers?\.(?=\d)", "encoder.layers."),
    (r"\.(norm1|layernorm_before)\.", ".layer_norm1."),
    (r"\.(norm2|layernorm_after)\.", ".layer_norm2."),
    (r"(?<=\d)\.attention\.(attention\.)?(query|q_proj)\.", ".self_attn.q_proj."),
    (r"(?<=\d)\.attention\.(attention\.)?(key|k_proj)\.", ".self_attn.k_proj."),
    (r"(?<=\d)\.attention\.(attention\.)?(value|v_proj)\.", ".self_attn.v_proj."),
    (r"(?<=\d)\.attention\.(output\.dense|o_proj)\.", ".self_attn.out_proj."),
    (r"(?<=\d)\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(?<=\d)\.output\.dense\.", ".mlp.fc2."),
)
_SOUNDS = (
    (r"^embed_positions\.weight$", "embed_positions"),
    (r"^layers\.(?=\d)", "encoder.layers."),
    (r"(?<=\d)\.self_attn_layer_norm\.", ".layer_norm1."),
    (r"(?<=\d)\.final_layer_norm\.", ".layer_norm2."),
    (r"(?<=\d)\.(fc[12])\.", r".mlp.\1."),
)
_SPEECH = (
    (r"^embed_positions\.weight$", "embed_positions"),
    (r"(?<=\d)\.(fc[12])\.", r".mlp.\1."),
)
# What a file may hold beside the tower's own: derived, for training alone, or of a head that the tower has not.
_BESIDES = re.compile(r"^(embeddings\.(position_ids|mask_token)$|pooler\.|classifier\.)")


def vision_names(refs: Mapping[str, TensorRef], *, with_head: bool) -> dict[str, TensorRef]:
    """A vision tower's tensors, out of its own file or that of a larger model. Raises CheckpointError.

    with_head=False leaves out the attention-pool head that a file of SigLIP may hold all the same.
    """
    own = _part_of(refs, ("vision_model.", "vit.", "dinov2."))
    kept = {name: ref for name, ref in own.items() if not _BESIDES.search(name)}
    named = _rename(kept, _PICTURES)
    if "class_embedding" in named:
        named["class_embedding"] = named["class_embedding"].reshaped(named["class_embedding"].shape[-1])
    if "position_embedding" in named:
        ref = named["position_embedding"]
        named["position_embedding"] = ref.reshaped(*ref.shape[-2:])  # (1, N, C) in some
    return {name: ref for name, ref in named.items() if with_head or not name.startswith("head.")}


def audio_names(refs: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """The tensors of Whisper's encoder, out of its own file or the whole model's. Raises CheckpointError."""
    return _rename(_part_of(refs, ("model.encoder.", "encoder.")), _SOUNDS)


def speech_names(refs: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """The tensors of a whole Whisper, `encoder.` and `decoder.`. Raises CheckpointError, also for an untied head."""
    refs = {name.removeprefix("model."): ref for name, ref in without_wrappers(refs).items()}
    head, embedding = refs.pop("proj_out.weight", None), refs.get("decoder.embed_tokens.weight")
    if head is not None and embedding is not None and not torch.equal(head.read(), embedding.read()):
        raise CheckpointError("proj_out.weight differs from the decoder's embedding, in a Whisper they are one")
    decoder = {name.removeprefix("decoder."): ref for name, ref in refs.items() if name.startswith("decoder.")}
    return {**{f"encoder.{name}": ref for name, ref in audio_names(refs).items()},
            **{f"decoder.{name}": ref for name, ref in _rename(decoder, _SPEECH).items()}}


def _part_of(refs: Mapping[str, TensorRef], prefixes: tuple[str, ...]) -> dict[str, TensorRef]:
    """The tensors under the first prefix that the file has, without it; all where it has none.

    "encoder." alone does not tell a whole Whisper from a ViT's `encoder.layer.0`, so the conv must be there too.
    """
    refs = without_wrappers(refs)
    for prefix in prefixes:
        part = {name.removeprefix(prefix): ref for name, ref in refs.items() if name.startswith(prefix)}
        if any(name.startswith(("conv1.", "embeddings.")) for name in part):
            return part
    return refs


def _rename(refs: Mapping[str, TensorRef], rules: tuple[tuple[str, str], ...]) -> dict[str, TensorRef]:
    out: dict[str, TensorRef] = {}
    for name, ref in refs.items():
        ours = name
        for pattern, replacement in rules:
            ours = re.sub(pattern, replacement, ours)
        if ours in out:
            raise CheckpointError(f"the checkpoint holds {ours} twice, as {out[ours].name} and as {name}")
        out[ours] = ref
    return out
