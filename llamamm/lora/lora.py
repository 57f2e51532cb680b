"""LoRA: tune a large frozen matrix by training two thin ones beside it.

    y = W x + scale * B (A x)      W (N, C) frozen, A (r, C), B (N, r), scale = alpha / r

B starts at zero, so a fresh adapter changes nothing. One model can carry several adapters by name, of which one is
active; switching one off, or to another, copies no weights. Merging adds scale * B A to W, after which the adapter
costs nothing; W is kept aside, so unmerging gives it back exactly. Merging unties a tied head: reading must not change.

The wrapper stands around any `nn.Linear` from outside: no layer knows of it.

Sources: LoRA, arXiv:2106.09685; rsLoRA, arXiv:2312.03732; DoRA, arXiv:2402.09353. Built in notebook 09.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.errors import ConfigError, counted
from llamamm.lora.settings import ALL_TARGETS, LoraSettings
from llamamm.wiring import find_linears, put_module

DEFAULT = "default"


class LoraLinear(nn.Module):
    """A frozen linear and its adapters. (..., C) -> (..., N).

    lora_a[name] is (r, C), lora_b[name] (N, r). Both begin in fp32 beside half-precision weights, since steps are too
    small for bf16; a `model.to(dtype)` afterwards casts them too. With DoRA, lora_magnitude[name] (N,) is the length
    of each row of the weight, learned apart from direction.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a, self.lora_b, self.lora_magnitude = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        self.settings: dict[str, LoraSettings] = {}
        self.active = ""
        self.enabled = True
        # While merged: the weight that is not in use, the base's own or, with the adapter switched off, the merged one.
        # Whole parameters change places, so that merging unties a tied head. In a list, lest it be saved and counted.
        self._other: list[nn.Parameter] = []
        self.train(base.training)  # put on a model that answers, it drops nothing

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    @property
    def weight(self) -> Tensor:
        """The weight in use, (N, C)."""
        return self.base.weight

    @property
    def merged(self) -> bool:
        return bool(self._other)

    def add(self, name: str, settings: LoraSettings, *, generator: torch.Generator | None = None) -> None:
        """A fresh adapter beside the others: A random, B zero."""
        w = self.base.weight
        dtype = torch.float32 if w.dtype in (torch.float16, torch.bfloat16) else w.dtype
        bound = 1 / math.sqrt(self.in_features)  # what nn.Linear starts with
        a = torch.empty(settings.r, self.in_features, dtype=dtype).uniform_(-bound, bound, generator=generator)
        device = a.device if w.is_meta else w.device  # a weight on "meta" is read later, or never
        self.lora_a[name] = nn.Parameter(a.to(device))
        self.lora_b[name] = nn.Parameter(torch.zeros(self.out_features, settings.r, dtype=dtype, device=device))
        if settings.dora:
            self.lora_magnitude[name] = nn.Parameter(w.detach().to(dtype).norm(dim=1))
        self.settings[name] = settings

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if self.merged or not self.enabled:
            return y
        a, b, settings = self.lora_a[self.active], self.lora_b[self.active], self.settings[self.active]
        inner = F.linear(F.dropout(x, settings.dropout, self.training).to(a.dtype), a) * settings.scale  # (..., r)
        y = y + F.linear(inner, b).to(y.dtype)
        if settings.dora:
            bias = 0 if self.base.bias is None else self.base.bias  # has no length to learn
            y = (y - bias) * self._stretch().to(y.dtype) + bias
        return y

    def parameters_of(self, name: str) -> list[nn.Parameter]:
        """One adapter's parameters; none where this linear lacks it."""
        return [part[name] for part in (self.lora_a, self.lora_b, self.lora_magnitude) if name in part]

    def merged_weight(self) -> Tensor:
        """The base's weight with the active adapter in it, (N, C). Summed in the adapter's precision."""
        w = self.own_weight()
        updated = w.to(self.lora_a[self.active].dtype) + self._delta()
        if self.settings[self.active].dora:
            updated = updated * self._stretch()[:, None]
        return updated.to(w.dtype)

    def own_weight(self) -> Tensor:
        """The base's weight without any adapter, merged or not."""
        return (self._other[0] if self.merged and self.enabled else self.base.weight).detach()

    def set_enabled(self, enabled: bool) -> None:
        """Off: exactly the base."""
        if self.merged and enabled != self.enabled:
            self._swap()
        self.enabled = enabled

    def merge(self) -> None:
        """Put the active adapter into the weight; a second call changes nothing."""
        if not self.merged:
            if "weight" not in self.base._parameters:
                raise ConfigError("weights of 8 or 4 bits take no adapter into them: leave it beside them, or merge it "
                                  "into the whole weights first")
            self._other = [nn.Parameter(self.merged_weight(), requires_grad=False)]
            if self.enabled:
                self._swap()

    def unmerge(self) -> None:
        """Back to the base's own weight, bit for bit."""
        if self.merged:
            if self.enabled:
                self._swap()
            self._other = []

    def _swap(self) -> None:
        self.base.weight, self._other[0] = self._other[0], self.base.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LoraLinear:
        super()._apply(fn, recurse)
        for weight in self._other:  # which PyTorch does not see: it goes along to another device or dtype
            weight.data = fn(weight.data)
        return self

    def _delta(self) -> Tensor:
        return self.settings[self.active].scale * (self.lora_b[self.active] @ self.lora_a[self.active])

    def _stretch(self) -> Tensor:
        """DoRA: each row's learned length over the length it has. (N,). No gradient flows through the latter."""
        own = self.own_weight().to(self.lora_a[self.active].dtype)
        with torch.no_grad():
            length = (own + self._delta()).norm(dim=1)
        return self.lora_magnitude[self.active] / length

    def extra_repr(self) -> str:
        return f"active={self.active!r}, enabled={self.enabled}, merged={self.merged}"


# ---- a whole model ----

def apply_lora(
    model: nn.Module,
    *,
    r: int,
    alpha: float,
    dropout: float = 0.0,
    targets: str | Collection[str] | None = None,
    layers: Collection[int] | None = None,
    rslora: bool = False,
    dora: bool = False,
    name: str = DEFAULT,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Give linears of a model an adapter, freeze all else, and return the model. The adapter `name` becomes active.

    targets: names of linears ("q_proj", "self_attn.q_proj", "layers.0.mlp.up_proj") or patterns ("*attn*"), wherever
    they are. None: all seven of each block of the Llama; of a model that sees or hears, no tower and no bridge.
    layers: numbers of blocks; None for all. generator: makes A, by default PyTorch's global one.
    Raises ConfigError where a target or layer does not exist, or `name` does already.
    """
    settings = LoraSettings(r, alpha, dropout, rslora, dora)
    linears = find_linears(model, _default_targets(model) if targets is None else targets, layers, wrapper=LoraLinear)
    check_adapter_name(model, name)
    _require_unmerged(model)
    for path in linears:
        wrap_linear(model, path).add(name, settings, generator=generator)
    set_adapter(model, name)
    return model


def set_adapter(model: nn.Module, name: str) -> None:
    """Make one adapter the active one: it alone is used, and it alone trains. Raises ConfigError."""
    modules = _require_lora(model)
    _require_adapter(model, name)
    _require_unmerged(model)
    model.requires_grad_(False)
    for module in modules.values():
        module.active = name if name in module.settings else ""
        module.enabled = bool(module.active)
        for parameter in module.parameters_of(name):
            parameter.requires_grad_(True)


def set_lora_enabled(model: nn.Module, enabled: bool) -> None:
    """Switch the active adapter on or off. Off, the model equals its base bit for bit, merged or not."""
    for module in _require_lora(model).values():
        module.set_enabled(enabled and bool(module.active))


def merge_lora(model: nn.Module, *, keep_base: bool = True) -> None:
    """Add the active adapter to the weights it tunes. Merging what is merged changes nothing.

    keep_base=True keeps the base's weights aside, which takes their memory again, for `unmerge_lora`. False drops them
    and the adapters: what is left is an ordinary model, all of whose parameters train.
    Raises ConfigError, with nothing merged, where a result would hold NaN or infinity.
    """
    modules = {path: m for path, m in _require_lora(model).items() if m.active}
    bad = [path for path, m in modules.items() if not m.merged and not m.merged_weight().isfinite().all()]
    if bad:
        raise ConfigError(f"merging would put NaN or infinity into {counted(len(bad), 'weight')}, such as {bad[0]}: "
                          f"not done; the adapter is damaged, or was trained until it broke: take an earlier one")
    for module in modules.values():
        module.merge()
    if not keep_base:
        set_lora_enabled(model, True)
        remove_lora(model)


def unmerge_lora(model: nn.Module) -> None:
    """Take the adapter out of the weights again, exactly. Unmerging what is not merged changes nothing."""
    for module in _require_lora(model).values():
        module.unmerge()


def delete_adapter(model: nn.Module, name: str) -> None:
    """Drop an adapter. If it was the active one, the first that is left becomes it; with the last, the wrappers go.

    Adapters that were switched off stay off. Raises ConfigError.
    """
    modules = _require_lora(model)
    _require_adapter(model, name)
    unmerge_lora(model)
    active = next((m.active for m in modules.values() if m.active), "")
    enabled = any(m.enabled for m in modules.values() if m.active)
    for path, module in modules.items():
        for part in (module.lora_a, module.lora_b, module.lora_magnitude, module.settings):
            if name in part:
                del part[name]
        if not module.settings:
            put_module(model, path, module.base)
    left = adapter_names(model)
    if left:
        set_adapter(model, active if active in left else left[0])
        if not enabled:
            set_lora_enabled(model, False)
    else:
        model.requires_grad_(True)


def remove_lora(model: nn.Module) -> None:
    """Put every linear back in its wrapper's place, with the weight that is in use; all parameters train again."""
    for path, module in _require_lora(model).items():
        put_module(model, path, module.base)
    if hasattr(model, "full_config"):  # merging may have given a tied head a matrix of its own
        model.cfg = model.cfg.replace(tie_embeddings=model.lm_head.weight is model.embed_tokens.weight)
    model.requires_grad_(True)


# ---- looking at a model ----

def lora_modules(model: nn.Module) -> dict[str, LoraLinear]:
    """The wrapped linears by their path, such as "layers.0.self_attn.q_proj"."""
    return {path: m for path, m in model.named_modules() if isinstance(m, LoraLinear)}


def adapter_names(model: nn.Module) -> list[str]:
    """Names of all adapters, the first added first."""
    return list(dict.fromkeys(name for m in lora_modules(model).values() for name in m.settings))


def plain_state_dict(model: nn.Module, *, own: bool = False) -> dict[str, Tensor]:
    """The state of a model under the names it has without wrappers, with the weights that are in use.

    own=True: the base's own weights, also where an adapter is merged into them.
    """
    state = model.state_dict()
    plain = {name.replace(".base.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}
    if own:
        plain.update({f"{path}.weight": module.own_weight() for path, module in lora_modules(model).items()
                      if f"{path}.weight" in plain})  # whole numbers have none
    return plain


def wrap_linear(model: nn.Module, path: str) -> LoraLinear:
    """The wrapper at a path, put there if it is not yet."""
    module = model.get_submodule(path)
    if not isinstance(module, LoraLinear):
        module = LoraLinear(module)
        put_module(model, path, module)
    return module


def check_adapter_name(model: nn.Module, name: str) -> None:
    """Raises ConfigError for a name that is taken or cannot be one."""
    if not name.isidentifier():
        raise ConfigError(f"an adapter's name is made of letters, digits and _, got {name!r}")
    if name in adapter_names(model):
        raise ConfigError(f"the model has an adapter {name!r} already: choose another name, or delete_adapter first")


def _default_targets(model: nn.Module) -> list[str]:
    """ALL_TARGETS in the text model's blocks, where it has such; else wherever they are."""
    blocks = isinstance(getattr(model, "layers", None), nn.ModuleList)
    return [f"layers.*.{name}" if blocks else name for name in ALL_TARGETS]


def _require_lora(model: nn.Module) -> dict[str, LoraLinear]:
    modules = lora_modules(model)
    if not modules:
        raise ConfigError("the model has no LoRA adapter: apply_lora(model, r=8, alpha=16) gives it one")
    return modules


def _require_adapter(model: nn.Module, name: str) -> None:
    if name not in adapter_names(model):
        raise ConfigError(f"there is no adapter {name!r}; the model has {', '.join(adapter_names(model))}")


def _require_unmerged(model: nn.Module) -> None:
    if any(m.merged for m in lora_modules(model).values()):
        raise ConfigError("an adapter is merged into the weights: unmerge_lora(model) first")
