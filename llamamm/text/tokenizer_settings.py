"""What the files beside a vocabulary say: roles of tokens, what ends an answer, what begins a text, the chat template.

The Hub spreads these over `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`'s heir
`added_tokens_decoder`, `generation_config.json`, `config.json` and `chat_template.jinja`. They are read in the order
in which `transformers` lets one overrule the other, and keys that change no id of ours are named with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamamm.errors import TokenizerError

REMEDY = "download the file again"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")

# Settings without effect here. add_bos_token, add_eos_token: beside a tokenizer.json, transformers goes by its
# post-processor. An end token of the post-processor: a prompt must stay open, and rows to learn from have it anyway.
# clean_up_tokenization_spaces: transformers ignores it for BPE. split_special_tokens: names of special tokens in a
# text are always text here. truncation, padding: transformers turns both off for each call.


@dataclass(frozen=True)
class FolderSettings:
    """roles: "eos_token" -> its name. stop_ids: those that `transformers` stops at, and the file that says so."""

    roles: dict[str, str] = field(default_factory=dict)
    special: tuple[str, ...] = ()  # further names that are control
    flags: dict[int, dict[str, Any]] = field(default_factory=dict)  # id -> content and flags of an added token
    stop_ids: tuple[int, ...] = ()
    stop_file: str = ""
    chat_template: str | None = None


def read_folder_settings(folder: Path) -> FolderSettings:
    """Raises TokenizerError for a file that is no JSON object, or a setting that would change ids unnoticed."""
    config = _read(folder / "tokenizer_config.json")
    if config.get("add_prefix_space") and config.get("tokenizer_class") not in (
            None, "PreTrainedTokenizerFast", "TokenizersBackend"):  # these leave it to tokenizer.json
        raise TokenizerError(f"{folder}/tokenizer_config.json has add_prefix_space for a {config['tokenizer_class']}, "
                             f"which this package does not do")
    named = dict(config)
    if not config.get("added_tokens_decoder"):  # transformers reads the older file only then, and it overrules
        named |= _read(folder / "special_tokens_map.json")
    else:
        named = _read(folder / "special_tokens_map.json") | {k: v for k, v in named.items() if v is not None}
    extra = named.get("extra_special_tokens") or named.get("additional_special_tokens") or []
    extra = extra.values() if isinstance(extra, Mapping) else extra
    stop_ids, stop_file = _stop_ids(folder)
    return FolderSettings(
        roles={role: name for role in ROLES if (name := token_name(named.get(role))) is not None},
        special=tuple(name for token in extra if (name := token_name(token)) is not None),
        flags=_flags(folder, config.get("added_tokens_decoder") or {}), stop_ids=stop_ids, stop_file=stop_file,
        chat_template=_chat_template(folder, config),
    )  # fmt: skip


def token_name(token: Any) -> str | None:
    """A token as settings give it, a name or a record with one."""
    token = token.get("content") if isinstance(token, Mapping) else token
    return token if isinstance(token, str) else None


def first_token(processor: Mapping[str, Any] | None, path: Path) -> tuple[str, int] | None:
    """The token that a post-processor of tokenizer.json puts before a text, or None.

    Raises TokenizerError for a kind that is not known, or more than one token.
    """
    if processor is None or processor.get("type") == "ByteLevel":  # ByteLevel is about offsets, not ids
        return None
    if processor.get("type") == "Sequence":
        found = [token for step in processor["processors"] if (token := first_token(step, path)) is not None]
        begin = found
    elif processor.get("type") == "TemplateProcessing":
        begin = []
        for piece in processor["single"]:
            if "SpecialToken" not in piece:
                break
            token = processor["special_tokens"][piece["SpecialToken"]["id"]]
            begin += zip(token.get("tokens") or [token["id"]], token["ids"], strict=False)
    else:
        raise TokenizerError(f"{path} has the post-processor {processor.get('type')}; known are TemplateProcessing and "
                             f"ByteLevel")
    if begin and begin[0][0] == "<|startoftranscript|>":
        return None  # Whisper's prompt, which says what to do with a sound, and which who transcribes puts there
    if len(begin) > 1:
        raise TokenizerError(f"{path} puts {len(begin)} tokens before each text, {', '.join(t for t, _ in begin)}; "
                             f"this package puts one there at most")
    return tuple(begin[0]) if begin else None


def begin_with(token: str, token_id: int) -> dict[str, Any]:
    """The tokenizer.json clause by which transformers puts the begin-of-text token in front."""
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    text = [{"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB")]
    return {"type": "TemplateProcessing", "single": [begin, text[0]], "pair": [begin, text[0], begin, text[1]],
            "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}}}


def parse_json(path: Path, content: bytes) -> dict[str, Any]:
    """Raises TokenizerError naming the file, for what is no JSON object."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:  # a JSONDecodeError says the line
        raise TokenizerError(f"{path} is not valid JSON: {error}; {REMEDY}") from error
    if not isinstance(data, dict):
        raise TokenizerError(f"{path} holds {type(data).__name__}, expected a JSON object; {REMEDY}")
    return data


def _read(path: Path) -> dict[str, Any]:
    return parse_json(path, path.read_bytes()) if path.is_file() else {}


def _stop_ids(folder: Path) -> tuple[tuple[int, ...], str]:
    """What `generate` of transformers stops at: generation_config.json's, or where that names none, config.json's."""
    for name in ("generation_config.json", "config.json"):
        config = _read(folder / name)
        text = config.get("text_config")
        stop = config.get("eos_token_id")
        if stop is None and isinstance(text, Mapping):
            stop = text.get("eos_token_id")
        if stop is not None:
            stop = stop if isinstance(stop, list) else [stop]
            if not all(type(i) is int for i in stop):
                raise TokenizerError(f"{folder / name} has eos_token_id {stop}, expected whole numbers; {REMEDY}")
            return tuple(stop), name
    return (), ""


def _flags(folder: Path, decoder: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    try:
        return {int(i): {"content": token["content"], **{flag: bool(token[flag]) for flag in FLAGS if flag in token}}
                for i, token in decoder.items()}
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise TokenizerError(f"{folder}/tokenizer_config.json has an added_tokens_decoder of another form "
                             f"({type(error).__name__}: {error}); {REMEDY}") from error


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The newest place that has one: a file of its own, an older file of its own, the settings."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    template = config.get("chat_template")
    if template is None:  # a processor's file
        template = _read(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {t.get("name"): t.get("template") for t in template if isinstance(t, Mapping)}
    if isinstance(template, Mapping):
        if "default" not in template:
            raise TokenizerError(f"{folder}: of several chat templates, {', '.join(map(str, template))}, none is named "
                                 f"'default'")
        template = template["default"]
    return template
