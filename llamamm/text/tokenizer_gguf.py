"""A tokenizer as the metadata of a GGUF file, which llama.cpp reads; `tokenizer_files` reads it back.

Source: ggml's docs/gguf.md. Told in notebook 19.
"""

from __future__ import annotations

from typing import Any

from llamamm.errors import TokenizerError
from llamamm.text.tokenizer import Tokenizer, _hf_json

PRE = {"gpt2": "gpt-2", "smollm": "smollm", "llama3": "llama-bpe"}  # llama.cpp's names of the rules that cut words
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


def gguf_metadata(tokenizer: Tokenizer, n_rows: int) -> dict[str, Any]:
    """What a file says of a tokenizer whose model has n_rows embeddings; rows without a token get a name.

    Raises TokenizerError for more tokens than rows, and for rules that llama.cpp does not have.
    """
    file = tokenizer._file
    if tokenizer.vocab_size > n_rows:
        raise TokenizerError(f"the tokenizer knows {tokenizer.vocab_size} tokens, the model {n_rows}: GGUF files hold "
                             f"one of each")
    if file.ignore_merges != (file.split == "llama3") or file.words:
        raise TokenizerError(f"{file.path} merges by a rule that llama.cpp does not have for {PRE[file.split]!r}")
    data = _hf_json(file)
    names = {i: name for name, i in data["model"]["vocab"].items()}
    types = dict.fromkeys(names, NORMAL)
    for token in file.added:
        names[token.id], types[token.id] = token.content, CONTROL if token.special else USER_DEFINED
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "padding": tokenizer.pad_id}
    ids |= {name: tokenizer.special_tokens.get(f"<|{name}_id|>") for name in ("eot", "eom")}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": PRE[file.split],
        "tokenizer.ggml.tokens": [names.get(i, f"[PAD{i}]") for i in range(n_rows)],
        "tokenizer.ggml.token_type": [types.get(i, UNUSED) for i in range(n_rows)],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in data["model"]["merges"]],
        "tokenizer.ggml.add_bos_token": tokenizer.adds_bos,
        **{f"tokenizer.ggml.{role}_token_id": i for role, i in ids.items() if i is not None},
        **({"tokenizer.chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}),
    }
