"""Every key of a Llama's `config.json`: read, allowed with one value, known to change nothing, or refused by name.

A key that is ignored although it matters gives a model that talks, and not as it was trained to. So a key that is not
in these tables is refused wherever it is set at all. Used by `TextConfig.from_hf`; lesson 06 reads such a file.

Source: `LlamaConfig` and `PreTrainedConfig` of transformers 5, and the files of Llama 1 to 3.2, SmolLM and TinyLlama.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from llamamm.errors import ConfigError

READ = frozenset({
    "model_type", "architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta",
    "rope_scaling", "rope_parameters", "original_max_position_embeddings", "tie_word_embeddings", "dtype",
    "torch_dtype", "sliding_window", "use_sliding_window", "layer_types", "no_rope_layers", "attention_multiplier",
    "quantization_config",
})  # fmt: skip
# What this package computes; another value would be another model.
ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,), "is_causal": (True,),
    "is_encoder_decoder": (False,), "partial_rotary_factor": (1,), "embedding_multiplier": (1,),
    "residual_multiplier": (1,), "logits_scaling": (1,),
}  # fmt: skip
_TRAINING = "of training, and of what this package has its own settings for"
_SAMPLING = "how to sample: the caller's choice here"
_IDS = "found by the tokenizer's reader"
_HEADS = "of other heads than the one that predicts words"
_SPEED = "how to compute, not what"
_ORIGIN = "where the file comes from"
_LENGTH = "a second word for the context; transformers reads max_position_embeddings alone"
HARMLESS = {
    "pretraining_tp": "the same products, cut into pieces",
    "max_window_layers": "for use_sliding_window",
    "no_rope_layer_interval": "what no_rope_layers was made of",
    "is_decoder": "all Llamas are",
    "is_llama_config": "that it is one",
    "auto_map": "code beside the weights, which transformers leaves alone too unless told to trust it",
    "pad_token_id": _IDS,  # transformers' embedding marks its row for training alone
    **dict.fromkeys(("bos_token_id", "eos_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id",
                     "tokenizer_class", "prefix"), _IDS),
    **dict.fromkeys(("initializer_range", "dropout", "attention_dropout", "hidden_dropout", "embd_pdrop", "resid_pdrop",
                     "gradient_checkpointing", "loss_type"), _TRAINING),
    **dict.fromkeys(("max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams",
                     "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p",
                     "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
                     "bad_words_ids", "num_return_sequences", "forced_bos_token_id", "forced_eos_token_id",
                     "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
                     "begin_suppress_tokens", "task_specific_params"), _SAMPLING),
    **dict.fromkeys(("num_labels", "id2label", "label2id", "problem_type", "classifier_dropout", "finetuning_task"),
                    _HEADS),
    **dict.fromkeys(("use_cache", "cache_implementation", "return_dict", "return_dict_in_generate", "output_scores",
                     "output_attentions", "output_hidden_states", "torchscript", "use_bfloat16", "tf_legacy_loss",
                     "chunk_size_feed_forward", "attn_implementation", "use_flash_attention", "use_flash_attn",
                     "flash_attention", "transformers.js_config"), _SPEED),
    **dict.fromkeys(("transformers_version", "name_or_path", "model_name", "base_model", "license", "language",
                     "custom_pipelines"), _ORIGIN),
    **dict.fromkeys(("max_sequence_length", "max_seq_len", "max_seq_length", "seq_length", "model_max_length",
                     "tokenizer_model_max_length", "tokenizer_padding_side"), _LENGTH),
}  # fmt: skip
HARMLESS_FRONTS = ("_", "unsloth_")  # transformers' private notes, such as _name_or_path; a trainer's about itself
ARCHITECTURES = ("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel")
ROPE_READ = frozenset({"rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor",
                       "original_max_position_embeddings", "partial_rotary_factor"})  # fmt: skip


def unknown_keys(data: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """`key=value` of every key outside `known` that is set, that is: not None, False, 0 or empty."""
    return [f"{key}={_short(value)}" for key, value in data.items() if key not in known and value]


def require_known_keys(data: Mapping[str, Any]) -> None:
    """Raises ConfigError, naming the key, where a Llama's configuration says what this package would not do."""
    packed = data.get("quantization_config")
    kind = packed.get("quant_method", "unnamed") if isinstance(packed, Mapping) else "unnamed"
    if packed and kind != "llamamm":  # this package's own is read where the weights are, in `pretrained.packed`
        raise ConfigError(f"config.json has quantization_config ({kind}): its weights are packed, which this package "
                          f"does not read; use the model in bf16, or a GGUF file of it")
    foreign = [name for name in data.get("architectures") or () if name not in ARCHITECTURES]
    if foreign:
        raise ConfigError(f"config.json has architectures={foreign}; this package builds {ARCHITECTURES[0]}")
    for key, allowed in ONLY.items():
        if data.get(key) is not None and data[key] not in allowed:
            raise ConfigError(f"config.json has {key}={_short(data[key])}; Llama 3.2 uses {allowed[0]!r}")
    windowed = data.get("use_sliding_window") is not False and data.get("sliding_window")
    if windowed and windowed < data.get("max_position_embeddings", 2048):
        raise ConfigError(f"config.json has sliding_window={windowed}: a Llama's attention reads the whole context of "
                          f"{data.get('max_position_embeddings', 2048)}")
    _require_each(data, "layer_types", "full_attention")
    _require_each(data, "no_rope_layers", 1)  # so spelled: 1 where a block has RoPE
    _require_usual_scale(data)
    rest = {key: value for key, value in data.items() if not key.startswith(HARMLESS_FRONTS)}
    unknown = unknown_keys(rest, READ.union(ONLY, HARMLESS))
    if unknown:
        raise ConfigError(f"config.json has {', '.join(unknown)}, which this package does not know and which may "
                          f"change results; if it does not, take it out of the file")


def require_known_rope_keys(rope: Mapping[str, Any]) -> None:
    """Raises ConfigError, naming the key, where RoPE is to turn otherwise than by Llama's two rules."""
    if rope.get("partial_rotary_factor") not in (None, 1):
        raise ConfigError(f"RoPE has partial_rotary_factor={rope['partial_rotary_factor']}; Llama turns all of a head")
    unknown = unknown_keys(rope, ROPE_READ)
    if unknown:
        raise ConfigError(f"RoPE has {', '.join(unknown)}, which is no part of Llama's rules")


def _require_each(data: Mapping[str, Any], key: str, expected: Any) -> None:
    other = [value for value in data.get(key) or () if value != expected]
    if other:
        raise ConfigError(f"config.json has {key} with {other[0]!r}; in a Llama each is {expected!r}")


def _require_usual_scale(data: Mapping[str, Any]) -> None:
    scale = data.get("attention_multiplier")
    if scale is None:
        return
    head_dim = data.get("head_dim") or data["hidden_size"] // data["num_attention_heads"]
    if not math.isclose(scale, head_dim**-0.5, rel_tol=1e-6):
        raise ConfigError(f"config.json has attention_multiplier={scale}; a Llama's is 1 / sqrt({head_dim})")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
