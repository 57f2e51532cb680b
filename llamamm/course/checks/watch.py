"""What an answer does while it is tried: which functions of PyTorch it calls, what it was given, what it returns."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

from torch.overrides import TorchFunctionMode


class Watch(TorchFunctionMode):
    """Notices which of the named functions of PyTorch an answer calls, what it returns, and where it raises."""

    def __init__(self, names: Collection[str] = ()) -> None:
        super().__init__()
        self.names, self.seen = frozenset(names), ""
        self.n_returned = self.n_nothing = 0  # calls that came back; those that gave None
        self.given: tuple | None = None  # the arguments of the call that goes on

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ARG002
        name = getattr(func, "__name__", "")
        if name in self.names:
            self.seen = self.seen or name
        return func(*args, **(kwargs or {}))

    @property
    def returns_nothing(self) -> bool:
        return 0 < self.n_returned == self.n_nothing

    def over(self, answer: Any) -> Any:
        """The answer, watched. A class is watched nowhere: its methods are called from elsewhere."""
        if inspect.isclass(answer) or not (self.names or inspect.isroutine(answer)):
            return answer

        @functools.wraps(answer)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.given = args
            with self if self.names else nullcontext():
                result = answer(*args, **kwargs)
            self.given = None
            self.n_returned, self.n_nothing = self.n_returned + 1, self.n_nothing + (result is None)
            return result

        return watched
