"""text.config: validation, presets, both spellings of config.json, the outline's mapping access."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from llamamm import Llama3Model
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
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantization.*bitsandbytes"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantization="),  # MLX's spelling
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}, "rope_scaling": None}, "factor=0.5"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}}, "long_factor"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [1, 2]}}, "mrope_section"),
        ({"rope_scaling": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        ({"sliding_window": 128}, "sliding_window=128.*256"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types with 'sliding_attention'"),
        ({"no_rope_layers": [1, 0]}, "no_rope_layers with 0"),
        ({"use_qk_norm": True}, "use_qk_norm=True"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ({"attention_multiplier": 0.5}, r"attention_multiplier=0.5; a Llama's is 1 / sqrt\(16\)"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier=12.0"),
        ({"residual_multiplier": 0.22}, "residual_multiplier=0.22"),
        ({"logits_scaling": 8.0}, "logits_scaling=8.0"),
        ({"num_local_experts": 8}, "num_local_experts=8"),
        ({"is_causal": False}, "is_causal=False"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"some_new_trick": 3}, "some_new_trick=3.*take it out"),
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


# Configurations as they stand on the Hub, of models that this package builds; shapes are made small in the test below.
LLAMA_1 = {
    "architectures": ["LLaMAForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 11008, "initializer_range": 0.02, "max_sequence_length": 2048,
    "max_position_embeddings": 2048, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
    "pad_token_id": 0, "rms_norm_eps": 1e-06, "torch_dtype": "float16", "transformers_version": "4.28.0.dev0",
    "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
LLAMA_2 = {
    **LLAMA_1, "_name_or_path": "meta-llama/Llama-2-7b-hf", "architectures": ["LlamaForCausalLM"], "pretraining_tp": 1,
    "num_key_value_heads": 32, "rope_scaling": None, "tie_word_embeddings": False, "rms_norm_eps": 1e-05,
}  # fmt: skip
LLAMA_31 = {
    **LLAMA_2, "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "rope_theta": 500000.0,
    "max_position_embeddings": 131072, "num_key_value_heads": 8, "eos_token_id": [128001, 128008, 128009],
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3",
                     "original_max_position_embeddings": 8192},
}  # fmt: skip
SMOLLM2 = {
    **LLAMA_2, "is_llama_config": True, "rope_interleaved": False, "rope_theta": 100000, "tie_word_embeddings": True,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "num_key_value_heads": 8,
}  # fmt: skip
UNSLOTH = {**LLAMA_31, "unsloth_fixed": True, "unsloth_version": "2025.1", "head_dim": 128, "dtype": "bfloat16"}
WINDOWLESS = {**LLAMA_31, "sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28}
PLAIN_ANSWERS = {
    **LLAMA_31, "layer_types": ["full_attention"] * 32, "no_rope_layers": [1] * 32, "partial_rotary_factor": 1.0,
    "final_logit_softcapping": None, "use_qk_norm": False, "embedding_multiplier": 1.0, "attention_dropout": 0.1,
    "attention_multiplier": 128**-0.5, "quantization_config": None, "hidden_act": "swish", "sliding_window": 131072,
}  # fmt: skip
REAL = {"Llama 1": LLAMA_1, "Llama 2": LLAMA_2, "Llama 3.1": LLAMA_31, "SmolLM2": SMOLLM2, "unsloth": UNSLOTH,
        "no window": WINDOWLESS, "plain answers": PLAIN_ANSWERS}  # fmt: skip


@pytest.mark.parametrize("data", REAL.values(), ids=REAL)
def test_real_files_are_read(data):
    cfg = TextConfig.from_hf(data)
    assert (cfg.hidden_size, cfg.head_dim) == (4096, 128)
    assert (cfg.rope_scaling is not None) == bool(data.get("rope_scaling"))


def test_transformers_own_file_in_full_is_read():
    everything = LlamaConfig(**TextConfig.tiny().to_hf()).to_dict()
    assert len(everything) > 25 and TextConfig.from_hf(everything) == TextConfig.tiny()


RULE = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}  # fmt: skip
APPLIED = {
    "the older spelling of the rule": {"rope_scaling": {**{k: v for k, v in RULE.items() if k != "rope_type"},
                                                        "type": "llama3"}},
    "theta inside goes before theta outside": {"rope_parameters": {**RULE, "rope_theta": 333.0}, "rope_scaling": None},
    "an original length outside goes before the one inside": {
        "rope_scaling": RULE, "original_max_position_embeddings": 64,
    },
    "both dictionaries": {"rope_scaling": RULE, "rope_parameters": {"rope_type": "default", "rope_theta": 99.0}},
    "linear by 1": {"rope_scaling": {"type": "linear", "factor": 1.0}},
    "head_dim": {"head_dim": 32},
    "null for what has a default": {"head_dim": None, "num_key_value_heads": None, "rope_scaling": None},
    "the epsilon": {"rms_norm_eps": 0.1},
    "a head of its own": {"tie_word_embeddings": False},
    "swish": {"hidden_act": "swish"},
    "dropout, which is of training": {"attention_dropout": 0.5},
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("change", APPLIED.values(), ids=APPLIED)
def test_what_is_applied_gives_the_logits_of_transformers(change):
    data = {**TextConfig.tiny().to_hf(), **change}
    torch.manual_seed(0)
    ours = Llama3Model(TextConfig.from_hf(data)).eval()
    for name, parameter in ours.named_parameters():
        if "norm" not in name:
            parameter.normal_(0, 0.3)  # so large that positions matter
    theirs = LlamaForCausalLM(LlamaConfig(**data)).eval()
    theirs.load_state_dict({ours.hf_name(k): v for k, v in ours.state_dict().items()})
    ids = torch.randint(512, (1, 200), generator=torch.Generator().manual_seed(0))
    expected = theirs(ids).logits
    assert (ours(ids) - expected).abs().max() < 1e-4 * expected.abs().max()
