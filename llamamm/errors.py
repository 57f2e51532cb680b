"""The errors a user can cause, each with a name.

Every message holds the two things that disagree (numbers or names) and the remedy. They all derive from
`LlamammError`, so that the command line can print them as one line; most are also a `ValueError` or an
`OSError`, so that ordinary code can catch them without knowing this package.
"""


class LlamammError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigError(LlamammError, ValueError):
    """A model configuration that cannot be built."""


class CheckpointError(LlamammError, ValueError):
    """A weights file or folder that is damaged, unsafe or not for this model."""


class TokenizerError(LlamammError, ValueError):
    """A tokenizer file that cannot be read, or ids that it does not know."""


class InputError(LlamammError, ValueError):
    """Token ids, messages or tensors that the model cannot take."""


class ContextOverflowError(InputError):
    """More tokens than the context, the KV cache or the RoPE table holds."""


class SamplingError(LlamammError, ValueError):
    """A sampling setting outside its range."""


class FetchError(LlamammError, OSError):
    """A download that cannot be made: gated, unknown, offline, or not what its hash says."""


class WriteError(LlamammError, OSError):
    """A file or folder that cannot be written: full disk, no permission, a file where a folder should be."""


class MissingDependencyError(LlamammError, ImportError):
    """An optional package is needed; the message says which extra brings it."""


class TrainingError(LlamammError, ArithmeticError):
    """A run that cannot go on: losses or gradients that stay NaN, or a checkpoint that is not this run's."""


def counted(n: int, what: str) -> str:
    """A number and its noun: "1 tensor", "2 tensors", "12,000 tensors"."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def require_whole(name: str, value: object, *, least: int = 1) -> None:
    """Raises ConfigError, with the setting's name, where value is no whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
