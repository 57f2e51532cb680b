"""weights.ctranslate2_file: the layout byte by byte, stacked layers taken apart, wrong files refused."""

import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor, WhisperConfig, WhisperForConditionalGeneration

from llamamm.errors import CheckpointError
from llamamm.weights.ctranslate2_file import CTranslate2File, convert_ctranslate2

IDS = {np.dtype("float32"): 0, np.dtype("int8"): 1, np.dtype("int16"): 2, np.dtype("float16"): 4}
TOKENS = {"<|endoftext|>": 90, "<|startoftranscript|>": 91, "<|startofprev|>": 92, "<|notimestamps|>": 93}
SETTINGS = {"suppress_ids": [1, 2], "suppress_ids_begin": [3], "alignment_heads": [[1, 0]]}


def string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def entry(name: str, array: np.ndarray, *, dims=None, size=None, dtype=None) -> bytes:
    dims = array.shape if dims is None else dims
    size = array.nbytes if size is None else size
    head = struct.pack(f"<B{len(dims)}IBI", len(dims), *dims, IDS[array.dtype] if dtype is None else dtype, size)
    return string(name) + head + array.tobytes()


def binary(entries, aliases=(), *, version=6, spec="WhisperSpec", count=None) -> bytes:
    head = struct.pack("<I", version) + string(spec) + struct.pack("<II", 3, len(entries) if count is None else count)
    tail = struct.pack("<I", len(aliases)) + b"".join(string(a) + string(b) for a, b in aliases)
    return head + b"".join(entries) + tail


def tiny_whisper() -> WhisperForConditionalGeneration:
    """Different everywhere: 2 and 1 layers, widths 8 and 12, 50 positions (a second) and 7, 5 mel bands."""
    cfg = WhisperConfig(d_model=8, encoder_layers=2, decoder_layers=1, encoder_attention_heads=4,
                        decoder_attention_heads=2, encoder_ffn_dim=12, decoder_ffn_dim=12, num_mel_bins=5,
                        vocab_size=95, max_source_positions=50, max_target_positions=7, pad_token_id=90,
                        bos_token_id=91, eos_token_id=90, decoder_start_token_id=91, suppress_tokens=[])  # fmt: skip
    model = WhisperForConditionalGeneration(cfg).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).half().float()
    return model


def stored(model) -> dict[str, np.ndarray]:
    """A Whisper as CTranslate2 names and stacks it, in fp16."""
    state = {name: tensor.numpy().astype(np.float16) for name, tensor in model.model.state_dict().items()}
    out = {}

    def norm(target, source):
        out[f"{target}/gamma"], out[f"{target}/beta"] = state[f"{source}.weight"], state[f"{source}.bias"]

    def linear(target, *sources):
        out[f"{target}/weight"] = np.concatenate([state[f"{s}.weight"] for s in sources])
        out[f"{target}/bias"] = np.concatenate([state.get(f"{s}.bias", np.zeros(8, np.float16)) for s in sources])

    for stack, n in (("encoder", 2), ("decoder", 1)):
        for i in range(n):
            ours, theirs = f"{stack}/layer_{i}", f"{stack}.layers.{i}"
            norm(f"{ours}/self_attention/layer_norm", f"{theirs}.self_attn_layer_norm")
            linear(f"{ours}/self_attention/linear_0", *(f"{theirs}.self_attn.{x}_proj" for x in "qkv"))
            linear(f"{ours}/self_attention/linear_1", f"{theirs}.self_attn.out_proj")
            norm(f"{ours}/ffn/layer_norm", f"{theirs}.final_layer_norm")
            linear(f"{ours}/ffn/linear_0", f"{theirs}.fc1")
            linear(f"{ours}/ffn/linear_1", f"{theirs}.fc2")
        norm(f"{stack}/layer_norm", f"{stack}.layer_norm")
        out[f"{stack}/position_encodings/encodings"] = state[f"{stack}.embed_positions.weight"]
    cross = "decoder.layers.0.encoder_attn"
    norm("decoder/layer_0/attention/layer_norm", f"{cross}_layer_norm")
    linear("decoder/layer_0/attention/linear_0", f"{cross}.q_proj")
    linear("decoder/layer_0/attention/linear_1", f"{cross}.k_proj", f"{cross}.v_proj")
    linear("decoder/layer_0/attention/linear_2", f"{cross}.out_proj")
    linear("encoder/conv1", "encoder.conv1")
    linear("encoder/conv2", "encoder.conv2")
    out["decoder/embeddings/weight"] = state["decoder.embed_tokens.weight"]
    numbers = {"encoder/num_heads": 4, "decoder/num_heads": 2}
    flags = {"decoder/activation": 3, "decoder/scale_embeddings": 0, "decoder/pre_norm": 1}
    return {**out, **{name: np.array(value, np.int16) for name, value in numbers.items()},
            **{name: np.array(value, np.int8) for name, value in flags.items()}}  # fmt: skip


PROJECTION = ("decoder/projection/weight", "decoder/embeddings/weight")


def write(folder, arrays, *, aliases=(PROJECTION,), tokens=TOKENS, settings=SETTINGS, **facts):
    """A CTranslate2 folder; gives the path of its model.bin."""
    folder.mkdir(exist_ok=True)
    (folder / "model.bin").write_bytes(binary([entry(*item) for item in arrays.items()], aliases, **facts))
    (folder / "config.json").write_text(json.dumps(settings))
    added = [{"content": content, "id": i} for content, i in tokens.items()]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    return folder / "model.bin"


# ---- the format ----

def test_layout_by_hand(tmp_path):
    """Every byte written out: one tensor, (1, 2) in fp16, 1.0 and -2.0; one setting; a second name."""
    (tmp_path / "m.bin").write_bytes(
        b"\x06\0\0\0" b"\x02\0S\0" b"\x03\0\0\0" b"\x02\0\0\0"
        b"\x04\0a/w\0" b"\x02" b"\x01\0\0\0" b"\x02\0\0\0" b"\x04" b"\x04\0\0\0" b"\x00\x3c\x00\xc0"
        b"\x02\0n\0" b"\x00" b"\x02" b"\x02\0\0\0" b"\xff\xff"
        b"\x01\0\0\0" b"\x02\0b\0" b"\x04\0a/w\0"
    )  # fmt: skip
    file = CTranslate2File(tmp_path / "m.bin")
    assert file.spec == "S" and set(file.refs) == {"a/w", "n", "b"}
    ref = file.refs["a/w"]
    assert (ref.shape, ref.dtype) == ((1, 2), torch.float16) and ref.read().tolist() == [[1.0, -2.0]]
    assert torch.equal(file.refs["b"].read(), ref.read()) and file.number("n") == -1
    ref.read().zero_()  # the caller's own
    assert ref.read()[0, 0] == 1
    with pytest.raises(CheckpointError, match="no number a/w"):
        file.number("a/w")
    with pytest.raises(CheckpointError, match="no number x"):
        file.number("x")


W = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(("content", "said"), [
    (b"", "0 bytes long, needs 4"),
    (binary([], version=5), "version 5, this reads 6"),
    (binary([entry("w", W, dims=(2**31, 2**31))]), rf"w of shape .* needs {2**64} bytes, claims 24"),
    (binary([entry("w", W, dims=(2**29,), size=2**31)]), rf"needs {2**31 + 40} at least"),
    (binary([entry("w", W, size=20)]), r"w of shape \(2, 3\) needs 24 bytes, claims 20"),
    (binary([entry("w", W, dtype=9)]), "w has dtype 9; known are 0, 1, 2, 3, 4, 5"),
    (binary([entry("w", W)] * 2), "names w twice"),
    (binary([entry("w", W)], count=2**32 - 1), "where a name should stand|long, needs"),
    (binary([entry("w", W)])[:-1], "long, needs"),
    (binary([entry("w", W)]) + b"x", r"is 73 bytes long, its tensors end at 72"),
    (binary([entry("w", W)], [("v", "u")]), "gives u the second name v"),
    (binary([entry("w", W)], [("w", "w")]), "gives w the second name w"),
    (binary([entry("a\0b", W)]), "where a name should stand"),
    (binary([entry("w", W)]).replace(b"w\0", b"ww"), "where a name should stand"),
    (binary([entry("w", W)]).replace(b"w\0", b"\xff\0"), "where a name should stand"),
], ids=range(15))  # fmt: skip
def test_damaged_layouts_are_refused(tmp_path, content, said):
    (tmp_path / "m.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        CTranslate2File(tmp_path / "m.bin")


def test_a_file_that_is_not_there():
    with pytest.raises(CheckpointError, match="no.bin does not exist"):
        CTranslate2File("no.bin")


@given(data=st.data())
def test_any_bytes_are_refused_or_read(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "m.bin"
    content = bytearray(binary([entry("w", W), entry("n", np.array(3, np.int16))], [("v", "w")]))
    if data.draw(st.booleans(), label="cut"):
        del content[data.draw(st.integers(0, len(content) - 1)):]
    else:
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
            content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        refs = CTranslate2File(path).refs
    except CheckpointError as error:
        assert "m.bin" in str(error)
    else:
        assert all(ref.read().shape == ref.shape for ref in refs.values())


# ---- a Whisper ----

def test_a_whisper_comes_back_whole(tmp_path):
    model = tiny_whisper()
    convert_ctranslate2(write(tmp_path / "in", stored(model)), tmp_path)
    loaded, report = WhisperForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()) and loaded.dtype == torch.float32
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    mel = torch.randn(1, 5, 100, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # heads and activation: not in the weights
        outputs = [m.eval()(input_features=mel, decoder_input_ids=torch.tensor([[91, 4]])).logits
                   for m in (model, loaded)]  # fmt: skip
    assert torch.equal(*outputs)
    assert (tmp_path / "tokenizer.json").read_bytes() == (tmp_path / "in" / "tokenizer.json").read_bytes()


def test_settings(tmp_path):
    convert_ctranslate2(write(tmp_path / "in", stored(tiny_whisper())), tmp_path)
    config, generation, sound = (json.loads((tmp_path / f"{name}.json").read_text())
                                 for name in ("config", "generation_config", "preprocessor_config"))
    assert (config["encoder_layers"], config["decoder_layers"], config["encoder_attention_heads"]) == (2, 1, 4)
    assert (config["eos_token_id"], config["decoder_start_token_id"]) == (90, 91)
    assert (generation["no_timestamps_token_id"], generation["prev_sot_token_id"]) == (93, 92)
    assert (generation["suppress_tokens"], generation["begin_suppress_tokens"]) == ([1, 2], [3])
    assert generation["is_multilingual"] is False and generation["max_length"] == 7
    assert (sound["feature_size"], sound["n_samples"], sound["nb_max_frames"]) == (5, 16_000, 100)


def changed(**changes):
    """The tiny Whisper with other tensors; None takes one away. Names with __ for /."""
    arrays = stored(tiny_whisper())
    for name, array in changes.items():
        name = name.replace("__", "/")
        if array is None:
            del arrays[name]
        else:
            arrays[name] = array
    return arrays


HALF = np.float16


@pytest.mark.parametrize(("changes", "said"), [
    ({"encoder__layer_0__self_attention__linear_0__bias": np.ones(24, HALF)}, "keys of encoder/layer_0.*have a bias"),
    ({"decoder__layer_0__attention__linear_1__bias": np.ones(16, HALF)}, "keys of decoder/layer_0/attention.*a bias"),
    ({"encoder__layer_norm__beta": None}, r"1 tensor: .*encoder/layer_norm/beta: absent, expected \(8,\)"),
    ({"encoder__extra": np.ones(3, HALF)}, r"encoder/extra: \(3,\), expected none"),
    ({"encoder__layer_1__self_attention__linear_0__weight": np.ones((23, 8), HALF)}, r"\(23, 8\), expected \(24, 8\)"),
    ({"encoder__conv1__weight": np.ones((8, 5), HALF)}, r"conv1/weight has shape \(8, 5\), .* 3 dimensions"),
    ({"decoder__embeddings__weight": np.ones((0, 8), HALF)}, r"embeddings/weight has shape \(0, 8\)"),
    ({"decoder__embeddings__weight": np.ones((95, 8), np.int8)}, "quantised to torch.int8"),
    ({"decoder__num_heads": None}, "no number decoder/num_heads"),
    ({"decoder__activation": np.array(0, np.int8)}, "activation 0; a Whisper has 3"),
])  # fmt: skip
def test_what_is_no_whisper_is_refused(tmp_path, changes, said):
    folder = tmp_path / "out"
    folder.mkdir()
    aliases = [] if "decoder__embeddings__weight" in changes else [PROJECTION]
    with pytest.raises(CheckpointError, match=said):
        convert_ctranslate2(write(tmp_path / "in", changed(**changes), aliases=aliases), folder)
    assert list(folder.iterdir()) == []


def test_other_models_and_missing_files_are_refused(tmp_path):
    arrays = stored(tiny_whisper())
    with pytest.raises(CheckpointError, match="'TransformerSpec'; this reads 'WhisperSpec'"):
        convert_ctranslate2(write(tmp_path / "a", arrays, spec="TransformerSpec"), tmp_path)
    tokens = {name: i for name, i in TOKENS.items() if name != "<|startofprev|>"}
    with pytest.raises(CheckpointError, match=r"lacks the tokens <\|startofprev\|>"):
        convert_ctranslate2(write(tmp_path / "b", arrays, tokens=tokens), tmp_path)
    for name in ("config.json", "tokenizer.json"):
        for content, said in ((None, "is missing"), ("{", "not JSON"), ("[]", "not a table")):
            path = write(tmp_path / "c", arrays)
            path.with_name(name).unlink()
            if content:
                path.with_name(name).write_text(content)
            with pytest.raises(CheckpointError, match=f"{name} .*{said}"):
                convert_ctranslate2(path, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


# ---- the real file ----

@pytest.fixture(scope="module")
def whisper(whisper_tiny_dir):
    model, report = WhisperForConditionalGeneration.from_pretrained(whisper_tiny_dir, output_loading_info=True)
    assert not any(report.values())
    return model.eval()


def test_the_encoders_positions_are_sinusoids(whisper):
    """sin and cos of position / 10000^(i / 191), i = 0 ... 191."""
    angles = torch.arange(1500)[:, None] * 10_000 ** (-torch.arange(192) / 191)
    expected = torch.cat((angles.sin(), angles.cos()), dim=1)
    assert (whisper.model.encoder.embed_positions.weight - expected).abs().max() < 1e-3  # stored in 16 bits


def test_a_silent_second_is_you(whisper, whisper_tiny_dir):
    """What the trained model is known for: a second of silence is "you"."""
    processor = AutoProcessor.from_pretrained(whisper_tiny_dir)
    mel = processor(np.zeros(16_000, np.float32), sampling_rate=16_000, return_tensors="pt").input_features
    assert mel.shape == (1, 80, 3000)
    ids = whisper.generate(mel)
    assert processor.batch_decode(ids, skip_special_tokens=True) == [" you"]


def test_its_decoder_knows_english(whisper, whisper_tiny_dir):
    tokenizer = AutoProcessor.from_pretrained(whisper_tiny_dir).tokenizer
    text = tokenizer(" The sun rises in the east and sets in the west.", add_special_tokens=False).input_ids
    ids = torch.tensor([[50257, 50362, *text]])
    with torch.no_grad():
        logits = whisper(input_features=torch.zeros(1, 80, 3000), decoder_input_ids=ids).logits
    loss = torch.nn.functional.cross_entropy(logits[0, 1:-1], ids[0, 2:])
    assert loss < 5  # guessing is ln 51,864 = 10.9
