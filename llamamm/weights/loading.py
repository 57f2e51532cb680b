"""Putting tensors into a model: first everything is compared, then everything is copied, so that nothing is half done.

Built in notebook 07.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llamamm.errors import CheckpointError, ConfigError, counted
from llamamm.text.config import TextConfig, parse_dtype
from llamamm.text.model import Llama3Model
from llamamm.weights.names import to_our_names
from llamamm.weights.tensors import TensorRef, refs_of

M = TypeVar("M", bound=nn.Module)


def load_weights_into_llama(
    model: Llama3Model,
    cfg: TextConfig,
    params: Mapping[str, Tensor],
    *,
    strict: bool = True,
    cast: bool = False,
) -> None:
    """Copy `params`, under Hugging Face's, Meta's or GGUF's names, into a model built from `cfg`.

    strict=False leaves out what is missing or unexpected; wrong shapes are never accepted.
    cast=True converts to the model's dtype; without it another dtype is an error.
    Raises CheckpointError listing every key that does not fit, before any weight changes.
    """
    if cfg != model.cfg:
        raise ConfigError(f"the model was built from another configuration:\n  {model.cfg}\n  {cfg}")
    refs = match(to_our_names(refs_of(params), cfg), model, strict=strict)
    if not cast:
        _require_dtype(refs, model.embed_tokens.weight.dtype)
    targets = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, ref in refs.items():
            targets[name].copy_(ref.read())


def build_from_refs(
    cfg: TextConfig,
    refs: Mapping[str, TensorRef],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int], None] | None = None,
) -> Llama3Model:
    """A model made directly from a checkpoint's tensors, one at a time: no random weights, no second copy.

    dtype: what to cast to; None keeps what the file holds, which must then be one dtype.
    on_progress: called with the bytes of each tensor, once it is in place.
    A head in the file that differs from the embedding is kept, also where cfg says that the two are tied.
    """
    named = to_our_names(refs, cfg)
    cfg = cfg.replace(dtype=dtype or only_dtype(named), tie_embeddings=cfg.tie_embeddings and not has_own_head(named))
    model = fill(lambda: Llama3Model(cfg), named, dtype=cfg.dtype, device=device, on_progress=on_progress)
    if cfg.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model.to(device).eval()  # `to` moves the RoPE table; the weights are there already


def fill(
    make: Callable[[], M],
    named: Mapping[str, TensorRef],
    *,
    dtype: torch.dtype | None,
    device: torch.device | str,
    on_progress: Callable[[int], None] | None = None,
) -> M:
    """The module that `make` builds, its parameters read one by one. `named`: tensors under the module's own names.

    dtype: what to cast to; None: each keeps its own.
    """
    with torch.device("meta"), _SkipInit():  # shapes without memory
        model = make()
    for name, ref in match(named, model).items():
        tensor = ref.read().to(device=device, dtype=dtype)
        module_name, _, attribute = name.rpartition(".")
        module = model.get_submodule(module_name)
        trains = getattr(module, attribute).requires_grad
        setattr(module, attribute, torch.nn.Parameter(tensor, requires_grad=trains))
        if on_progress is not None:
            on_progress(tensor.nbytes)
    return model


def match(refs: Mapping[str, TensorRef], model: nn.Module, *, strict: bool = True) -> dict[str, TensorRef]:
    """The references that fit the model's parameters, by name. Raises CheckpointError with every one that does not.

    A tied model accepts a checkpoint with a head equal to the embedding or without; another head is an error.
    """
    expected = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    if hasattr(model, "lm_head") and model.lm_head.weight is model.embed_tokens.weight:
        if has_own_head(refs):
            raise CheckpointError("the checkpoint has an lm_head.weight of its own, the model's head is its embedding: "
                                  "build it with tie_embeddings=False. Nothing was loaded")
        expected.pop("lm_head.weight")
        refs = {name: ref for name, ref in refs.items() if name != "lm_head.weight"}
    wrong = [
        f"{name}: the checkpoint has {refs[name].shape}, the model {shape}"
        for name, shape in expected.items()
        if name in refs and refs[name].shape != shape
    ]
    missing = [name for name in expected if name not in refs]
    unexpected = [refs[name].name for name in refs if name not in expected]
    problems = [*_listing("wrong shape", wrong)]
    if strict:
        problems += [*_listing("missing", missing), *_listing("unexpected", unexpected), *_front(refs, missing)]
    if problems:
        raise CheckpointError("the checkpoint does not fit the model, nothing was loaded\n" + "\n".join(problems))
    return {name: refs[name] for name in expected if name in refs}


class _SkipInit(TorchFunctionMode):
    """Leave out `torch.nn.init`: every weight is about to be replaced."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ARG002 (PyTorch's signature)
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _listing(title: str, names: list[str], *, limit: int = 10) -> list[str]:
    more = [f"  ... and {len(names) - limit} more"] if len(names) > limit else []
    return [f"{title} ({len(names)}):", *(f"  {name}" for name in names[:limit]), *more] if names else []


def has_own_head(refs: Mapping[str, TensorRef]) -> bool:
    """Whether tensors under our names hold a head that is not the embedding once more."""
    head, embedding = refs.get("lm_head.weight"), refs.get("embed_tokens.weight")
    if head is None or embedding is None or head.shape != embedding.shape:
        return head is not None and embedding is not None
    a, b = head.read(), embedding.read()
    return not torch.equal(a, b.to(a.device, a.dtype))


def _front(refs: Mapping[str, TensorRef], missing: list[str]) -> list[str]:
    """A line of advice where all that is missing is there under names with something before them."""
    if not missing:
        return []
    fronts = {name.removesuffix(missing[0]) for name in refs if name.endswith("." + missing[0])}
    fronts = [front for front in fronts if all(front + name in refs for name in missing)]
    return [f"the checkpoint has them with {fronts[0]!r} before their names: take it off"] if fronts else []


def only_dtype(refs: Mapping[str, TensorRef]) -> torch.dtype:
    """The dtype that all tensors have. Raises CheckpointError where they differ."""
    dtypes = {ref.dtype for ref in refs.values()}
    if len(dtypes) != 1:
        found = " and ".join(sorted(map(str, dtypes))) or "no tensors"
        raise CheckpointError(f"the checkpoint holds {found}; say which dtype to load it in (dtype=...)")
    return dtypes.pop()


def choose_dtype(
    asked: torch.dtype | None, refs: Mapping[str, TensorRef], data: Mapping[str, Any]
) -> torch.dtype | None:
    """What was asked for; else, where the tensors have several dtypes, what a config.json's content names, if it does.

    None: keep the file's own.
    """
    if asked is not None or len({ref.dtype for ref in refs.values()}) == 1:
        return asked
    parts = [data, *(data[key] for key in ("text_config", "vision_config") if isinstance(data.get(key), Mapping))]
    named = [part[key] for part in parts for key in ("dtype", "torch_dtype") if part.get(key)]
    return parse_dtype(named[0]) if named else None


def _require_dtype(refs: Mapping[str, TensorRef], dtype: torch.dtype) -> None:
    other = [ref for ref in refs.values() if ref.dtype != dtype]
    if other:
        raise CheckpointError(
            f"not {dtype}: {counted(len(other), 'tensor')}, such as {other[0].name} in {other[0].dtype}; "
            f"pass cast=True to convert them, or build the model with that dtype"
        )
