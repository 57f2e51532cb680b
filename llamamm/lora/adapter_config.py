"""What adapter_config.json says of an adapter: applied as `peft` computes it, or refused by name.

A setting that is ignored changes the model in silence, so every key stands in one of three places: it is read here, it
is known to change nothing (with the reason), or the adapter is refused.

Source: `LoraConfig` and `check_target_module_exists` of huggingface/peft 0.21. Told in notebook 09.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamamm.errors import CheckpointError
from llamamm.files import read_json
from llamamm.lora.settings import LoraSettings

CONFIG_FILE = "adapter_config.json"
READ = {
    "peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights", "bias",
}  # fmt: skip
HARMLESS = {
    "task_type": "which class of peft holds the model; its own head would be in modules_to_save",
    "auto_mapping": "the class of the base, for peft to build it",
    "peft_version": "who wrote the file",
    "base_model_name_or_path": "a name; whether this is that base is seen from the weights",
    "revision": "of the base's name",
    "inference_mode": "whether peft lets it train",
    "megatron_core": "a module's name, for megatron_config",
    "loftq_config": "for an init that is refused itself",
    "corda_config": "for an init that is refused itself",
    "lora_ga_config": "for an init that is refused itself",
    "eva_config": "how A began; the file holds what became of it",
    "qalora_group_size": "for use_qalora",
    "runtime_config": "where peft keeps weights while it works",
}
# How A and B began does not matter once they are trained. The other inits (pissa, olora, corda, loftq, lora_ga) take
# their first product out of the base's weights, and peft does so again when it loads the adapter.
HARMLESS_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class AdapterConfig:
    """A checked adapter_config.json: the settings that hold in general, and those of single modules."""

    folder: Path
    settings: LoraSettings
    data: dict[str, Any]

    def settings_of(self, name: str) -> LoraSettings:
        """Those of one module, by its full name in `peft`. The first pattern that fits the end of the name counts."""
        rank, alpha = (self._pattern(key, name) for key in ("rank_pattern", "alpha_pattern"))
        return replace(self.settings, r=self.settings.r if rank is None else rank,
                       alpha=self.settings.alpha if alpha is None else alpha)  # fmt: skip

    def targets(self, name: str) -> bool:
        """Whether `peft` would put an adapter on this module; it leaves out what a file holds for any other."""
        targets, excluded = self.data.get("target_modules"), self.data.get("exclude_modules")
        if excluded and self._names(excluded, name):
            return False
        if targets in (None, [], "all-linear"):
            return True
        return self._names(targets, name) and (isinstance(targets, str) or self._in_layers(name))

    def _names(self, targets: str | list[str], name: str) -> bool:
        if isinstance(targets, str):
            return self._match(re.fullmatch, targets, name) is not None
        return any(name == target or name.endswith(f".{target}") for target in targets)

    def _in_layers(self, name: str) -> bool:
        layers, patterns = self.data.get("layers_to_transform"), self.data.get("layers_pattern") or [r"[^.]*"]
        if layers is None or layers == []:
            return True
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            # the first number in the name is the layer's, any further one an expert's
            if found := self._match(re.match, rf"(?:^|.*?\.){pattern}\.(\d+)\.", name):
                return int(found[1]) in ([layers] if isinstance(layers, int) else layers)
        return False

    def _pattern(self, key: str, name: str) -> Any:
        patterns = self.data.get(key) or {}
        return next((patterns[p] for p in patterns if self._match(re.match, rf"(.*\.)?({p})$", name)), None)

    def _match(self, match: Any, pattern: str, name: str) -> re.Match[str] | None:
        try:
            return match(pattern, name)
        except re.error as error:
            raise CheckpointError(f"{self.folder}/{CONFIG_FILE}: {pattern!r} is no pattern ({error})") from None


def read_adapter(folder: str | Path) -> AdapterConfig:
    """An adapter's checked configuration. Raises CheckpointError for what we do not build, naming it."""
    data = read_adapter_config(folder)
    if data.get("peft_type") != "LORA":
        raise CheckpointError(f"{folder} holds an adapter of type {data.get('peft_type')}; this package has LoRA")
    known = READ.union(HARMLESS)
    other = sorted(k for k, v in data.items() if k not in known and v not in (None, False, [], {}, ""))
    if data.get("bias", "none") not in (None, "none"):
        other.append("bias")
    if other:
        raise CheckpointError(f"{folder} was made with {', '.join(f'{k}={data[k]!r}' for k in other)}, "
                              f"which this package does not have")
    init = data.get("init_lora_weights")
    if init not in HARMLESS_INITS:
        raise CheckpointError(
            f"{folder} was made with init_lora_weights={init!r}, which changes the base's weights too; save it with "
            f"peft's path_initial_model_for_weight_conversion, which makes an ordinary adapter of it"
        )
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(data.get(key) or {}, dict):
            raise CheckpointError(f"{folder}/{CONFIG_FILE}: {key} must be a table of names, got {data[key]!r}")
    try:
        settings = LoraSettings(data["r"], data["lora_alpha"], data.get("lora_dropout") or 0.0,
                                bool(data.get("use_rslora")), bool(data.get("use_dora")))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}/{CONFIG_FILE} lacks or misstates {error}") from None
    return AdapterConfig(Path(folder), settings, data)


def read_settings(folder: str | Path) -> LoraSettings:
    """An adapter's rank, alpha and options. Raises CheckpointError for another kind of adapter than we build."""
    return read_adapter(folder).settings


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """The content of adapter_config.json. Raises CheckpointError where it is missing or no JSON object."""
    return read_json(Path(folder) / CONFIG_FILE, owner="an adapter")
