"""Rows of real text on which the inputs of a model's linears are seen, before they are quantized.

Any data that training reads; texts and conversations follow each other, as in training, and what does not fill a row
is left out. Used in notebook 19.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llamamm.errors import InputError
from llamamm.text.chat import chat_format
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.sources import Records, open_data

SOURCE = "asset:wiki/train.jsonl"  # where none is named
LENGTH = 512


def calibration_rows(
    tokenizer: Tokenizer, source: str | None = None, *, n_tokens: int, length: int = LENGTH
) -> Tensor:
    """At least n_tokens of a source's records, drawn the same each time, in rows: (B, length) int64; all of a source
    that is shorter. Records with pictures or sounds are left out. Raises InputError for less than a row.
    """
    source = source or SOURCE
    records = Records([(source, open_data(source), 1.0)])
    n_rows, ids = -(-n_tokens // length), []
    for index in np.random.default_rng(0).permutation(len(records)):
        record = records[int(index)]
        if record.text is not None:
            ids += tokenizer.encode(record.text, bos=tokenizer.adds_bos, eos=tokenizer.eos_id is not None)
        elif not record.media:
            ids += chat_format(tokenizer).encode(record.messages)
        if len(ids) >= n_rows * length:
            break
    if len(ids) < length:
        raise InputError(f"{source} holds {len(ids)} tokens of text, and a row of calibration is {length}: give more")
    n_rows = min(n_rows, len(ids) // length)
    return torch.tensor(ids[: n_rows * length]).view(n_rows, length)
