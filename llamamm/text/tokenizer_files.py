"""Reading tokenizer files: three formats on disk, one `TokenizerFile` in memory.

Meta ships `tokenizer.model`, Hugging Face `tokenizer.json`, llama.cpp hides the same facts in a `.gguf`. All three
hold a byte-level BPE: bytes for every id, an order of merges, and a rule that first cuts text into words. What
`tokenizer.py` needs of them is collected here, and what it could not reproduce exactly is refused by name.
The files are read with `open`, never through tiktoken's loader: that one keeps a copy of a file by its path.

Source: Meta's llama-models 0.3.0 (`llama3/tokenizer.py`: pattern, names of special tokens); the `tokenizers` library
(its JSON); ggml's `docs/gguf.md`. Explained in notebook 01.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llamamm.errors import MissingDependencyError, TokenizerError
from llamamm.text.added_tokens import AddedToken
from llamamm.text.merges import as_merged
from llamamm.text.tokenizer_settings import FLAGS, REMEDY, begin_with, first_token, parse_json, read_folder_settings

# How text is cut into words before any merge. GPT-2's rule; Llama 3's (digits in threes, words with one leading
# sign); SmolLM2's, which is GPT-2's after each digit was set apart: so whitespace in front of a digit stays whole,
# while in front of a word its last character is left to that word.
SPLIT_PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "smollm": r"'s|'t|'re|'ve|'m|'ll|'d|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
              r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {  # the same rules as tokenizer.json spells them
    "gpt2": [{**_BYTE_LEVEL, "use_regex": True}],
    "smollm": [{"type": "Digits", "individual_digits": True}, {**_BYTE_LEVEL, "use_regex": True}],
    "llama3": [{"type": "Split", "pattern": {"Regex": SPLIT_PATTERNS["llama3"]}, "behavior": "Isolated",
                "invert": False}, {**_BYTE_LEVEL, "use_regex": False}],
}
_GGUF_PRE = {"gpt-2": "gpt2", "smollm": "smollm", "llama-bpe": "llama3", "llama3": "llama3", "llama-v3": "llama3"}

META_BASE_TOKENS = 128_000
META_SPECIAL_TOKENS = ["begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1",
                       "finetune_right_pad_id", "step_id", "start_header_id", "end_header_id", "eom_id", "eot_id",
                       "python_tag", "image", *(f"reserved_special_token_{i}" for i in range(2, 246))]  # 256 names

# Taken where a file does not say; every one of the stop names that exists ends a generation.
_BOS_NAMES = ("<|begin_of_text|>", "<|im_start|>")
_EOS_NAMES = ("<|end_of_text|>", "<|im_end|>", "<|endoftext|>")
_PAD_NAMES = ("<|finetune_right_pad_id|>",)
_STOP_NAMES = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|im_end|>", "<|endoftext|>")


def _printable_bytes() -> dict[int, str]:
    """GPT-2's alphabet: JSON cannot hold raw bytes, so each is written as one visible character (space is "Ġ")."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [b for b in range(256) if b not in visible]
    return {b: chr(b) for b in visible} | {b: chr(256 + n) for n, b in enumerate(hidden)}


BYTE_TO_CHAR = _printable_bytes()
CHAR_TO_BYTE = {c: b for b, c in BYTE_TO_CHAR.items()}


@dataclass(frozen=True)
class TokenizerFile:
    """What a tokenizer file says.

    tokens: bytes of every id, added ones too. added: strings that are one id, special or not. ranks: bytes that
    merging can make -> id, which is also the merge's priority. merges: the pairs, or None where the file holds only
    ranks. roles: "bos_token" and the like -> name, those that the files give.
    """

    path: Path
    split: str  # a key of SPLIT_PATTERNS
    tokens: dict[int, bytes]
    added: tuple[AddedToken, ...]
    ranks: dict[bytes, int]
    words: dict[bytes, int] = field(default_factory=dict)  # bytes that only as a whole word are a token
    merges: list[tuple[bytes, bytes]] | None = None
    ignore_merges: bool = False  # a word that is a token needs no merges
    unk_id: int | None = None  # what stands for a byte that the vocabulary lacks; None: nothing does
    meta: bool = False  # Meta's own file, encoded with Meta's own limits
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    stop_ids: frozenset[int] = frozenset()
    post_processor: dict[str, Any] | None = None
    chat_template: str | None = None
    roles: dict[str, str] = field(default_factory=dict)
    adds_bos: bool = False

    @property
    def special(self) -> dict[str, int]:
        """Names that are control and not text."""
        return {token.content: token.id for token in self.added if token.special}


def read_tokenizer_file(path: Path) -> TokenizerFile:
    """Read a tokenizer file, or the one that a folder holds. Raises TokenizerError naming file, place and remedy."""
    path = _find_file(path)
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        content = b"" if is_gguf else path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror or error}") from error
    if is_gguf:  # the content decides, not the name: caches rename files
        data = _read_gguf(path)
    elif content.lstrip()[:1] == b"{":
        data = _with_folder_settings(_read_hf_json(path, parse_json(path, content)))
    else:
        data = _read_meta_ranks(path, content)
    return _with_known_names(data)


def _find_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in ("tokenizer.json", "tokenizer.model", "original/tokenizer.model"):
        if (path / name).is_file():
            return path / name
    found = sorted(path.glob("*.gguf"))
    if len(found) != 1:
        raise TokenizerError(f"{path} holds no tokenizer.json, tokenizer.model or original/tokenizer.model and "
                             f"{len(found)} .gguf files; give the path of the one to read")
    return found[0]


# ---- Meta: lines of "base64 rank" ----


def _read_meta_ranks(path: Path, content: bytes) -> TokenizerFile:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            token, rank = line.split()
            token, rank = base64.b64decode(token, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise TokenizerError(f"{path}, line {number}: expected 'base64 rank' as in Llama 3's tokenizer.model, got "
                                 f"{line[:40]!r}; {REMEDY} (Llama 2's file has the same name)") from None
        if rank != number - 1 or token in ranks or not token:
            raise TokenizerError(f"{path}, line {number}: rank {rank} where a new token with rank {number - 1} should "
                                 f"be; {REMEDY}")
        ranks[token] = rank
    if len(ranks) != META_BASE_TOKENS:  # a short file would shift the ids of all special tokens
        raise TokenizerError(f"{path} ends at line {len(ranks)}, Llama 3's has {META_BASE_TOKENS}; {REMEDY}")
    added = tuple(AddedToken(f"<|{name}|>", META_BASE_TOKENS + i) for i, name in enumerate(META_SPECIAL_TOKENS))
    tokens = {i: t for t, i in ranks.items()} | {token.id: token.content.encode() for token in added}
    return TokenizerFile(path, "llama3", tokens, added, ranks, ignore_merges=True, meta=True,
                         post_processor=begin_with(added[0].content, added[0].id))


# ---- Hugging Face: tokenizer.json ----


def _read_hf_json(path: Path, data: Mapping[str, Any]) -> TokenizerFile:
    try:
        model, added = data["model"], data.get("added_tokens") or []
        _refuse_unsupported(path, data, model)
        added = tuple(AddedToken(token["content"], token["id"], **{
            flag: bool(token.get(flag, flag == "special")) for flag in FLAGS}) for token in added)
        merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        file = _from_vocab(path, _split_rule(path, data["pre_tokenizer"]), model["vocab"], added, merges,
                           ignore_merges=bool(model.get("ignore_merges")))
        unk = model.get("unk_token")
        ids = {**model["vocab"], **{token.content: token.id for token in added}}
        return replace(file, unk_id=None if unk is None else ids[unk],
                       post_processor=data.get("post_processor"))
    except (KeyError, TypeError, AttributeError) as error:
        raise TokenizerError(f"{path} lacks a part of a tokenizer.json, or has it in another form "
                             f"({type(error).__name__}: {error}); {REMEDY}") from error


def _refuse_unsupported(path: Path, data: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    wrong = []
    if model.get("type", "BPE") != "BPE":
        wrong.append(f"model {model['type']}")
    normalizer, decoder = data.get("normalizer"), data.get("decoder")
    if normalizer is not None and normalizer != {"type": "Sequence", "normalizers": []}:
        wrong.append(f"normalizer {normalizer.get('type')}")
    if decoder is not None and {step.get("type") for step in decoder.get("decoders", [decoder])} != {"ByteLevel"}:
        wrong.append(f"decoder {decoder.get('type')}")
    wrong += [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
              if model.get(key)]
    if model.get("unk_token") is not None and model.get("fuse_unk"):
        wrong.append("fuse_unk")
    if wrong:
        raise TokenizerError(f"{path} uses {', '.join(wrong)}; this package reads plain byte-level BPE, as Llama 3, "
                             f"SmolLM2 and GPT-2 use it")


def _split_rule(path: Path, pre_tokenizer: Mapping[str, Any] | None) -> str:
    steps = [dict(s) for s in (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])]
    for step in steps:
        step.pop("trim_offsets", None)  # about offsets, not ids
        if step.get("type") == "ByteLevel":
            step.setdefault("use_regex", True)  # files older than the setting mean this
    for name, known in PRE_TOKENIZERS.items():
        if steps == known:
            return name
    raise TokenizerError(f"{path} has the pre-tokenizer {json.dumps(pre_tokenizer)[:300]}; known are Llama 3's, "
                         f"SmolLM2's and GPT-2's")


def _from_vocab(path: Path, split: str, vocab: Mapping[str, int], added: tuple[AddedToken, ...],
                merges: Iterable[tuple[str, ...]], *, ignore_merges: bool) -> TokenizerFile:
    """Turn a vocabulary in GPT-2's alphabet into bytes, and check that tiktoken will merge in the same order."""
    for text, token_id in [*vocab.items(), *((token.content, token.id) for token in added)]:
        if type(token_id) is not int or not 0 <= token_id < 2**31:
            raise TokenizerError(f"{path}: token {text!r} has the id {token_id!r}; {REMEDY}")
    by_name = {token.content: token for token in added}
    for token in added:
        if vocab.get(token.content, token.id) != token.id:
            raise TokenizerError(f"{path}: {token.content!r} has ids {vocab[token.content]} and {token.id}; {REMEDY}")
    regular = {text: i for text, i in vocab.items() if text not in by_name or not (
        by_name[text].special or any(c not in CHAR_TO_BYTE for c in text))}
    try:
        tokens = {i: bytes(CHAR_TO_BYTE[c] for c in text) for text, i in regular.items()}
    except KeyError as error:
        raise TokenizerError(f"{path}: a token holds {error.args[0]!r}, which is outside the byte-level alphabet; "
                             f"{REMEDY}") from None
    added_tokens = {token.id: token.content.encode() for token in added}
    both = {regular[name] for name in by_name if name in regular}
    if (len(tokens) + len(added_tokens) != len(regular) + len(by_name) or len(by_name) != len(added)
            or (tokens.keys() & added_tokens.keys()) - both):
        raise TokenizerError(f"{path}: two tokens share an id; {REMEDY}")

    byte_merges, last = [], -1
    for number, pair in enumerate(merges):
        token_id = regular.get("".join(pair), -1)
        if len(pair) != 2 or token_id < 0 or not all(part in regular for part in pair):
            raise TokenizerError(f"{path}, merge {number}: {' '.join(pair)!r} makes or uses a token that the "
                                 f"vocabulary lacks; {REMEDY}")
        if token_id < last:  # tiktoken has one number for both
            raise TokenizerError(f"{path}, merge {number}: makes id {token_id} after id {last}; ids must rise")
        last = token_id
        byte_merges.append((tokens[regular[pair[0]]], tokens[regular[pair[1]]]))
    if not tokens:
        raise TokenizerError(f"{path} has no tokens; {REMEDY}")
    return TokenizerFile(path, split, tokens | added_tokens, added, *as_merged(tokens, byte_merges, ignore_merges),
                         byte_merges, ignore_merges)


# ---- llama.cpp: metadata of a .gguf ----


def _read_gguf(path: Path) -> TokenizerFile:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise MissingDependencyError(f"reading {path.name} needs a package: pip install 'llamamm[gguf]'") from None
    try:
        fields = GGUFReader(path).fields
        meta = {name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.")}
    except Exception as error:  # the reader does not check what it reads: a damaged file can raise nearly anything
        raise TokenizerError(f"{path} is a damaged GGUF file ({type(error).__name__}: {error}); {REMEDY}") from error

    kind, pre = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in _GGUF_PRE:
        raise TokenizerError(f"{path} has the tokenizer {kind!r} with pre-tokenizer {pre!r}; known are 'gpt2' with "
                             f"{', '.join(_GGUF_PRE)}")
    missing = [k for k in ("tokens", "token_type", "merges") if not meta.get(f"tokenizer.ggml.{k}")]
    if missing:
        raise TokenizerError(f"{path} lacks tokenizer.ggml.{', '.join(missing)}; {REMEDY}")
    names, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    if len(set(names)) != len(names) or len(types) != len(names):
        raise TokenizerError(f"{path} has {len(names)} tokens, {len(set(names))} of them different, and {len(types)} "
                             f"token types; {REMEDY}")
    # 1 is normal text, 4 a string that was added to the vocabulary, all others are control or unused
    added = tuple(AddedToken(name, i, special=types[i] != 4) for i, name in enumerate(names) if types[i] != 1)
    split = _GGUF_PRE[pre]
    file = _from_vocab(path, split, {name: i for i, name in enumerate(names)}, added,
                       [tuple(m.split(" ")) for m in meta["tokenizer.ggml.merges"]], ignore_merges=split == "llama3")

    ids = {k: meta.get(f"tokenizer.ggml.{k}_token_id") for k in ("bos", "eos", "padding", "eot", "eom")}
    wrong = {k: i for k, i in ids.items() if i is not None and i not in file.tokens}
    if wrong:
        raise TokenizerError(f"{path}: special ids {wrong} are outside its {len(names)} tokens; {REMEDY}")
    begins = meta.get("tokenizer.ggml.add_bos_token", split == "llama3") and ids["bos"] is not None
    roles = {"bos_token": ids["bos"], "eos_token": ids["eos"], "pad_token": ids["padding"]}
    return replace(file, bos_id=ids["bos"], eos_id=ids["eos"], pad_id=ids["padding"],
                   roles={role: names[i] for role, i in roles.items() if i is not None},
                   stop_ids=frozenset(ids[k] for k in ("eos", "eot", "eom") if ids[k] is not None),
                   post_processor=begin_with(names[ids["bos"]], ids["bos"]) if begins else None,
                   chat_template=meta.get("tokenizer.chat_template"))


# ---- what stands beside the vocabulary ----


def _with_folder_settings(file: TokenizerFile) -> TokenizerFile:
    """Roles of tokens, flags, stop ids and chat template, from the files that the Hub keeps beside tokenizer.json."""
    folder = file.path.parent
    said = read_folder_settings(folder)
    file = _with_flags(file, said.flags)
    ids = {token: i for i, token in file.tokens.items()} | {t.content.encode(): t.id for t in file.added}
    for role, name in said.roles.items():
        if role in ("bos_token", "eos_token", "pad_token") and name.encode() not in ids:
            raise TokenizerError(f"{folder} names {name!r} as {role}, which {file.path.name} does not have; take both "
                                 f"files from the same model")
    file = _made_special(file, [ids[name.encode()] for name in (*said.roles.values(), *said.special)
                                if name.encode() in ids])
    wrong = [i for i in said.stop_ids if i not in file.tokens]
    if wrong and said.stop_file == "generation_config.json":
        raise TokenizerError(f"{folder}/generation_config.json stops at {list(said.stop_ids)}, of which "
                             f"{file.path.name} lacks {wrong}; take both files from the same model")
    roles = {f"{role}_id": ids[said.roles[f"{role}_token"].encode()] for role in ("bos", "eos", "pad")
             if f"{role}_token" in said.roles}
    return replace(file, **roles, roles=said.roles, stop_ids=frozenset(said.stop_ids) - {*wrong},
                   chat_template=said.chat_template)


def _with_flags(file: TokenizerFile, flags: Mapping[int, Mapping[str, Any]]) -> TokenizerFile:
    """tokenizer_config.json may say more of added tokens, or of other tokens that they are added ones."""
    added, tokens = {token.id: token for token in file.added}, dict(file.tokens)
    for i, said in flags.items():
        if tokens.get(i, said["content"].encode()) != said["content"].encode():
            raise TokenizerError(f"{file.path.parent}/tokenizer_config.json calls id {i} {said['content']!r}, "
                                 f"{file.path.name} {tokens[i].decode(errors='replace')!r}; take both files from the "
                                 f"same model")
        added[i] = replace(added.get(i, AddedToken(said["content"], i, special=False)), **said)
        tokens[i] = said["content"].encode()
    ranks = {token: i for token, i in file.ranks.items() if i not in added or not added[i].special}
    return replace(file, added=tuple(added.values()), tokens=tokens, ranks=ranks)


def _made_special(file: TokenizerFile, ids: Iterable[int]) -> TokenizerFile:
    """A token with a role is control, also where the vocabulary alone holds it."""
    new = {*ids} - {token.id for token in file.added}
    added = tuple(AddedToken(file.tokens[i].decode(errors="replace"), i) for i in sorted(new))
    return replace(file, added=file.added + added, ranks={t: i for t, i in file.ranks.items() if i not in new})


def _with_known_names(file: TokenizerFile) -> TokenizerFile:
    named = {token.content: token.id for token in file.added}

    def role(given: int | None, names: Iterable[str]) -> int | None:
        return given if given is not None else next((named[n] for n in names if n in named), None)

    begin = first_token(file.post_processor, file.path)
    if begin is not None and begin[1] not in file.tokens:
        raise TokenizerError(f"{file.path} puts id {begin[1]} before each text, which its vocabulary lacks; {REMEDY}")
    eos = role(file.eos_id, _EOS_NAMES)
    stops = {named[n] for n in _STOP_NAMES if n in named} | ({eos} - {None}) | file.stop_ids
    return replace(file, bos_id=role(file.bos_id, _BOS_NAMES) if begin is None else begin[1], eos_id=eos,
                   pad_id=role(file.pad_id, _PAD_NAMES), stop_ids=frozenset(stops), adds_bos=begin is not None)
