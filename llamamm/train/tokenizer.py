"""A tokenizer of one's own, made from the texts of a training. Used in notebook 14."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from llamamm.errors import MissingDependencyError
from llamamm.text.tokenizer import Tokenizer

SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def train_tokenizer(texts: Iterable[str], folder: Path, *, vocab_size: int) -> Tokenizer:
    """A byte-level BPE with Llama 3's special tokens, made of these texts, in `folder`. Raises
    MissingDependencyError without the tokenizers package."""
    try:
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers
    except ImportError:
        raise MissingDependencyError("training a tokenizer needs the tokenizers package: "
                                     "pip install 'llamamm[train]'") from None
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL), show_progress=False,
                                  initial_alphabet=alphabet)  # fmt: skip
    library.train_from_iterator(texts, trainer)
    library.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)
