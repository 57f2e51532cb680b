"""Tokenizer: text to token ids and back, exactly as the models were trained.

A model never sees letters. Byte-pair encoding cuts text into words, starts each from its bytes, and merges the
neighbours that training saw together most often; as bytes are tokens too, no text is unknown. The work is
done by `tiktoken`; around it stands what a program needs that must not break: special tokens typed by a user stay
text, megabytes without a space end in bounded time, and a stream never shows half a character.

Source: "Neural Machine Translation of Rare Words with Subword Units", arXiv:1508.07909; GPT-2's byte-level variant;
Meta's llama-models 0.3.0. Built in notebook 01.
"""

from __future__ import annotations

import codecs
import json
import operator
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import tiktoken

from llamamm.errors import TokenizerError
from llamamm.files import write_file
from llamamm.text.added_tokens import AddedTokens
from llamamm.text.tokenizer_files import (
    BYTE_TO_CHAR,
    PRE_TOKENIZERS,
    SPLIT_PATTERNS,
    TokenizerFile,
    read_tokenizer_file,
)

# Meta's two limits. They change the ids of very long runs, so they are part of Llama 3's tokenizer.
META_MAX_CHARS = 400_000
META_MAX_RUN = 25_000

# tiktoken's regex engine panics after a million steps back, which one run of whitespace can cause; far below that
# the words are cut by Python's engine, which is given the same rules and has no such limit.
MAX_WHITESPACE_RUN = 100_000

MAX_ID = 2**31  # no model has so many rows


class Tokenizer:
    """Text <-> ids for Llama 3, SmolLM2 and GPT-2 style byte-level BPE.

    path: `tokenizer.model` (Meta), `tokenizer.json` (Hugging Face), a `.gguf`, or a folder that holds one.
    Raises TokenizerError for a file that is missing, damaged or of another kind.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file: TokenizerFile = read_tokenizer_file(Path(path))
        file = self._file
        self.special_tokens: dict[str, int] = dict(file.special)
        self.added_tokens: dict[str, int] = {token.content: token.id for token in file.added}  # special ones too
        self.vocab_size: int = max(file.tokens) + 1
        self.bos_id: int | None = file.bos_id
        self.eos_id: int | None = file.eos_id
        self.pad_id: int | None = file.pad_id
        self.stop_ids: frozenset[int] = file.stop_ids  # any of them ends an answer
        self.chat_template: str | None = file.chat_template
        self.template_tokens: dict[str, str] = dict(file.roles)  # what the chat template may name: "bos_token", ...
        # Whether the model was trained on texts that begin with bos: Llama 3 was, SmolLM2 was not.
        self.adds_bos: bool = file.adds_bos
        self.chat_formats: dict[str, Any] = {}  # template -> what `chat_format` found for it
        self._added = AddedTokens(file.added)
        self._words = {t: i for t, i in file.words.items() if i not in self.special_tokens.values()}

        # SmolLM2's vocabulary lacks 21 bytes that its training text did not have.
        missing = bytes(b for b in range(256) if bytes([b]) not in file.ranks)
        self._missing = re.compile(b"([" + re.escape(missing) + b"])") if missing else None
        self._bpe = tiktoken.Encoding(file.path.name, pat_str=SPLIT_PATTERNS[file.split], mergeable_ranks=file.ranks,
                                      special_tokens={})

    # ---- text -> ids ----

    def encode(self, text: str, *, bos: bool = False, eos: bool = False,
               allowed_special: Collection[str] = ()) -> list[int]:
        """Ids of `text`. Names of special tokens in it are plain text, unless listed in `allowed_special` (or "all").

        Added tokens that are not special are vocabulary, found anywhere. Lone surrogates become U+FFFD.
        Raises TokenizerError for a token asked for that this tokenizer lacks.
        """
        if not isinstance(text, str):
            raise TokenizerError(f"encode takes one str, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError:  # surrogates: pairs join to their character, halves are replaced
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        allowed = self._allowed(allowed_special)
        ids = [self._role("bos")] if bos else []
        for chunk in _meta_chunks(text) if self._file.meta else [text]:
            for part in self._added.split(chunk, special=allowed):
                ids += [part] if isinstance(part, int) else self.encode_ordinary(part)
        return [*ids, self._role("eos")] if eos else ids

    def split(self, text: str) -> list[str | int]:
        """`text` with the ids of all added tokens, special ones too, in their places."""
        return self._added.split(text, special=self.special_tokens)

    def encode_ordinary(self, text: str) -> list[int]:
        """Ids of a text in which no added token is looked for, special or not."""
        long = any(m.end() - m.start() > MAX_WHITESPACE_RUN for m in re.finditer(r"\s{64,}", text))
        if not long and not self._words and not (self._missing and self._missing.search(text.encode())):
            return self._bpe.encode_ordinary(text)
        ids: list[int] = []
        for word in _python_pattern(self._file.split).findall(text):
            ids += self._encode_word(word.encode())
        return ids

    def _encode_word(self, word: bytes) -> list[int]:
        """As `tokenizers` does it: a missing byte is left out and its neighbours may merge, or it becomes unk_id."""
        if word in self._words:
            return [self._words[word]]
        parts = self._missing.split(word) if self._missing else [word]
        if self._file.unk_id is None:
            kept = b"".join(parts[::2])
            return self._bpe._encode_single_piece(kept) if kept else []
        ids: list[int] = []
        for n, part in enumerate(parts):
            ids += [self._file.unk_id] if n % 2 else self._bpe._encode_single_piece(part) if part else []
        return ids

    def _allowed(self, names: Collection[str]) -> Collection[str]:
        if names == "all":
            names = self.special_tokens
        elif isinstance(names, str):  # a string is a collection too: of its letters
            raise TokenizerError(f'allowed_special is a collection of names or "all", got the string {names!r}')
        unknown = [name for name in names if name not in self.special_tokens]
        if unknown:
            raise TokenizerError(f"{unknown} in allowed_special are no special tokens of {self._file.path}")
        return names

    def _role(self, role: str) -> int:
        token_id = getattr(self, f"{role}_id")
        if token_id is None:
            raise TokenizerError(f"{self._file.path} names no {role} token; encode with {role}=False")
        return token_id

    # ---- ids -> text ----

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one id; those of a special token are its name. Raises TokenizerError for an unknown id."""
        try:
            return self._file.tokens[operator.index(token_id)]
        except (TypeError, KeyError):
            raise TokenizerError(f"id {token_id!r} is not a token: the vocabulary holds whole numbers from 0 to "
                                 f"{self.vocab_size - 1} (size {self.vocab_size})") from None

    def is_gap(self, token_id: int) -> bool:
        """Whether this is an id that has no token: between the others or past them."""
        try:
            token_id = operator.index(token_id)
        except TypeError:
            return False
        return 0 <= token_id < MAX_ID and token_id not in self._file.tokens

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD. Raises TokenizerError for what cannot be an id.

        An id without a token is no text: models have more rows than the vocabulary, filled up to a round number.
        """
        decoder = self.stream_decoder(skip_special=skip_special)
        return "".join([decoder.push(token_id) for token_id in ids]) + decoder.flush()

    def stream_decoder(self, *, skip_special: bool = False) -> StreamDecoder:
        """A decoder for ids that arrive one at a time."""
        return StreamDecoder(self, skip_special=skip_special)

    # ---- saving ----

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which `transformers.AutoTokenizer` loads.

        There, special tokens inside text are control tokens; `split_special_tokens=True` gives this class's ids.
        """
        file, folder = self._file, Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        names = {token.id: token.content for token in file.added}
        config |= self.template_tokens
        for role in ("bos", "eos", "pad"):
            # A template that could name a token which its model never had would write it.
            if self.chat_template is None and getattr(self, f"{role}_id") in names:
                config[f"{role}_token"] = names[getattr(self, f"{role}_id")]
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        write_file(folder / "tokenizer.json", json.dumps(_hf_json(file), ensure_ascii=False))
        write_file(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False))


class StreamDecoder:
    """Turns ids into text as they come, holding back the bytes of a character that is not complete."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skipped = frozenset(tokenizer.special_tokens.values()) if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes, which may be empty. Raises TokenizerError for what cannot be an id."""
        if self._tokenizer.is_gap(token_id):
            return ""
        piece = self._tokenizer.token_bytes(token_id)
        return "" if operator.index(token_id) in self._skipped else self._utf8.decode(piece)

    def flush(self) -> str:
        """The rest: U+FFFD where the stream ended inside a character, else nothing. The decoder starts anew."""
        return self._utf8.decode(b"", final=True)


# ---- cutting text ----


def _meta_chunks(text: str) -> Iterator[str]:
    """Pieces of at most 400,000 characters, cut again so that no run of (non-)whitespace is over 25,000."""
    for start in range(0, len(text), META_MAX_CHARS):
        chunk, begin = text[start : start + META_MAX_CHARS], 0
        for run in re.finditer(r"\s+|\S+", chunk):
            for cut in range(run.start() + META_MAX_RUN, run.end(), META_MAX_RUN):
                yield chunk[begin:cut]
                begin = cut
        yield chunk[begin:]


@cache
def _python_pattern(split: str) -> re.Pattern[str]:
    r"""The split rule for Python's `re`, which knows no \p{L}; its \s and Unicode version differ from tiktoken's."""
    classes = {name: _ranges(name) for name in (r"\p{L}", r"\p{N}", r"\s")}
    whitespace = classes[r"\s"]

    def spell(match: re.Match[str]) -> str:
        text = match[0]
        if text == r"\S":
            return f"[^{whitespace}]"
        for name, members in classes.items():
            text = text.replace(name, members if match[0].startswith("[") else f"[{members}]")
        return text

    return re.compile(re.sub(r"\[[^\]]*\]|\\p\{\w\}|\\s|\\S", spell, SPLIT_PATTERNS[split]))


def _ranges(name: str) -> str:
    """The characters that tiktoken's engine counts to a class, as the inside of a Python regex [class]."""
    single = {bytes([b]): b for b in range(256)}
    ask = tiktoken.Encoding(name, pat_str=name, mergeable_ranks=single, special_tokens={})
    characters = "".join(chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF)
    ranges: list[list[int]] = []
    for c in map(ord, bytes(ask.encode_ordinary(characters)).decode()):  # what a pattern does not match is dropped
        if ranges and c == ranges[-1][1] + 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


# ---- tokenizer.json ----

ADDED_KEYS = ("id", "content", "single_word", "lstrip", "rstrip", "normalized", "special")  # as `tokenizers` writes


def _hf_json(file: TokenizerFile) -> dict[str, object]:
    def spell(token: bytes) -> str:
        return "".join(BYTE_TO_CHAR[b] for b in token)

    names = {token.id: token.content for token in file.added}
    last = max(*file.ranks.values(), *file.tokens.keys() - names.keys())
    # Added tokens between the others belong to the vocabulary too, or `tokenizers` would give them new ids.
    vocab = {names.get(i) or spell(token): i for i, token in sorted(file.tokens.items()) if i <= last or i not in names}
    steps = [{**step, **({"trim_offsets": True} if step["type"] == "ByteLevel" else {})}
             for step in PRE_TOKENIZERS[file.split]]
    merges = file.merges if file.merges is not None else _merges_from_ranks(file.ranks)
    unk = None if file.unk_id is None else names.get(file.unk_id) or spell(file.tokens[file.unk_id])
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{key: getattr(token, key) for key in ADDED_KEYS}
                         for token in sorted(file.added, key=lambda token: token.id)],
        "normalizer": None,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        "post_processor": file.post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": unk, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": file.ignore_merges, "vocab": vocab,
                  "merges": [[spell(a), spell(b)] for a, b in merges]},
    }


def _merges_from_ranks(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every way to make each token of two others, in the order of ranks: tiktoken merges any pair that is a token."""
    merges: list[tuple[bytes, bytes]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [(a, b) for a, b in pairs if a in ranks and b in ranks]
        merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges
