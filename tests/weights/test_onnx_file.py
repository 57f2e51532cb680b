"""weights.onnx_file: names lost by an exporter are found in the graph; wrong files are refused."""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file
from transformers import AutoImageProcessor, Dinov2Config, Dinov2Model

from llamamm.assets.fetch import ASSETS
from llamamm.errors import CheckpointError, MissingDependencyError
from llamamm.weights.onnx_file import LINEARS, OnnxFile, convert_onnx


@functools.cache
def tiny_tower() -> tuple[Dinov2Model, dict[str, torch.Tensor]]:
    """Two blocks of width 12, three heads, positions for 3 x 3 patches of 4 pixels; and its weights as on the Hub."""
    cfg = Dinov2Config(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, mlp_ratio=2, image_size=12,
                       patch_size=4, use_mask_token=False, attn_implementation="eager")  # fmt: skip
    model = Dinov2Model(cfg).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return model, load_file(Path(folder) / "model.safetensors")


def exported(*, prefix="backbone.", n_heads=3) -> onnx.ModelProto:
    """What an exporter leaves: changed tensors under numbers, the rest under their names; and a head behind."""
    state = {name: tensor.numpy() for name, tensor in tiny_tower()[1].items()}
    positions = state.pop("embeddings.position_embeddings")
    weights, nodes, numbers = {"head.weight": np.ones((1, 12), np.float32)}, [], iter(range(1000, 2000))

    def number(array) -> str:
        name = f"onnx::MatMul_{next(numbers)}"
        weights[name] = np.ascontiguousarray(array)
        return name

    def node(op, inputs, output):
        nodes.append(helper.make_node(op, inputs, [output]))
        return output

    for name, array in state.items():
        module = name.removesuffix(".weight")
        if not name.endswith(".weight") or not module.endswith(LINEARS):
            weights[prefix + name] = array
            continue
        product = node("MatMul", [f"in of {name}", number(array.T)], f"{name} product")
        bias = f"{prefix}{module}.bias"
        node("Add", [bias, product] if "key" in name else [product, bias], f"{name} sum")
        if "query" in name:
            for value, size in (("heads", n_heads), ("dim", 12 // n_heads)):
                constant = numpy_helper.from_array(np.array([size]))
                nodes.append(helper.make_node("Constant", [], [f"{name} {value}"], value=constant))
            shape = node("Concat", ["batch", "length", f"{name} heads", f"{name} dim"], f"{name} shape")
            node("Reshape", [f"{name} sum", shape], f"{name} in heads")
    grid = node("Reshape", [number(positions[:, 1:]), "size"], "grid")
    grid = node("Resize", [node("Transpose", [grid], "channels first"), "", "", "sizes"], "resized")
    node("Concat", [f"{prefix}embeddings.cls_token", "patches"], "tokens")
    expanded = node("Expand", [f"{prefix}embeddings.cls_token", "shape"], "cls")
    nodes[-2].input[0] = expanded  # the graph joins CLS and patches too, but not as two weights
    node("Concat", [number(positions[:, :1]), grid], "positions")
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["B", 3, 8, 8])
    return helper.make_model(helper.make_graph(nodes, "g", [image], [], tensors))


def save(model: onnx.ModelProto, path):
    path.write_bytes(model.SerializeToString())
    return path


def initializer(model: onnx.ModelProto, name: str):
    return next(t for t in model.graph.initializer if t.name == name)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_tower_comes_back_whole(tmp_path, prefix):
    tower, on_the_hub = tiny_tower()
    convert_onnx(save(exported(prefix=prefix), tmp_path / "m.onnx"), tmp_path)
    ours = load_file(tmp_path / "model.safetensors")
    assert ours.keys() == on_the_hub.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in on_the_hub.items())
    loaded, report = Dinov2Model.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not any(report.values()) and loaded.dtype == torch.float32
    image = torch.rand(2, 3, 8, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # heads, activation, epsilon: not in the weights
        assert torch.equal(loaded(image).last_hidden_state, tower(image).last_hidden_state)
    config = json.loads((tmp_path / "config.json").read_text())
    assert {key: config[key] for key in ("model_type", "num_attention_heads", "mlp_ratio", "image_size")} == {
        "model_type": "dinov2", "num_attention_heads": 3, "mlp_ratio": 2, "image_size": 12}  # fmt: skip


def test_preprocessor(tmp_path):
    convert_onnx(save(exported(), tmp_path / "m.onnx"), tmp_path)
    grey = torch.full((3, 8, 8), 255, dtype=torch.uint8)  # as large as the graph's input: only scaled
    pixels = AutoImageProcessor.from_pretrained(tmp_path)(grey, return_tensors="pt").pixel_values
    # by hand: (1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225
    np.testing.assert_allclose(pixels[0, :, 0, 0], [2.2489, 2.4286, 2.6400], atol=1e-4)
    assert AutoImageProcessor.from_pretrained(tmp_path)(torch.zeros(3, 30, 50)).pixel_values[0].shape == (3, 8, 8)


def test_an_input_of_any_size_is_as_large_as_the_positions(tmp_path):
    model = exported()
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "W"
    convert_onnx(save(model, tmp_path / "m.onnx"), tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["crop_size"] == {"height": 12, "width": 12}
    del model.graph.input[:]
    convert_onnx(save(model, tmp_path / "m.onnx"), tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == {"shortest_edge": 12}


def test_linear_weight_by_hand(tmp_path):
    """x @ [[1, 2, 3], [4, 5, 6]] + b is Linear(2, 3) with the weight [[1, 4], [2, 5], [3, 6]]."""
    w = numpy_helper.from_array(np.array([[1, 2, 3], [4, 5, 6]], np.float32), "w")
    b = numpy_helper.from_array(np.zeros(3, np.float32), "b")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["b", "y"], ["z"])]
    file = OnnxFile(save(helper.make_model(helper.make_graph(nodes, "g", [], [], [w, b])), tmp_path / "m.onnx"))
    ref = file.linear_weight("b")
    assert ref.shape == (3, 2) and ref.read().tolist() == [[1, 4], [2, 5], [3, 6]]
    ref.read().zero_()  # the caller's own
    assert ref.read().sum() == 21
    with pytest.raises(CheckpointError, match="nothing is added to w"):
        file.linear_weight("w")


# ---- refused ----

def lie_about_a_size(model):
    initializer(model, "backbone.layernorm.weight").dims[0] = 2**40


def negative_size(model):
    initializer(model, "backbone.layernorm.weight").dims[:] = [-3, -4]


def name_twice(model):
    model.graph.initializer.append(initializer(model, "backbone.layernorm.weight"))


def keep_outside(model):
    tensor = initializer(model, "backbone.layernorm.weight")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


def rename(old, new):
    def change(model):
        initializer(model, f"backbone.{old}").name = f"backbone.{new}"
    return change


def drop(name):
    def change(model):
        model.graph.initializer.remove(initializer(model, f"backbone.{name}"))
    return change


def reshape(name, *dims):
    def change(model):
        initializer(model, f"backbone.{name}").dims[:] = dims
    return change


def no_nodes(op):
    def change(model):
        for node in [n for n in model.graph.node if n.op_type == op]:
            model.graph.node.remove(node)
    return change


def ring(model):
    next(n for n in model.graph.node if n.op_type == "Reshape" and n.output[0] == "grid").input[0] = "resized"


def positions(*dims):
    def change(model):
        tensor = next(t for t in model.graph.initializer if list(t.dims) == [1, 9, 12])
        tensor.dims[:] = dims
    return change


def five_heads(model):
    node = next(n for n in model.graph.node if n.output[0].endswith("0.attention.attention.query.weight heads"))
    node.attribute[0].t.raw_data = np.array([5]).tobytes()


@pytest.mark.parametrize(("change", "said"), [
    (lie_about_a_size, r"layernorm.weight of shape \(1099511627776,\) needs 4398046511104 bytes, has 48"),
    (negative_size, r"shape \(-3, -4\)"),
    (name_twice, "layernorm.weight twice"),
    (keep_outside, "layernorm.weight in another file"),
    (drop("embeddings.cls_token"), "0 tensors named embeddings.cls_token.*has 1"),
    (rename("layernorm.weight", "two.embeddings.cls_token"), "2 tensors named embeddings.cls_token"),
    (drop("layernorm.bias"), r"not a DINOv2 tower's: 1 tensor: layernorm.bias: absent, expected \(12,\)"),
    (drop("encoder.layer.1.mlp.fc1.bias"), "not a DINOv2 tower's: 2 tensors: .*layer.1.mlp.fc1.bias: absent"),
    (drop("encoder.layer.0.mlp.fc1.bias"), "lacks encoder.layer.0.mlp.fc1.weight"),
    (rename("layernorm.bias", "layernorm.biases"), r"2 tensors.*biases: \(12,\), expected none"),
    (rename("encoder.layer.1.norm1.weight", "encoder.layer.x.norm1.weight"), "2 tensors.*encoder.layer.x.norm1"),
    (reshape("layernorm.bias", 3, 4), r"layernorm.bias: \(3, 4\), expected \(12,\)"),
    (reshape("embeddings.patch_embeddings.projection.weight", 12, 48), r"projection.weight.*\(12, 48\)"),
    (no_nodes("MatMul"), "no MatMul with a weight before backbone.encoder.layer.0"),
    (no_nodes("Add"), "nothing is added to backbone.encoder.layer.0"),
    (no_nodes("Constant"), "not cut into heads"),
    (no_nodes("Concat"), "0 Concat nodes begin with a weight"),
    (no_nodes("Transpose"), "1 Concat nodes begin with a weight"),
    (ring, "Concat nodes"),
    (positions(9, 12), r"positions of shapes \(1, 1, 12\) and \(9, 12\) do not join"),
    (positions(1, 6, 18), "do not join"),
    (positions(3, 3, 12), "do not join"),
    (five_heads, "a width of 12 is no multiple of 5 heads"),
])  # fmt: skip
def test_what_is_no_tower_is_refused(tmp_path, change, said):
    model = exported()
    change(model)
    folder = tmp_path / "f"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=said):
        convert_onnx(save(model, tmp_path / "m.onnx"), folder)
    assert list(folder.iterdir()) == []


def test_a_name_that_is_no_text_is_refused(tmp_path):
    content = exported().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(content.replace(b"backbone.layernorm.bias", b"backbone.layernorm.bia\xff"))
    with pytest.raises(CheckpointError, match="for a name; download it again"):
        OnnxFile(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"<html>", b"\0" * 100, b"\x08\x07"])
def test_what_is_no_onnx_file_is_refused(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match="m.onnx"):
        OnnxFile(tmp_path / "m.onnx")


def test_a_file_that_is_not_there():
    with pytest.raises(CheckpointError, match="no.onnx does not exist"):
        OnnxFile("no.onnx")


@given(data=st.data())
def test_a_damaged_file_is_refused_or_read(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(exported().SerializeToString())
    if data.draw(st.booleans(), label="cut"):
        del content[data.draw(st.integers(0, len(content) - 1)):]
    else:
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
            content[place] ^= data.draw(st.integers(1, 255))
    (folder / "m.onnx").write_bytes(content)
    try:
        convert_onnx(folder / "m.onnx", folder)
    except CheckpointError as error:
        assert "m.onnx" in str(error)
        assert [path.name for path in folder.iterdir()] == ["m.onnx"]


def test_without_the_onnx_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"llamamm\[vision\]"):
        OnnxFile(tmp_path / "m.onnx")


# ---- the real file ----

def test_features_equal_the_graphs_own(vit_s_dir):
    """The last tensor that both have: after it the graph is a saliency head."""
    last = "/backbone/layernorm/Add_1_output_0"
    model = onnx.load(vit_s_dir.parent / ASSETS["vit-s"].file_name)
    needed, kept = {last}, []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    tower = helper.make_graph(kept[::-1], "tower", model.graph.input,
                              [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)], model.graph.initializer)
    session = ReferenceEvaluator(helper.make_model(tower, opset_imports=model.opset_import))
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(session.run(None, {"input_image": image.numpy()})[0])
    ours, report = Dinov2Model.from_pretrained(vit_s_dir, output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        features = ours.eval()(image).last_hidden_state
    assert features.shape == (1, 257, 384) and features.std() > 1
    assert (features - expected).abs().max() < 1e-4
