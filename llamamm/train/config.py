"""The settings of a training run: one flat YAML file, every key explained, unknown keys refused.

    model: smollm2
    data: dialogues.jsonl
    output: runs/first
    steps: 200

Built in notebook 10.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from llamamm.errors import ConfigError
from llamamm.lora.lora import ALL_TARGETS, LoraSettings


class TrainConfig(BaseModel):
    """What to train, on what, and how. Immutable; `from_yaml` reads a file, `make` a dictionary."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, protected_namespaces=())

    output: Path = Field(description="Folder of this run: checkpoints, metrics.jsonl, run.png.")
    steps: PositiveInt = Field(description="Optimizer steps in all.")

    # ---- the model ----
    model: str | None = Field(None, description="Model to start from: Hub id, folder or asset name. Default: smollm2.")
    shape: dict[str, Any] | None = Field(
        None, description="Instead of `model`: a new random Llama of this shape (hidden_size, n_layers, ...)."
    )
    tokenizer: str | None = Field(None, description="Tokenizer's file or folder, where the model brings none.")
    method: Literal["lora", "full"] = Field("lora", description="Train an adapter beside frozen weights, or all of it.")
    adapter: Path | None = Field(None, description="Adapter folder to go on training, in place of a fresh one.")
    lora_r: PositiveInt = Field(8, description="LoRA's rank.")
    lora_alpha: float = Field(16.0, description="LoRA's strength: its output is scaled by alpha / r.", gt=0)
    lora_dropout: float = Field(0.0, description="Share of LoRA's inputs dropped in training.", ge=0, lt=1)
    lora_targets: list[str] = Field(list(ALL_TARGETS), description="Linears that get an adapter: names or patterns.")
    lora_layers: list[int] | None = Field(None, description="Numbers of the blocks to adapt. Default: all.")
    lora_rslora: bool = Field(False, description="Scale by alpha / sqrt(r), for large ranks.")
    lora_dora: bool = Field(False, description="DoRA: learn each row's length apart from its direction.")

    # ---- the data ----
    data: str | None = Field(
        None, description=".jsonl (text, messages, or prompt and response), .txt, or a dataset: datasets:NAME[:SPLIT]."
    )
    eval_data: str | None = Field(None, description="Held-out data of the same kind. Default: no evaluation.")
    length: int = Field(512, description="Tokens in a row.", ge=2)
    batch_size: PositiveInt = Field(8, description="Rows in a step, over all processes together.")
    micro_batch_size: PositiveInt | None = Field(
        None, description="Rows at once in a process: smaller takes less memory. Default: all of a step's."
    )
    pack: bool = Field(True, description="Fill rows with several texts, which do not see each other.")

    # ---- the optimizer ----
    learning_rate: float = Field(2e-4, description="Highest learning rate.", gt=0)
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="How it falls after the warm-up.")
    min_learning_rate: float = Field(0.1, description="Where it ends, as a share of the highest.", ge=0, le=1)
    warmup_steps: int = Field(10, description="Steps in which it rises from 0.", ge=0)
    weight_decay: float = Field(0.01, description="AdamW's decay, on matrices only.", ge=0)
    beta1: float = Field(0.9, description="AdamW's memory of gradients.", ge=0, lt=1)
    beta2: float = Field(0.95, description="AdamW's memory of their squares.", ge=0, lt=1)
    clip_norm: float = Field(1.0, description="Gradients longer than this are shortened to it.", gt=0)
    max_bad_steps: PositiveInt = Field(5, description="Stop after so many steps in a row with NaN or infinity.")
    seed: int = Field(0, description="Order of the data, fresh weights, dropout.", ge=0)

    # ---- the machine ----
    device: str | None = Field(None, description="cpu, cuda, mps. Default: the best there is.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the device multiplies it, fp16 with a scaler on older GPUs, else fp32."
    )
    checkpoint_activations: bool = Field(False, description="Compute activations twice: slower, far less memory.")
    parallel: Literal["ddp", "fsdp"] = Field("ddp", description="Under torchrun: copies (ddp) or shards (fsdp).")

    # ---- watching ----
    eval_every: PositiveInt = Field(50, description="Steps between evaluations.")
    eval_batches: PositiveInt = Field(8, description="Batches in an evaluation, always the same ones.")
    patience: int = Field(0, description="Stop after so many evaluations without a new best; 0: never.", ge=0)
    sample_prompts: list[str] = Field([], description="Answered by the model at each evaluation.")
    sample_tokens: PositiveInt = Field(48, description="Length of those answers.")
    save_every: PositiveInt = Field(100, description="Steps between checkpoints (output/last).")
    tensorboard: bool = Field(False, description="Write TensorBoard's files too (extra: train).")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.model and self.shape is not None:
            raise ValueError("`model` and `shape` name two models; give one of them")
        if self.shape is not None and self.method == "lora":
            raise ValueError("a new model (`shape`) is trained in full: method: full")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch_size "
                             f"{self.micro_batch_size}")  # fmt: skip
        if self.patience and not self.eval_data:
            raise ValueError("patience needs eval_data")
        return self

    @property
    def lora_settings(self) -> LoraSettings:
        return LoraSettings(self.lora_r, self.lora_alpha, self.lora_dropout, self.lora_rslora, self.lora_dora)

    @classmethod
    def make(cls, values: dict[str, Any]) -> TrainConfig:
        """From a dictionary. Raises ConfigError naming each key that is unknown or has a wrong value."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError("; ".join(_explain(e) for e in error.errors())) from None

    @classmethod
    def from_yaml(cls, path: str | Path, **changes: Any) -> TrainConfig:
        """From a YAML file, with changes on top. Paths in it are relative to where the command runs."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds no `key: value` lines")
        return cls.make({**values, **changes})

    def to_yaml(self) -> str:
        """All settings, defaults too, as a file that `from_yaml` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def explain_keys() -> str:
    """Every key with its default and what it means, one a line."""
    lines = []
    for name, info in TrainConfig.model_fields.items():
        default = "required" if info.is_required() else f"default {info.get_default()!r}"
        lines.append(f"{name} ({default}): {info.description}")
    return "\n".join(lines)


def _explain(error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, TrainConfig.model_fields, n=1)
        return f"unknown key {key!r}; " + (f"did you mean {near[0]!r}?" if near else "`llamamm train --help` lists all")
    if error["type"] == "missing":
        return f"{key!r} is missing: {TrainConfig.model_fields[key].description}"
    if not key:
        return error["msg"].removeprefix("Value error, ")
    return f"{key}: {error['msg']}, got {error['input']!r}"
