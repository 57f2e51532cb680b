"""llamamm.weights: safetensors files and folders, names, loading; what is damaged or unsafe is refused."""

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llamamm import Llama3Model, TextConfig, from_pretrained, load_weights_into_llama, save_pretrained
from llamamm.errors import CheckpointError, ConfigError
from llamamm.weights.checkpoint import INDEX_FILE, SINGLE_FILE, open_checkpoint, read_header
from llamamm.weights.loading import build_from_refs
from llamamm.weights.names import GGUF_NAMES, META_NAMES, half_split_to_interleaved


def make_model(**changes) -> Llama3Model:
    torch.manual_seed(3)
    return Llama3Model(TextConfig.tiny(**changes)).eval()


def params_of(model):
    """Hugging Face's names, as `load_file` gives them."""
    return {
        name if name == "lm_head.weight" else f"model.{name}": tensor
        for name, tensor in model.state_dict().items()
        if not (model.cfg.tie_embeddings and name == "lm_head.weight")
    }


def in_other_names(model, table):
    """The same weights under Meta's or GGUF's names, q and k rows interleaved."""
    out = {}
    for name, tensor in params_of(model).items():
        ours = name.removeprefix("model.")
        parts = ours.split(".")
        number = parts[1] if parts[0] == "layers" else ""
        generic = ".".join([parts[0], "N", *parts[2:]]) if number else ours
        other = next(theirs for theirs, mine in table.items() if mine == generic).replace("N", number)
        if ours.endswith(("q_proj.weight", "k_proj.weight")):
            heads = model.cfg.n_heads if "q_proj" in ours else model.cfg.n_kv_heads
            tensor = half_split_to_interleaved(tensor, heads)
        out[other] = tensor
    return out


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def write_raw(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


# ---- files ----


def test_header_by_hand(tmp_path):
    data = struct.pack("<2f", 1.5, -2.0)
    path = write_raw(tmp_path / "a.safetensors", {"w": ENTRY, "__metadata__": {"x": "y"}}, data)
    assert read_header(path) == {"w": ENTRY}
    assert open_checkpoint(path)["w"].read().tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"w": ENTRY}, b"\0" * 7, "7 bytes of data where 8"),
        ({"w": ENTRY}, b"\0" * 9, "9 bytes of data where 8"),
        ({"w": {**ENTRY, "shape": [3]}}, b"\0" * 8, "needs 12 bytes, has 8"),
        ({"w": {**ENTRY, "shape": [-2]}}, b"\0" * 8, "download it again"),
        ({"w": {**ENTRY, "data_offsets": [4, 12]}}, b"\0" * 12, "bytes 4 to 12 where 0"),
        ({"a": ENTRY, "b": ENTRY}, b"\0" * 8, "bytes 0 to 8 where 8"),
        (b'{"w": 1, "w": 2}', b"", "'?w'? twice"),
        (b"not json", b"", "not JSON"),
        (b"[1, 2]", b"", "no table"),
        ({"w": {"dtype": "F32"}}, b"", "no table"),
        ({"w": {**ENTRY, "dtype": "F4_E2M1"}}, b"\0" * 8, "F4_E2M1"),
    ],
)
def test_damaged_files_are_refused(tmp_path, header, data, message):
    path = write_raw(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


@pytest.mark.parametrize("claim", [2**40, 2**63, 2**64 - 1, 1000])
def test_a_header_that_claims_too_much_is_refused_before_allocating(tmp_path, claim):
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", claim) + b"{}")
    with pytest.raises(CheckpointError, match=f"{claim} bytes.*10 bytes long.*download it again"):
        open_checkpoint(path)


@given(cut=st.integers(0, 400))
def test_every_truncation_is_noticed(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "a.safetensors"
    save_file({"a": torch.ones(20), "b": torch.ones(3, 5)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(CheckpointError, match="download it again"):
        open_checkpoint(path)


def test_what_is_read_outlives_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.arange(5.0)}, path)
    tensor = open_checkpoint(path)["a"].read()
    save_file({"a": torch.zeros(5)}, path)
    assert tensor.tolist() == [0, 1, 2, 3, 4]


# ---- folders ----


def write_index(folder, weight_map):
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../a.safetensors", "/etc/a.safetensors", "x/a.safetensors", 3])
def test_an_index_may_name_only_safetensors_beside_it(tmp_path, name):
    write_index(tmp_path, {"w": name})
    with pytest.raises(CheckpointError, match="pickle|refused"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pth"])
def test_a_folder_of_pickles_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="pickle.*refused"):
        open_checkpoint(tmp_path)


def test_a_pickle_file_is_refused(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "w.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        open_checkpoint(tmp_path / "w.bin")


def test_missing_shard_and_broken_promise(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    write_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(CheckpointError, match="1 of 2 shards.*two"):
        open_checkpoint(tmp_path)
    write_index(tmp_path, {"a": "one.safetensors", "b": "one.safetensors"})
    with pytest.raises(CheckpointError, match="promises b in one.safetensors"):
        open_checkpoint(tmp_path)


def test_a_name_in_two_shards_is_refused(tmp_path):
    for name in ("one", "two"):
        save_file({"a": torch.ones(1), name: torch.ones(1)}, tmp_path / f"{name}.safetensors")
    write_index(tmp_path, {"a": "one.safetensors", "one": "one.safetensors", "two": "two.safetensors"})
    with pytest.raises(CheckpointError, match="a stands in"):
        open_checkpoint(tmp_path)


def test_the_single_file_goes_before_an_index_of_an_older_save_as_in_transformers(tmp_path):
    save_pretrained(make_model(n_layers=2), tmp_path / "old", max_shard_bytes=100_000)
    save_pretrained(make_model(n_layers=1), tmp_path / "m")
    for file in (tmp_path / "old").iterdir():
        if not (tmp_path / "m" / file.name).exists():
            (tmp_path / "m" / file.name).write_bytes(file.read_bytes())
    assert (tmp_path / "m" / INDEX_FILE).is_file()
    ours, theirs = from_pretrained(tmp_path / "m")[0], AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).logits).abs().max() < 1e-5


def test_shards_of_another_save_are_not_mixed_in(tmp_path):
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "one.safetensors")  # b was in it before
    save_file({"b": torch.zeros(1)}, tmp_path / "two.safetensors")
    save_file({"c": torch.zeros(1)}, tmp_path / "three.safetensors")  # no longer in the index
    write_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(CheckpointError, match="b stands in one.safetensors, the index has it in two.safetensors"):
        open_checkpoint(tmp_path)
    save_file({"a": torch.ones(1), "x": torch.ones(1)}, tmp_path / "one.safetensors")
    with pytest.raises(CheckpointError, match="x stands in one.safetensors, the index has it nowhere"):
        open_checkpoint(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    assert sorted(open_checkpoint(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("content", ["nonsense", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_refused(tmp_path, content):
    (tmp_path / INDEX_FILE).write_text(content)
    with pytest.raises(CheckpointError, match="not an index"):
        open_checkpoint(tmp_path)


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(CheckpointError, match="model folder"):
        open_checkpoint(tmp_path)


# ---- loading ----


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("names", ["hf", "meta", "gguf"])
def test_the_outline_loads_under_all_names(names, tied):
    source, target = make_model(tie_embeddings=tied), Llama3Model(TextConfig.tiny(tie_embeddings=tied))
    tables = {"meta": META_NAMES, "gguf": GGUF_NAMES}
    params = params_of(source) if names == "hf" else in_other_names(source, tables[names])
    load_weights_into_llama(target, target.cfg, params)
    assert same_weights(source, target)


def test_rows_in_the_wrong_order_change_the_logits():
    """The shapes fit, the model is another: why the order matters."""
    source, target = make_model(), make_model()
    params = params_of(source)
    name = "model.layers.0.self_attn.q_proj.weight"
    load_weights_into_llama(target, target.cfg, {**params, name: half_split_to_interleaved(params[name], 4)})
    ids = torch.arange(20)[None]
    assert (source(ids) - target(ids)).abs().max() > 1e-3


def test_a_tied_model_accepts_a_stored_head():
    source, target = make_model(), Llama3Model(TextConfig.tiny())
    params = {**params_of(source), "lm_head.weight": source.embed_tokens.weight}
    load_weights_into_llama(target, target.cfg, params)
    assert same_weights(source, target)
    assert target.lm_head.weight is target.embed_tokens.weight


def test_a_tied_model_refuses_a_head_of_its_own():
    source, target = make_model(), Llama3Model(TextConfig.tiny())
    before = {k: v.clone() for k, v in target.state_dict().items()}
    params = {**params_of(source), "lm_head.weight": source.embed_tokens.weight * 2}
    with pytest.raises(CheckpointError, match="lm_head.weight of its own.*tie_embeddings=False"):
        load_weights_into_llama(target, target.cfg, params)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("own", [True, False])
def test_a_head_that_differs_is_kept_though_the_config_says_tied_as_in_transformers(tmp_path, own):
    model = make_model()
    save_pretrained(model, tmp_path / "m")
    params = load_file(tmp_path / "m" / SINGLE_FILE)
    head = params["model.embed_tokens.weight"].clone()
    head[3] += own
    save_file({**params, "lm_head.weight": head}, tmp_path / "m" / SINGLE_FILE, metadata={"format": "pt"})
    again, _ = from_pretrained(tmp_path / "m")
    assert again.cfg.tie_embeddings is not own and torch.equal(again.lm_head.weight, head)
    ids = torch.arange(9)[None]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert (again(ids) - theirs(ids).logits).abs().max() < 1e-5
    save_pretrained(again, tmp_path / "again")
    assert torch.equal(from_pretrained(tmp_path / "again")[0].lm_head.weight, head)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["tie_word_embeddings"] is not own


def test_an_untied_model_without_a_head_in_the_file_is_refused(tmp_path):
    save_pretrained(make_model(), tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tie_word_embeddings": False}))
    with pytest.raises(CheckpointError, match="missing .1.:\n  lm_head.weight"):
        from_pretrained(tmp_path / "m")


@pytest.mark.parametrize("front", ["_orig_mod.", "module.", "module._orig_mod.", "_fsdp_wrapped_module."])
@pytest.mark.parametrize("inside", [False, True])
def test_what_compiling_and_parallel_training_put_into_names_is_taken_off(front, inside):
    source, target = make_model(), Llama3Model(TextConfig.tiny())
    params = {name.replace("layers.0.", f"layers.0.{front}") if inside else front + name: value
              for name, value in params_of(source).items()}  # fmt: skip
    load_weights_into_llama(target, target.cfg, params)
    assert same_weights(source, target)


def test_another_front_is_named_in_the_error():
    params = {f"policy.{name}": value for name, value in params_of(make_model()).items()}
    with pytest.raises(CheckpointError, match="with 'policy.model.' before their names: take it off"):
        load_weights_into_llama(make_model(), TextConfig.tiny(), params)


def test_what_other_libraries_store_and_the_config_knows_is_ignored():
    params = {**params_of(make_model()), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    load_weights_into_llama(make_model(), TextConfig.tiny(), params)


def test_every_misfit_is_listed_and_nothing_changes():
    model = make_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    params = {k: torch.zeros_like(v) for k, v in params_of(model).items()}
    del params["model.norm.weight"]
    params["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 5)
    params["model.layers.9.extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_weights_into_llama(model, model.cfg, params)
    text = str(caught.value)
    assert "layers.0.mlp.up_proj.weight: the checkpoint has (3, 5), the model (128, 64)" in text
    assert "missing (1):\n  norm.weight" in text and "unexpected (1):\n  model.layers.9.extra" in text
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_strict_false_leaves_out_what_is_missing_but_not_wrong_shapes():
    source, target = make_model(), Llama3Model(TextConfig.tiny())
    params = params_of(source)
    norm = params.pop("model.norm.weight") * 0 + 7
    load_weights_into_llama(target, target.cfg, {**params, "extra": norm}, strict=False)
    assert torch.equal(target.norm.weight, torch.ones(64))
    assert torch.equal(target.embed_tokens.weight, source.embed_tokens.weight)
    with pytest.raises(CheckpointError, match="wrong shape"):
        load_weights_into_llama(target, target.cfg, {"model.norm.weight": torch.ones(3)}, strict=False)


def test_another_dtype_is_cast_only_when_asked():
    model = make_model()
    params = {k: v.to(torch.float16) for k, v in params_of(model).items()}
    with pytest.raises(CheckpointError, match="not torch.float32.*float16.*cast=True"):
        load_weights_into_llama(model, model.cfg, params)
    load_weights_into_llama(model, model.cfg, params, cast=True)
    assert model.norm.weight.dtype == torch.float32
    assert torch.equal(model.embed_tokens.weight, params["model.embed_tokens.weight"].float())


def test_a_configuration_that_is_not_the_models_is_refused():
    model = make_model()
    with pytest.raises(ConfigError, match="another configuration"):
        load_weights_into_llama(model, TextConfig.tiny(rope_theta=5e5), params_of(model))


def test_the_same_weight_twice_is_refused():
    params = params_of(make_model())
    with pytest.raises(CheckpointError, match="norm.weight twice"):
        load_weights_into_llama(make_model(), TextConfig.tiny(), {**params, "norm.weight": torch.ones(64)})


def test_building_from_a_checkpoint_keeps_or_casts_the_dtype(tmp_path):
    model = make_model()
    save_file({k: v.to(torch.bfloat16).contiguous() for k, v in params_of(model).items()}, tmp_path / "m.safetensors")
    refs = open_checkpoint(tmp_path / "m.safetensors")
    assert build_from_refs(model.cfg, refs).cfg.dtype == torch.bfloat16
    assert build_from_refs(model.cfg, refs, dtype=torch.float32).norm.weight.dtype == torch.float32
    mixed = {**refs, "model.norm.weight": open_mixed(tmp_path)}
    with pytest.raises(CheckpointError, match="bfloat16 and torch.float32.*dtype="):
        build_from_refs(model.cfg, mixed)


def open_mixed(tmp_path):
    save_file({"model.norm.weight": torch.ones(64)}, tmp_path / "norm.safetensors")
    return open_checkpoint(tmp_path / "norm.safetensors")["model.norm.weight"]


def test_building_leaves_the_global_generator_alone_and_tables_real(tmp_path):
    model = make_model()
    save_pretrained(model, tmp_path / "m")
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    loaded, _ = from_pretrained(tmp_path / "m")
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(loaded.cos, model.cos)
