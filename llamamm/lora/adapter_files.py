"""Adapter files in PEFT's format: a few megabytes that turn one model into another.

    adapter_config.json            r, lora_alpha, target_modules, ...
    adapter_model.safetensors      base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight (r, C), ...

An adapter fits the one base it was trained on; shapes alone do not show which that was, so a few hundred of the base's
weights are written into the file's header and compared when it is loaded. `peft` ignores them.

Source: the format of huggingface/peft 0.21. Built in notebook 09.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from llamamm.errors import CheckpointError, ConfigError
from llamamm.files import read_json, recover_folder, replace_folder
from llamamm.lora.lora import (
    DEFAULT,
    LoraLinear,
    LoraSettings,
    adapter_names,
    check_adapter_name,
    delete_adapter,
    lora_modules,
    plain_state_dict,
    set_adapter,
    wrap_linear,
)
from llamamm.text.model import Llama3Model
from llamamm.weights.checkpoint import open_checkpoint
from llamamm.weights.saving import refuse_foreign_files
from llamamm.weights.tensors import TensorRef
from llamamm.wiring import find_linears

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # what peft puts before every name of its base
SUFFIXES = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b", "lora_magnitude_vector": "lora_magnitude"}
SAMPLES = 256
# peft's settings that change nothing in a finished adapter's arithmetic; any other that is set is refused.
HARMLESS = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "init_lora_weights", "megatron_core", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config", "ensure_weight_tying",
}  # fmt: skip


def save_adapter(model: nn.Module, folder: str | Path, *, name: str | None = None, base: str = "") -> None:
    """Write one adapter, by default the active one, as a folder that `peft` loads too. Whole or not at all.

    base: the Hub repository, folder or asset of the model it was trained on, noted in the config.
    Raises ConfigError where the model has no such adapter, CheckpointError where the folder holds other things.
    """
    folder = Path(folder)
    refuse_foreign_files(folder)
    with replace_folder(folder) as new:
        write_adapter(model, new, name=name, base=base)


def write_adapter(model: nn.Module, folder: Path, *, name: str | None = None, base: str = "") -> None:
    """The two files, into a folder that exists. Arguments as in `save_adapter`."""
    name = name or active_adapter(model)
    modules = {path: m for path, m in lora_modules(model).items() if name in m.settings}
    if not modules:
        raise ConfigError(f"there is no adapter {name!r}; the model has {', '.join(adapter_names(model)) or 'none'}")
    tensors = {
        f"{PREFIX}{_prefix(model)}{path}.{suffix}": getattr(module, attribute)[name].detach().contiguous()
        for path, module in modules.items()
        for suffix, attribute in SUFFIXES.items()
        if name in getattr(module, attribute)
    }
    settings = next(iter(modules.values())).settings[name]
    metadata = {"format": "pt", "llamamm_base": _encode(_samples(model))}
    save_file(tensors, folder / WEIGHTS_FILE, metadata=metadata)
    config = _config(model, list(modules), settings, base)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_adapter(model: nn.Module, folder: str | Path, *, name: str = DEFAULT, check_base: bool = True) -> None:
    """Give the model the adapter in a folder, ours or peft's; it becomes active. One of the same name is replaced.

    check_base=False accepts an adapter that was trained on other weights of the same shape.
    Raises CheckpointError, naming every module that does not fit, before anything in the model changes.
    """
    folder = Path(folder)
    recover_folder(folder)
    settings = read_settings(folder)
    refs = open_checkpoint(folder / WEIGHTS_FILE)
    parts = _match(model, refs, settings)
    if check_base:
        _require_same_base(model, folder / WEIGHTS_FILE)
    tensors = {path: {attribute: ref.read() for attribute, ref in part.items()} for path, part in parts.items()}
    if name in adapter_names(model):
        delete_adapter(model, name)
    check_adapter_name(model, name)
    for path, part in tensors.items():
        module = wrap_linear(model, path)
        module.add(name, settings)
        for attribute, tensor in part.items():
            with torch.no_grad():
                getattr(module, attribute)[name].copy_(tensor)
    set_adapter(model, name)


def read_settings(folder: str | Path) -> LoraSettings:
    """An adapter's rank, alpha and options. Raises CheckpointError for another kind of adapter than we build."""
    config = read_adapter_config(folder)
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{folder} holds an adapter of type {config.get('peft_type')}; this package has LoRA")
    other = sorted(k for k, v in config.items() if k not in HARMLESS and v not in (None, False, [], {}, "none", ""))
    if other:
        raise CheckpointError(f"{folder} was made with {', '.join(f'{k}={config[k]!r}' for k in other)}, "
                              f"which this package does not have")
    try:
        return LoraSettings(config["r"], config["lora_alpha"], config.get("lora_dropout", 0.0),
                            bool(config.get("use_rslora")), bool(config.get("use_dora")))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}/{CONFIG_FILE} lacks or misstates {error}") from None


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """The content of adapter_config.json. Raises CheckpointError where it is missing or no JSON object."""
    return read_json(Path(folder) / CONFIG_FILE, owner="an adapter")


def active_adapter(model: nn.Module) -> str:
    """The name of the active adapter. Raises ConfigError where the model has none."""
    for module in lora_modules(model).values():
        if module.active:
            return module.active
    raise ConfigError("the model has no LoRA adapter: apply_lora(model, r=8, alpha=16) gives it one")


# ---- names ----

def _prefix(model: nn.Module) -> str:
    """What Hugging Face's name of a module has before ours: the text model is called `model` there."""
    return "model." if isinstance(model, Llama3Model) else ""


def _config(model: nn.Module, paths: list[str], settings: LoraSettings, base: str) -> dict[str, Any]:
    leaves = sorted({path.rpartition(".")[2] for path in paths})
    everywhere = find_linears(model, leaves, wrapper=LoraLinear)
    # Short names where they say it all, else each module by its full name.
    targets = leaves if everywhere == paths else sorted(_prefix(model) + path for path in paths)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if isinstance(model, Llama3Model) else None,
        "base_model_name_or_path": base or None,
        "r": settings.r,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "use_dora": settings.dora,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _match(model: nn.Module, refs: dict[str, TensorRef], settings: LoraSettings) -> dict[str, dict[str, TensorRef]]:
    """The file's tensors by module and role, each of the shape that the module and the rank ask for."""
    linears = {path: model.get_submodule(path) for path in find_linears(model, "*", wrapper=LoraLinear, shared=True)}
    needed = ["lora_a", "lora_b", *(["lora_magnitude"] if settings.dora else [])]
    parts: dict[str, dict[str, TensorRef]] = {}
    problems = []
    for name, ref in refs.items():
        path, attribute = _split(name, _prefix(model))
        if path not in linears or attribute is None:
            problems.append(f"{name}: the model has no such linear")
            continue
        n, c = linears[path].out_features, linears[path].in_features
        shape = {"lora_a": (settings.r, c), "lora_b": (n, settings.r), "lora_magnitude": (n,)}[attribute]
        if ref.shape != shape:
            problems.append(f"{name}: the adapter has {ref.shape}, rank {settings.r} and the model ask for {shape}")
        parts.setdefault(path, {})[attribute] = ref
    problems += [
        f"{path}: the adapter holds {' and '.join(part)}, it should hold {' and '.join(needed)}"
        for path, part in parts.items()
        if sorted(part) != sorted(needed)
    ]
    if problems or not parts:
        more = f"\n  ... and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError("the adapter does not fit the model, nothing was loaded: "
                              + ("\n  " + "\n  ".join(problems[:10]) + more if problems else "it holds no tensors"))
    return parts


def _split(name: str, prefix: str) -> tuple[str, str | None]:
    """A tensor's name in the file -> our module's path and the attribute it belongs to."""
    path = name.removeprefix(PREFIX).removeprefix(prefix)
    for suffix, attribute in SUFFIXES.items():
        if path.endswith("." + suffix):
            return path[: -len(suffix) - 1], attribute
    return path, None


# ---- which base ----

def _samples(model: nn.Module) -> Tensor:
    """Some of the base's weights, the same places each time. (SAMPLES,) bf16, so that it may run in another dtype."""
    weights = [w.flatten() for w in plain_state_dict(model, own=True).values() if w.is_floating_point()]
    each = -(-SAMPLES // len(weights))
    picked = torch.cat([w[_spread(w.numel(), each).to(w.device)].float().cpu() for w in weights])
    return picked[_spread(picked.numel(), SAMPLES)].bfloat16()


def _spread(n: int, count: int) -> Tensor:
    """`count` places from 0 to n - 1, evenly. In whole numbers: fp32 cannot tell 262,668,287 from 262,668,288."""
    return torch.arange(count) * (n - 1) // max(count - 1, 1)


def _require_same_base(model: nn.Module, file: Path) -> None:
    with safe_open(file, framework="pt") as f:
        noted = (f.metadata() or {}).get("llamamm_base")
    if noted is None:  # peft's own files do not say
        return
    here, there = _samples(model).float(), _decode(noted)
    # The same weights in fp16 or fp32, rounded to bf16, are at most one of its steps apart, 2^-7 of the value.
    if there is not None and here.shape == there.shape and torch.allclose(here, there, rtol=2**-7, atol=1e-6):
        return
    raise CheckpointError(
        "the adapter was trained on another base: the shapes fit, the weights differ. Load that base, or pass "
        "check_base=False to use it on this one all the same"
    )


def _encode(samples: Tensor) -> str:
    return base64.b64encode(samples.view(torch.uint8).numpy().tobytes()).decode()


def _decode(text: str) -> Tensor | None:
    try:
        return torch.frombuffer(bytearray(base64.b64decode(text, validate=True)), dtype=torch.bfloat16).float()
    except (ValueError, RuntimeError):
        return None
