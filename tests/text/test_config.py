"""text.config: validation, presets, both spellings of config.json, the outline's mapping access."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from llamamm.errors import ConfigError
from llamamm.text.config import LLAMA32_3B_CONFIG, LLAMA32_CONFIG, SMOLLM2_CONFIG, RopeScaling, TextConfig, parse_dtype


def test_mapping_access_uses_the_outline_names():
    expected = {
        "vocab_size": 128_256, "context_length": 131_072, "emb_dim": 2048, "n_heads": 32, "n_layers": 16,
        "n_kv_groups": 8, "dtype": torch.bfloat16, "hidden_dim": 8192,
    }  # fmt: skip
    assert {key: LLAMA32_CONFIG[key] for key in expected} == expected
    assert dict(LLAMA32_CONFIG)["hidden_size"] == 2048
    with pytest.raises(KeyError, match="no_such"):
        LLAMA32_CONFIG["no_such"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 15}, r"even.*15"),
        ({"n_heads": 4, "n_kv_heads": 3}, r"n_heads 4 .*n_kv_heads 3"),
        ({"hidden_size": 65}, r"hidden_size 65 .*n_heads 4"),
        ({"n_layers": 0}, r"n_layers.*0"),
        ({"vocab_size": 12.5}, r"vocab_size.*12.5"),
        ({"context_length": True}, r"context_length.*True"),
        ({"norm_eps": 0.0}, r"norm_eps.*0"),
        ({"norm_eps": float("nan")}, r"norm_eps.*nan"),
        ({"rope_theta": 0.5}, r"rope_theta.*0.5"),
        ({"dtype": torch.int8}, r"dtype.*int8"),
    ],
)
def test_impossible_shapes_are_refused_with_their_numbers(changes, message):
    with pytest.raises(ConfigError, match=message):
        TextConfig.tiny(**changes)


@pytest.mark.parametrize("bad", [{"factor": 0.5}, {"low_freq_factor": 4.0}, {"original_context_length": 0}])
def test_impossible_rope_scaling_is_refused(bad):
    with pytest.raises(ConfigError):
        RopeScaling(**bad)


@given(kv=st.integers(1, 8), group=st.integers(1, 8), half=st.integers(1, 64))
def test_every_whole_grouping_is_accepted(kv, group, half):
    cfg = TextConfig.tiny(n_heads=kv * group, n_kv_heads=kv, head_dim=2 * half)
    assert (cfg.n_heads % cfg.n_kv_heads, cfg.head_dim % 2) == (0, 0)


@pytest.mark.parametrize("preset", [LLAMA32_CONFIG, LLAMA32_3B_CONFIG, SMOLLM2_CONFIG, TextConfig.tiny()])
def test_round_trip_through_both_spellings(preset):
    assert TextConfig.from_hf(preset.to_hf()) == preset
    new_spelling = LlamaConfig(**preset.to_hf()).to_dict()  # transformers 5 writes rope_parameters and dtype
    assert "rope_parameters" in new_spelling and "rope_theta" not in new_spelling
    assert TextConfig.from_hf(new_spelling) == preset


def test_reads_what_the_hub_holds_for_llama_32_1b():
    hub = {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "vocab_size": 128256,
    }  # fmt: skip
    assert TextConfig.from_hf(hub) == LLAMA32_CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "mistral"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"torch_dtype": "int4"}, "int4"),
    ],
)
def test_other_models_are_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message):
        TextConfig.from_hf({**TextConfig.tiny().to_hf(), **change})


def test_missing_fields_are_listed():
    with pytest.raises(ConfigError, match="hidden_size.*num_attention_heads"):
        TextConfig.from_hf({"vocab_size": 3})


@pytest.mark.parametrize("name", ["bf16", "bfloat16", "torch.bfloat16", "BF16", torch.bfloat16])
def test_parse_dtype(name):
    assert parse_dtype(name) is torch.bfloat16
