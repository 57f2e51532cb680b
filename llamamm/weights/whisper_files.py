"""The small files of a Whisper's folder, which say how its weights are used: openai/whisper-tiny.en has them alike.

Used where the course builds the audio encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamamm.errors import CheckpointError

ENGLISH_VOCABULARY = 51_864  # tokens of the English models; the multilingual ones have more


def whisper_files(
    shape: Mapping[str, Any], settings: Mapping[str, Any], tokenizer: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """{file: content} for a model of this shape, which is config.json's own part of it.

    settings: CTranslate2's config.json, tokens that are never said and the heads that follow the sound.
    tokenizer: tokenizer.json. Raises CheckpointError where it lacks one of Whisper's tokens.
    """
    ids = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", ())}
    names = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", "<|startofprev|>"
    if lacking := [name for name in names if name not in ids]:
        raise CheckpointError(f"tokenizer.json lacks the tokens {', '.join(lacking)}; it is no Whisper's")
    end, start, no_timestamps, previous = (ids[name] for name in names)
    ends = {"bos_token_id": start, "decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": end}
    seconds = shape["max_source_positions"] // 50  # a position is two frames of 10 ms
    return {
        "config.json": {
            "architectures": ["WhisperForConditionalGeneration"],
            "model_type": "whisper",
            **shape,
            "activation_function": "gelu",
            "is_encoder_decoder": True,
            **ends,
            "dtype": "float32",
        },
        "generation_config.json": {
            **ends,
            "no_timestamps_token_id": no_timestamps,
            "prev_sot_token_id": previous,
            "is_multilingual": shape["vocab_size"] > ENGLISH_VOCABULARY,
            "max_length": shape["max_target_positions"],
            "max_initial_timestamp_index": 50,
            "return_timestamps": False,
            "suppress_tokens": settings.get("suppress_ids", []),
            "begin_suppress_tokens": settings.get("suppress_ids_begin", []),
            "alignment_heads": settings.get("alignment_heads", []),
        },
        "preprocessor_config.json": {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "processor_class": "WhisperProcessor",
            "feature_size": shape["num_mel_bins"],
            "sampling_rate": 16_000,
            "hop_length": 160,
            "n_fft": 400,
            "chunk_length": seconds,
            "n_samples": seconds * 16_000,
            "nb_max_frames": 2 * shape["max_source_positions"],
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
        },
        "tokenizer_config.json": {"tokenizer_class": "WhisperTokenizer", "processor_class": "WhisperProcessor"},
    }
