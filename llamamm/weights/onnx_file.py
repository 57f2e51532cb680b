"""ONNX files: a graph of operations with the weights in it. Here: the DINOv2 tower of one, as Hugging Face's files.

The exporter keeps a weight's name where the graph uses the tensor as it is, and drops it where the tensor was changed
first. Two kinds were, and are found by what is done with them:

    x -> MatMul(x, W) -> Add(bias)             W is a linear layer's weight transposed, (in, out); its bias has a name
    Concat([W1, Resize(... Reshape(W2))])      position embeddings, cut into that of CLS, (1, 1, C), and the patches'

What follows the tower's last norm is another model's head and is left out.

Source: onnx.proto in the onnx repository; DINOv2, arXiv:2304.07193. Used where the course builds the vision encoder.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llamamm.errors import CheckpointError, MissingDependencyError, counted
from llamamm.files import write_file
from llamamm.weights.saving import write_weights
from llamamm.weights.tensors import TensorRef

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TOWER = ("embeddings.", "encoder.", "layernorm.")
LINEARS = (
    "attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense",
    "mlp.fc1", "mlp.fc2",
)  # fmt: skip


class OnnxFile:
    """An opened ONNX file: `refs`, its fp32 weights under the graph's names, and questions about the graph.

    Raises CheckpointError for a file that is damaged, keeps weights elsewhere, or lies about their sizes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        onnx = _onnx_package()
        from google.protobuf.message import DecodeError  # comes with onnx

        if not self.path.is_file():
            raise CheckpointError(f"{self.path} does not exist")
        try:  # weights kept outside are named by a path, which could lead anywhere
            self.graph = onnx.load_model(self.path, load_external_data=False).graph
        except DecodeError as error:
            raise CheckpointError(f"{self.path} is not a whole ONNX file ({error}); download it again") from None
        if not self.graph.node:
            raise CheckpointError(f"{self.path} holds no graph; is it an ONNX file?")
        self._producer = {output: node for node in self.graph.node for output in node.output}
        self.refs: dict[str, TensorRef] = {}
        for tensor in self.graph.initializer:
            if not isinstance(tensor.name, str):  # protobuf gives bytes that are no UTF-8 as they are
                raise CheckpointError(f"{self.path} has {tensor.name[:40]!r} for a name; download it again")
            if tensor.name in self.refs:
                raise CheckpointError(f"{self.path} holds {tensor.name} twice: damaged or tampered with")
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise CheckpointError(f"{self.path} keeps {tensor.name} in another file; only weights inside are read")
            if tensor.data_type == onnx.TensorProto.FLOAT:
                self.refs[tensor.name] = self._ref(tensor)

    def linear_weight(self, bias: str) -> TensorRef:
        """The weight, (out, in), of the linear layer that has this bias, as PyTorch keeps it."""
        product = next((p for i in self._added(bias).input if (p := self._producer.get(i)) is not None), None)
        ref = self.refs.get(product.input[-1]) if product is not None and product.op_type == "MatMul" else None
        if ref is None or len(ref.shape) != 2:
            raise CheckpointError(f"{self.path}: no MatMul with a weight before {bias}; another exporter wrote it")
        return TensorRef(ref.name, ref.shape[::-1], ref.dtype, lambda: ref.read().T.contiguous())

    def n_heads(self, query_bias: str) -> int:
        """Into how many heads the queries are reshaped, (B, T, C) -> (B, T, H, D)."""
        queries = list(self._added(query_bias).output)
        reshape = next((n for n in self.graph.node if n.op_type == "Reshape" and n.input[:1] == queries), None)
        shape = self._producer.get(reshape.input[-1]) if reshape is not None else None
        heads = self._producer.get(shape.input[-2]) if shape is not None and len(shape.input) == 4 else None
        value = heads.attribute[0].t.raw_data if heads is not None and heads.attribute else b""
        if len(value) != 8 or not 0 < (count := int.from_bytes(value, "little")) < 2**16:
            raise CheckpointError(f"{self.path}: the queries of {query_bias} are not cut into heads of a fixed number")
        return count

    def joined(self) -> tuple[TensorRef, TensorRef]:
        """The two weights, (1, 1, C) and (1, N, C), of the one Concat whose first input is a weight."""
        found = [n for n in self.graph.node if n.op_type == "Concat" and n.input and n.input[0] in self.refs]
        rest = self._behind(found[0].input[1]) if len(found) == 1 and len(found[0].input) == 2 else None
        if rest is None:
            raise CheckpointError(f"{self.path}: {len(found)} Concat nodes begin with a weight; positions need 1")
        first, rest = self.refs[found[0].input[0]], self.refs[rest]
        if len(rest.shape) != 3 or rest.shape[0] != 1 or first.shape != (1, 1, rest.shape[2]):
            raise CheckpointError(f"{self.path}: positions of shapes {first.shape} and {rest.shape} do not join")
        return first, rest

    def input_width(self) -> int:
        """The last dimension of the graph's first input; 0 where it is free."""
        dims = [d.dim_value for i in self.graph.input[:1] for d in i.type.tensor_type.shape.dim]
        return dims[-1] if dims else 0

    def _added(self, bias: str) -> Any:
        node = next((n for n in self.graph.node if n.op_type == "Add" and bias in n.input), None)
        if node is None:
            raise CheckpointError(f"{self.path}: nothing is added to {bias}; another exporter wrote it")
        return node

    def _behind(self, value: str) -> str | None:
        """The weight from which a chain of reshapes and the like makes `value`; the data is each one's first input."""
        for _ in range(len(self.graph.node)):  # a damaged graph may have a ring
            if value in self.refs:
                return value
            if (node := self._producer.get(value)) is None or not node.input:
                return None
            value = node.input[0]
        return None

    def _ref(self, tensor: Any) -> TensorRef:
        shape = tuple(tensor.dims)
        if min(shape, default=0) < 0 or len(tensor.raw_data) != math.prod(shape) * 4:
            raise CheckpointError(f"{self.path}: {tensor.name} of shape {shape} needs {math.prod(shape) * 4} bytes, "
                                  f"has {len(tensor.raw_data)}; download it again")

        def read() -> Tensor:
            return torch.from_numpy(np.frombuffer(tensor.raw_data, "<f4").astype(np.float32)).reshape(shape)

        return TensorRef(tensor.name, shape, torch.float32, read)


def convert_onnx(path: str | Path, folder: str | Path) -> None:
    """Write the DINOv2 tower in an ONNX file into an existing `folder`, as Hugging Face's files, in fp32.

    Raises CheckpointError where the file holds no such tower, or only parts of one.
    """
    file, folder = OnnxFile(path), Path(folder)
    refs = _dinov2_refs(file)
    cfg = _dinov2_config(file, refs)
    _check_shapes(file.path, refs, cfg)
    side = file.input_width() or cfg["image_size"]
    write_weights({name: ref.read() for name, ref in refs.items()}, folder)
    for name, content in (("config.json", cfg), ("preprocessor_config.json", _preprocessor(side))):
        write_file(folder / name, json.dumps(content, indent=2) + "\n")


def _dinov2_refs(file: OnnxFile) -> dict[str, TensorRef]:
    """The tower's tensors under the names that facebook/dinov2-small has on the Hub."""
    mark = "embeddings.cls_token"
    prefixes = [name.removesuffix(mark) for name in file.refs if name.endswith(mark)]
    if len(prefixes) != 1:
        raise CheckpointError(f"{file.path} has {len(prefixes)} tensors named {mark}; a DINOv2 tower has 1")
    prefix = prefixes[0]
    refs = {name.removeprefix(prefix): ref for name, ref in file.refs.items()
            if name.startswith(tuple(prefix + part for part in TOWER))}  # fmt: skip
    for name in [name for name in refs if name.endswith(".bias")]:
        module = name.removesuffix(".bias")
        if module.split(".", 3)[-1] in LINEARS:  # encoder.layer.N.mlp.fc1 -> mlp.fc1
            refs[f"{module}.weight"] = file.linear_weight(prefix + name)
    first, rest = file.joined()
    name = "embeddings.position_embeddings"
    refs[name] = TensorRef(name, (1, 1 + rest.shape[1], rest.shape[2]), rest.dtype,
                           lambda: torch.cat((first.read(), rest.read()), dim=1))  # fmt: skip
    return dict(sorted(refs.items()))


def _dinov2_config(file: OnnxFile, refs: dict[str, TensorRef]) -> dict[str, Any]:
    """config.json, as on the Hub; every number is read off the file's tensors and its graph."""
    needed = ("embeddings.patch_embeddings.projection.weight", "encoder.layer.0.mlp.fc1.weight",
              "encoder.layer.0.attention.attention.query.bias")
    if lacking := [name for name in needed if name not in refs]:
        raise CheckpointError(f"{file.path} lacks {', '.join(lacking)}; it is no DINOv2 tower")
    patches = refs[needed[0]].shape
    if len(patches) != 4 or 0 in patches:
        raise CheckpointError(f"{file.path}: {needed[0]} has shape {patches}, expected (width, colours, side, side)")
    hidden_size, channels, patch, _ = patches
    grid = math.isqrt(refs["embeddings.position_embeddings"].shape[1] - 1)
    return {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": hidden_size,
        "num_hidden_layers": sum(name.endswith(".norm1.weight") for name in refs),
        "num_attention_heads": file.n_heads(refs[needed[2]].name),
        "mlp_ratio": refs[needed[1]].shape[0] // hidden_size,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "image_size": grid * patch,  # of the pictures that the positions were learned on
        "patch_size": patch,
        "num_channels": channels,
        "qkv_bias": True,
        "layerscale_value": 1.0,
        "use_swiglu_ffn": False,
        "use_mask_token": False,  # of use in pretraining alone, so the exporter dropped it
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "initializer_range": 0.02,
        "dtype": "float32",
    }


def _check_shapes(path: Path, refs: dict[str, TensorRef], cfg: dict[str, Any]) -> None:
    c, patch, heads = cfg["hidden_size"], cfg["patch_size"], cfg["num_attention_heads"]
    if c % heads:
        raise CheckpointError(f"{path}: a width of {c} is no multiple of {heads} heads")
    inner = c * cfg["mlp_ratio"]
    shapes = {
        "embeddings.cls_token": (1, 1, c),
        "embeddings.position_embeddings": (1, 1 + (cfg["image_size"] // patch) ** 2, c),
        "embeddings.patch_embeddings.projection.weight": (c, cfg["num_channels"], patch, patch),
        "embeddings.patch_embeddings.projection.bias": (c,),
        "layernorm.weight": (c,),
        "layernorm.bias": (c,),
    }
    for layer in range(cfg["num_hidden_layers"]):
        block = {f"{name}.{kind}": (c,) for name in ("norm1", "norm2") for kind in ("weight", "bias")}
        block |= {f"layer_scale{n}.lambda1": (c,) for n in (1, 2)}
        for name in LINEARS:
            rows, columns = {"mlp.fc1": (inner, c), "mlp.fc2": (c, inner)}.get(name, (c, c))
            block |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
        shapes |= {f"encoder.layer.{layer}.{name}": shape for name, shape in block.items()}
    found = {name: ref.shape for name, ref in refs.items()}
    if wrong := [name for name in sorted(shapes.keys() | found) if shapes.get(name) != found.get(name)]:
        lines = [f"{name}: {found.get(name, 'absent')}, expected {shapes.get(name, 'none')}" for name in wrong[:5]]
        raise CheckpointError(f"{path}: not a DINOv2 tower's: {counted(len(wrong), 'tensor')}: {'; '.join(lines)}")


def _preprocessor(side: int) -> dict[str, Any]:
    """What the graph was fed: RGB from 0 to 1, less ImageNet's mean, over its deviation, `side` x `side` pixels.

    It saw whole pictures in a black frame, which this format cannot say; the square in the middle stands for them.
    """
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True, "size": {"shortest_edge": side}, "resample": 3,  # bicubic
        "do_center_crop": True, "crop_size": {"height": side, "width": side},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD,
    }  # fmt: skip


def _onnx_package() -> Any:
    try:
        import onnx
    except ImportError:
        raise MissingDependencyError("reading ONNX needs the onnx package: pip install 'llamamm[vision]'") from None
    return onnx
