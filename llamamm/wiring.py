"""Finding the linears of a model by name or pattern, and putting another module in the place of one.

Used by LoRA, which stands around linears from outside. Used in notebook 09.
"""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase

from torch import nn

from llamamm.errors import ConfigError


def find_linears(
    model: nn.Module,
    targets: str | Collection[str],
    layers: Collection[int] | None = None,
    *,
    wrapper: type[nn.Module] = nn.Linear,
    shared: bool = False,
) -> list[str]:
    """Paths of the linears that targets and layers name, such as "layers.0.mlp.up_proj".

    targets: a linear's name, the end of its path, or a pattern with *; layers: numbers of blocks, None for all.
    wrapper: a class that stands around some linears already; what is inside it counts as one linear.
    shared=True includes linears whose weight another module uses too, as a tied head does.
    Raises ConfigError where a target or a layer names none, or a shared one.
    """
    wrapped = {path for path, module in model.named_modules() if isinstance(module, wrapper)}
    linears = [
        path for path, module in model.named_modules()
        if path and isinstance(module, nn.Linear | wrapper) and path.rpartition(".")[0] not in wrapped
    ]
    if not linears:
        raise ConfigError(f"{type(model).__name__} has no linear to adapt")
    targets = [targets] if isinstance(targets, str) else list(targets)
    unknown = [t for t in targets if not any(_matches(path, t) for path in linears)]
    if unknown or not targets:
        names = sorted({path.rpartition(".")[2] for path in linears})
        raise ConfigError(f"no linear is called {', '.join(unknown) or 'nothing'}; there are {', '.join(names)}")
    found = [path for path in linears if any(_matches(path, t) for t in targets)]
    if layers is not None:
        numbers = {_layer_of(path) for path in found} - {None}
        missing = sorted(set(layers) - numbers)
        if missing or not layers:
            span = f"{min(numbers)} to {max(numbers)}" if numbers else "no layer"
            raise ConfigError(f"there is no layer {', '.join(map(str, missing))}; the targets are in {span}")
        found = [path for path in found if _layer_of(path) in set(layers)]
    twice = [] if shared else [path for path in found if _is_shared(model, path)]
    if twice:
        raise ConfigError(f"{twice[0]} shares its weight with another module: merging would part the two")
    return found


def put_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of the one at `path`."""
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def _matches(path: str, target: str) -> bool:
    return path == target or path.endswith("." + target) or fnmatchcase(path, target)


def _layer_of(path: str) -> int | None:
    return next((int(part) for part in path.split(".") if part.isdecimal()), None)


def _is_shared(model: nn.Module, path: str) -> bool:
    weight = model.get_submodule(path).weight
    return sum(p is weight for _, p in model.named_parameters(remove_duplicate=False)) > 1
