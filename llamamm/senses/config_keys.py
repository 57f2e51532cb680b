"""Every key of a tower's `config.json` and of a processor's settings: read, without effect here, or refused by name.

A key that is ignored although it matters gives a model that answers, and not as it was trained to. So a key that is in
none of these tables is refused wherever it is set.

Source: the configurations and processors of transformers 5, and the files of ViT, CLIP, SigLIP, DINOv2 and Whisper.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from llamamm.errors import CheckpointError, ConfigError
from llamamm.files import read_json

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # where transformers 5 writes the same, as a part of its own

_TRAINING = frozenset({
    "attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "activation_dropout",
    "drop_path_rate", "initializer_range", "initializer_factor", "init_std", "layerscale_value", "encoder_layerdrop",
    "decoder_layerdrop", "gradient_checkpointing", "apply_spec_augment", "mask_time_prob", "mask_time_length",
    "mask_time_min_masks", "mask_feature_prob", "mask_feature_length", "mask_feature_min_masks", "use_mask_token",
})  # fmt: skip
_OTHER_PARTS = frozenset({  # heads, poolers and decoders, which are not built here
    "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "projection_dim", "pooler_act",
    "pooler_output_size", "encoder_stride", "classifier_proj_size", "use_weighted_layer_sum", "decoder_layers",
    "decoder_ffn_dim", "decoder_attention_heads", "max_target_positions", "vocab_size", "median_filter_width",
    "scale_embedding", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id",
    "decoder_start_token_id", "forced_decoder_ids", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens",
    "begin_suppress_tokens", "alignment_heads", "task_specific_params", "prefix", "tie_encoder_decoder", "is_decoder",
    "cross_attention_hidden_size", "add_cross_attention", "is_encoder_decoder", "apply_layernorm",
    "reshape_hidden_states", "out_features", "out_indices", "stage_names", "logit_scale_init_value",
})  # fmt: skip
_SAMPLING = frozenset({
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "remove_invalid_values",
    "exponential_decay_length_penalty",
})  # fmt: skip
_SPEED_AND_ORIGIN = frozenset({
    "use_cache", "return_dict", "return_dict_in_generate", "output_scores", "output_attentions",
    "output_hidden_states", "torchscript", "use_bfloat16", "tf_legacy_loss", "chunk_size_feed_forward", "pruned_heads",
    "attn_implementation", "transformers_version", "name_or_path", "architectures", "auto_map", "model_type", "dtype",
    "torch_dtype", "tokenizer_class", "license", "language", "num_hidden_layers",
})  # fmt: skip
HARMLESS = _TRAINING | _OTHER_PARTS | _SAMPLING | _SPEED_AND_ORIGIN

VISION_READ = frozenset({
    "hidden_size", "intermediate_size", "mlp_ratio", "num_attention_heads", "layer_norm_eps", "hidden_act",
    "image_size", "patch_size", "qkv_bias", "vision_use_head", "num_channels", "use_swiglu_ffn",
})  # fmt: skip
AUDIO_READ = frozenset({
    "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "activation_function", "num_mel_bins",
    "max_source_positions", "hidden_size", "num_attention_heads",
})  # fmt: skip
TILED_READ = frozenset({
    "hidden_size", "intermediate_size", "num_global_layers", "attention_heads", "num_attention_heads", "norm_eps",
    "hidden_act", "num_channels", "image_size", "patch_size", "max_num_tiles", "intermediate_layers_indices",
    "supported_aspect_ratios", "vision_output_dim", "max_aspect_ratio_id",
})  # fmt: skip

IMAGES_READ = frozenset({
    "image_processor_type", "feature_extractor_type", "do_resize", "do_center_crop", "do_rescale", "do_normalize",
    "do_convert_rgb", "size", "crop_size", "rescale_factor", "image_mean", "image_std", "resample",
    "default_to_square", "do_pad", "max_image_tiles",
})  # fmt: skip
IMAGES_HARMLESS = frozenset({
    "processor_class", "auto_map", "transformers_version", "name_or_path",  # where the file comes from
    "data_format", "input_data_format", "return_tensors", "device", "disable_grouping", "backend", "use_fast",  # form
    "pad_size", "size_divisor",  # for do_pad, which is refused where it is asked for
    "image_seq_length", "num_additional_image_tokens", "patch_size", "vision_feature_select_strategy",  # of prompts
})  # fmt: skip
SOUNDS_HARMLESS = frozenset({
    "feature_extractor_type", "processor_class", "auto_map", "transformers_version", "return_attention_mask",
    "n_samples", "nb_max_frames", "mel_filters", "device", "return_tensors",  # what transformers works out itself
})  # fmt: skip


def require_known(data: Mapping[str, Any], known: Collection[str], *, file: str) -> None:
    """Raises ConfigError, naming the keys, where `data` sets one outside `known`: not None, False or empty."""
    unknown = [f"{key}={str(value)[:40]}" for key, value in data.items()
               if key not in known and not key.startswith("_")
               and not (value is None or value is False or value in ("", [], {}))]  # fmt: skip
    if unknown:
        raise ConfigError(f"{file} has {', '.join(unknown)}, which this package does not know and which may change "
                          f"results; if it does not, take it out of the file")


def given(data: Mapping[str, Any]) -> dict[str, Any]:
    """What is set: a null stands for the default, for transformers too."""
    return {key: value for key, value in data.items() if value is not None}


def read_processor_part(folder: Path, part: str) -> tuple[Path, dict[str, Any]] | None:
    """The file and its settings of "image_processor" or "feature_extractor", in either spelling; None without any.

    Where both are there, the part of processor_config.json goes before, as for transformers. Raises CheckpointError.
    """
    if (folder / PROCESSOR).is_file():
        found = read_json(folder / PROCESSOR).get(part)
        if isinstance(found, Mapping):
            return folder / PROCESSOR, dict(found)
    if (folder / PREPROCESSOR).is_file():
        return folder / PREPROCESSOR, read_json(folder / PREPROCESSOR)
    return None


def read_image_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """As `read_processor_part`; raises CheckpointError also where a folder has no settings for images."""
    found = read_processor_part(folder, "image_processor")
    if found is None:
        raise CheckpointError(f"{folder} has no {PREPROCESSOR} and no {PROCESSOR} with an image_processor; is it the "
                              f"folder of a model that reads images?")
    return found


def require_whispers_spectrogram(settings: Mapping[str, Any], *, n_mels: int, n_positions: int, file: str) -> None:
    """Raises ConfigError, naming the key, where a feature extractor would make another log-mel than `senses.mel`."""
    wanted = {"feature_size": n_mels, "sampling_rate": 16_000, "hop_length": 160, "n_fft": 400,
              "chunk_length": n_positions / 50, "padding_value": 0, "padding_side": "right", "dither": 0}  # fmt: skip
    settings = given(settings)
    kind = settings.get("feature_extractor_type", "WhisperFeatureExtractor")
    if kind != "WhisperFeatureExtractor":
        raise ConfigError(f"{file} has feature_extractor_type={kind}; the sounds here are WhisperFeatureExtractor's")
    for key, value in wanted.items():
        if settings.get(key, value) != value:
            raise ConfigError(f"{file} has {key}={settings[key]!r}; this model's log-mel is made with {value!r}")
    if settings.get("do_normalize"):
        raise ConfigError(f"{file} has do_normalize=True; the wave of a log-mel here is taken as it is")
    require_known(settings, SOUNDS_HARMLESS.union(wanted, ("do_normalize",)), file=file)
