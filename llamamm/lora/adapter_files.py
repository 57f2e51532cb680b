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
from llamamm.files import recover_folder, replace_folder
from llamamm.lora.adapter_config import CONFIG_FILE, AdapterConfig, read_adapter
from llamamm.lora.lora import (
    DEFAULT,
    LoraLinear,
    adapter_names,
    check_adapter_name,
    delete_adapter,
    lora_modules,
    plain_state_dict,
    set_adapter,
    wrap_linear,
)
from llamamm.lora.settings import LoraSettings
from llamamm.weights.checkpoint import open_checkpoint
from llamamm.weights.mllama_names import name_in_memory
from llamamm.weights.names import without_wrappers
from llamamm.weights.saving import refuse_foreign_files
from llamamm.weights.tensors import TensorRef
from llamamm.wiring import find_linears

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."  # what peft puts before every name of its base
SUFFIXES = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b", "lora_magnitude_vector": "lora_magnitude"}
SAMPLES = 256


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
        f"{PREFIX}{_peft_name(model, path)}.{suffix}": getattr(module, attribute)[name].detach().contiguous()
        for path, module in modules.items()
        for suffix, attribute in SUFFIXES.items()
        if name in getattr(module, attribute)
    }
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt", **note_base(model)})
    config = _config(model, {path: module.settings[name] for path, module in modules.items()}, base)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_adapter(model: nn.Module, folder: str | Path, *, name: str = DEFAULT, check_base: bool = True) -> None:
    """Give the model the adapter in a folder, ours or peft's; it becomes active. One of the same name is replaced.

    check_base=False accepts an adapter that was trained on other weights of the same shape.
    Raises CheckpointError, naming every module that does not fit, before anything in the model changes.
    """
    folder = Path(folder)
    recover_folder(folder)
    config = read_adapter(folder)
    parts = _match(model, open_checkpoint(folder / WEIGHTS_FILE), config)
    if check_base:
        require_same_base(model, folder / WEIGHTS_FILE)
    tensors = {path: {attribute: ref.read() for attribute, ref in part.items()} for path, part in parts.items()}
    if name in adapter_names(model):
        delete_adapter(model, name)
    check_adapter_name(model, name)
    for path, part in tensors.items():
        module = wrap_linear(model, path)
        module.add(name, config.settings_of(_peft_name(model, path)))
        for attribute, tensor in part.items():
            with torch.no_grad():
                getattr(module, attribute)[name].copy_(tensor)
    set_adapter(model, name)


def active_adapter(model: nn.Module) -> str:
    """The name of the active adapter. Raises ConfigError where the model has none."""
    for module in lora_modules(model).values():
        if module.active:
            return module.active
    raise ConfigError("the model has no LoRA adapter: apply_lora(model, r=8, alpha=16) gives it one")


# ---- names ----

def _peft_name(model: nn.Module, path: str) -> str:
    """A module's name in `transformers`, whose models `peft` wraps; ours where the model names none."""
    hf_name = getattr(model, "hf_name", str)
    return name_in_memory(hf_name(f"{path}.weight")).removesuffix(".weight")


def _config(model: nn.Module, settings: dict[str, LoraSettings], base: str) -> dict[str, Any]:
    """settings: those of each module, by its path. The first's hold in general, what differs stands as patterns."""
    usual = next(iter(settings.values()))
    names = {path: _peft_name(model, path) for path in settings}
    leaves = sorted({name.rpartition(".")[2] for name in names.values()})
    linears = [_peft_name(model, path) for path in find_linears(model, "*", wrapper=LoraLinear, shared=True)]
    everywhere = [name for name in linears if name.rpartition(".")[2] in leaves]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if hasattr(model, "lm_head") else None,
        "base_model_name_or_path": base or None,
        "r": usual.r,
        "lora_alpha": usual.alpha,
        "rank_pattern": {names[path]: s.r for path, s in settings.items() if s.r != usual.r},
        "alpha_pattern": {names[path]: s.alpha for path, s in settings.items() if s.alpha != usual.alpha},
        "lora_dropout": usual.dropout,
        "use_rslora": usual.rslora,
        "use_dora": usual.dora,
        # Short names where they say it all, else each module by its full name.
        "target_modules": leaves if everywhere == list(names.values()) else sorted(names.values()),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _match(model: nn.Module, refs: dict[str, TensorRef], config: AdapterConfig) -> dict[str, dict[str, TensorRef]]:
    """The file's tensors by module and role, each of the shape that the module and the rank ask for."""
    linears = find_linears(model, "*", wrapper=LoraLinear, shared=True)
    paths = {_peft_name(model, path): path for path in linears}
    own = plain_state_dict(model, own=True).items()
    base = {_peft_name(model, name.removesuffix(".weight")): tensor for name, tensor in own}
    needed = ["lora_a", "lora_b", *(["lora_magnitude"] if config.settings.dora else [])]
    parts: dict[str, dict[str, TensorRef]] = {}
    problems = []
    for full, ref in without_wrappers(refs).items():
        name, attribute = _split(full)
        if attribute is None and name in base:
            if not _is_own(ref, base[name]):
                problems.append(f"{full}: a weight of the base itself, and another than the model has")
            continue
        if name not in paths or attribute is None:
            problems.append(f"{full}: the model has no such linear")
            continue
        if not config.targets(name):
            problems.append(f"{full}: not among the targets in {CONFIG_FILE}, so that peft would leave it out")
        path, rank = paths[name], config.settings_of(name).r
        module = model.get_submodule(path)
        n, c = module.out_features, module.in_features
        shape = {"lora_a": (rank, c), "lora_b": (n, rank), "lora_magnitude": (n,)}[attribute]
        if ref.shape != shape:
            source = "" if rank == config.settings.r else " of rank_pattern"
            problems.append(f"{full}: the adapter has {ref.shape}, rank {rank}{source} and the model ask for {shape}")
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


def _split(full: str) -> tuple[str, str | None]:
    """A tensor's name in the file -> the module's name, and the attribute it belongs to; None: a weight of the base.

    peft stores the base's head beside an adapter on it, as `lm_head.base_layer.weight`.
    """
    name = name_in_memory(full.removeprefix(PREFIX))
    for suffix, attribute in SUFFIXES.items():
        if name.endswith("." + suffix):
            return name[: -len(suffix) - 1], attribute
    return name.replace(".base_layer.", ".").removesuffix(".weight"), None


def _is_own(ref: TensorRef, own: Tensor) -> bool:
    return ref.shape == tuple(own.shape) and torch.equal(ref.read().to(own.device, own.dtype), own)


# ---- which base ----

def note_base(model: nn.Module) -> dict[str, str]:
    """What tells one base from another, for the header of a file."""
    return {"llamamm_base": _encode(_samples(model))}


def _samples(model: nn.Module) -> Tensor:
    """Some of the base's weights, the same places each time. (SAMPLES,) bf16, so that it may run in another dtype.

    What a model names as ADDED, bridges for one, trains beside the base and is none of it.
    """
    added = getattr(model, "ADDED", ())
    weights = [w.flatten() for name, w in plain_state_dict(model, own=True).items()
               if w.is_floating_point() and name.split(".")[0] not in added]  # fmt: skip
    each = -(-SAMPLES // len(weights))
    picked = torch.cat([w[_spread(w.numel(), each).to(w.device)].float().cpu() for w in weights])
    return picked[_spread(picked.numel(), SAMPLES)].bfloat16()


def _spread(n: int, count: int) -> Tensor:
    """`count` places from 0 to n - 1, evenly. In whole numbers: fp32 cannot tell 262,668,287 from 262,668,288."""
    return torch.arange(count) * (n - 1) // max(count - 1, 1)


def require_same_base(model: nn.Module, file: Path) -> None:
    """Raises CheckpointError where `note_base` has noted another one in the file's header."""
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
