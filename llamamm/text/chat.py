"""Chat: a conversation as the token ids that a chat model was trained on.

Roles and turns are marked by special tokens. Those are put in here as ids, and what people wrote is encoded with no
special token allowed: a user who types `<|eot_id|>` has typed ten characters and has not ended a turn. Templates
that build one string first (Hugging Face's Jinja) do not make that difference by themselves. A model's own template
decides which format it is; one that none of ours equals is rendered, with the users' words marked.

A content is a str, or a list in which token ids, as lists of int, stand among strings: places for images and sounds.

Source: Meta's llama-models 0.3.0 (`llama3/chat_format.py`); the chat templates of meta-llama/Llama-3.2-1B-Instruct
and HuggingFaceTB/SmolLM2-135M-Instruct. Built in notebook 01.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llamamm.errors import InputError
from llamamm.text.chat_template import ChatTemplate
from llamamm.text.tokenizer import Tokenizer

Content = str | Sequence[str | Sequence[int]]
Messages = Sequence[Mapping[str, Any]]

ROLES = ("system", "user", "assistant", "ipython", "tool")  # "tool" is today's word for Llama's "ipython"
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class Llama3Chat:
    """Llama 3's format: bos, then for each message the role between header tokens, the content, end of turn.

    variant "meta" is Meta's own code. "hf" is the template on the Hub for Llama 3.2, without tools: content is
    stripped, tool results are quoted as JSON, and a system message with `date` always comes first.
    Raises InputError for another variant, or a tokenizer without Llama 3's special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, *, variant: str = "meta", date: str = "26 Jul 2024") -> None:
        if variant not in ("meta", "hf"):
            raise InputError(f"variant must be 'meta' or 'hf', got {variant!r}")
        self.tokenizer, self.variant, self.date = tokenizer, variant, date
        self._bos, self._start, self._end, self._eot = _special_ids(
            tokenizer, "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

    def encode(self, messages: Messages, *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation, ending with the header of the answer to come. Raises InputError."""
        turns = check_messages(messages)
        if self.variant == "hf":
            turns = self._hf_turns(turns)
        ids = [self._bos]
        for role, content in turns:
            ids += [*self._message("ipython" if role == "tool" else role, content), self._eot]
        return ids + self._message("assistant", "") if add_generation_prompt else ids

    def _message(self, role: str, content: Content) -> list[int]:
        ids = [self._start, *self.tokenizer.encode(role), self._end]
        # Newlines that begin the content can merge with the two of the header: Meta keeps them apart, HF does not.
        if self.variant == "meta":
            return ids + self.tokenizer.encode("\n\n") + encode_content(self.tokenizer, "", content)
        return ids + encode_content(self.tokenizer, "\n\n", content)

    def _hf_turns(self, turns: list[tuple[str, Content]]) -> list[tuple[str, Content]]:
        system = ""
        if turns[0][0] == "system":
            (_, system), *turns = turns
        if not isinstance(system, str):
            raise InputError("a system message of the 'hf' variant is a str; put images into the user's message")
        system = f"Cutting Knowledge Date: December 2023\nToday Date: {self.date}\n\n{system.strip()}"
        return [("system", system), *((role, json.dumps(content, ensure_ascii=False) if role in ("ipython", "tool")
                                       else content.strip() if isinstance(content, str) else content)
                                      for role, content in turns)]


class ChatML:
    """SmolLM2's format: `<|im_start|>role`, newline, content, `<|im_end|>`, newline.

    default_system is put in front of a conversation that begins with another role; None puts nothing there.
    Raises InputError for a tokenizer without the two special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, *, default_system: str | None = SMOLLM2_SYSTEM) -> None:
        self.tokenizer, self.default_system = tokenizer, default_system
        self._start, self._end = _special_ids(tokenizer, "<|im_start|>", "<|im_end|>")

    def encode(self, messages: Messages, *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation, ending with the header of the answer to come. Raises InputError."""
        turns = check_messages(messages)
        if self.default_system is not None and turns[0][0] != "system":
            turns = [("system", self.default_system), *turns]
        ids: list[int] = []
        for role, content in turns:
            words = encode_content(self.tokenizer, f"{role}\n", content)
            ids += [self._start, *words, self._end, *self.tokenizer.encode("\n")]
        return ids + [self._start, *self.tokenizer.encode("assistant\n")] if add_generation_prompt else ids


class TemplateChat:
    """The tokenizer's own template, rendered for each conversation. Raises InputError where it has none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.chat_template is None:
            raise InputError("the tokenizer has no chat template; chat_format(tokenizer) finds the fitting format")
        self.tokenizer, self.template = tokenizer, ChatTemplate(tokenizer)

    def encode(self, messages: Messages, *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation, ending with the header of the answer to come. Raises InputError."""
        return self.template.encode(check_messages(messages), add_generation_prompt=add_generation_prompt)

    def encode_answers(self, messages: Messages) -> tuple[list[int], list[range]]:
        """Ids of a whole conversation, and where the answers stand in them, each with the end of its turn."""
        return self.template.encode_answers(check_messages(messages))


AnyChat = Llama3Chat | ChatML | TemplateChat


def chat_format(tokenizer: Tokenizer) -> AnyChat:
    """The format of the tokenizer's chat template; without one, that whose special tokens it has.

    Raises InputError if it has neither (a base model).
    """
    if tokenizer.chat_template is not None:
        return _as_template(tokenizer)
    if "<|start_header_id|>" in tokenizer.special_tokens:
        return Llama3Chat(tokenizer)
    if "<|im_start|>" in tokenizer.special_tokens:
        return ChatML(tokenizer, default_system=None)
    raise InputError("the tokenizer has neither <|start_header_id|> (Llama 3) nor <|im_start|> (ChatML): "
                     "it has no chat format; encode plain text, or load an instruct model's tokenizer")


def _as_template(tokenizer: Tokenizer) -> AnyChat:
    """The first of our formats whose ids are the template's on every probe, or the template itself. Found once."""
    found = tokenizer.chat_formats
    if tokenizer.chat_template not in found:
        template = TemplateChat(tokenizer)
        wanted = [_try(template, probe) for probe in _PROBES]
        ours = (_made(kind, tokenizer, **settings) for kind, settings in _CANDIDATES)
        found[tokenizer.chat_template] = next((chat for chat in ours if chat is not None and all(
            _try(chat, probe) == ids for probe, ids in zip(_PROBES, wanted, strict=True))), template)
    return found[tokenizer.chat_template]


def _made(kind: type, tokenizer: Tokenizer, **settings: Any) -> AnyChat | None:
    try:
        return kind(tokenizer, **settings)
    except InputError:  # it lacks the special tokens
        return None


def _try(chat: AnyChat, probe: Messages) -> list[list[int]] | None:
    try:
        return [chat.encode(probe, add_generation_prompt=generate) for generate in (True, False)]
    except InputError:
        return None


def _probe(*turns: str) -> Messages:
    return [{"role": {"s": "system", "u": "user", "a": "assistant", "t": "tool", "i": "ipython"}[turn[0]],
             "content": turn[1:]} for turn in turns]


_CANDIDATES = ((ChatML, {}), (ChatML, {"default_system": None}), (Llama3Chat, {"variant": "hf"}),
               (Llama3Chat, {"variant": "meta"}))
_PROBES = [
    _probe("uHi"), _probe("sBe brief.", "uHi"), _probe("ua", "ab", "uc"), _probe("sa", "ub", "ac", "ud", "ae"),
    _probe("u\n Hi \n"), _probe("s\n a \n", "u\n\nb ", "a  c\n", "ud"), _probe("u"), _probe("s", "u", "a", "u"),
    _probe("ua", "a<think>\nb</think>\n\nc", "ud", "a<think>e"), _probe("ua", "ub"), _probe("aa", "ub"), _probe("sa"),
    _probe("ua", "sb", "uc"), _probe("ua", "ab", 't{"c": "\u00e9 <d>"} ', "ae"), _probe("ua", "ab", "ic\n", "ad"),
    _probe("u" + "a " * 50), _probe("u{{ 1 }}{% if %}"), _probe("t4"), _probe("uUSER", "aAsk &amp; 'Answer' \"x\""),
]


def encode_content(tokenizer: Tokenizer, front: str, content: Content) -> list[int]:
    """Token ids of `front` and a content, no special token among them but those given as ids."""
    pieces = [content] if isinstance(content, str) else list(content)
    if pieces and isinstance(pieces[0], str):
        pieces[0] = front + pieces[0]
    else:
        pieces.insert(0, front)
    return [i for piece in pieces for i in (tokenizer.encode(piece) if isinstance(piece, str) else piece)]


def check_messages(messages: Messages) -> list[tuple[str, Content]]:
    """Messages as (role, content) pairs. Raises InputError naming the message and what is wrong with it."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise InputError(f'messages must be a list of {{"role": ..., "content": ...}}, got {type(messages).__name__}')
    if not messages:
        raise InputError("messages is empty; a conversation needs at least one message")
    turns = []
    for n, message in enumerate(messages):
        if isinstance(message, Mapping):  # a table has a cell for each of its columns, None where a message lacks it
            message = {key: value for key, value in message.items() if value is not None or key in ("role", "content")}
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            got = sorted(map(str, message)) if isinstance(message, Mapping) else type(message).__name__
            raise InputError(f"message {n} must have 'role' and 'content' and nothing else, got {got}")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise InputError(f"message {n} has the role {role!r}; roles are {', '.join(ROLES)}")
        if not isinstance(content, str) and not (role != "assistant" and _is_mixed(content)):
            raise InputError(f"message {n} has content of type {type(content).__name__}; it must be a str")
        turns.append((role, content))
    return turns


def _is_mixed(content: object) -> bool:
    """Whether a content is a list of strings and of lists of ids."""
    return isinstance(content, list) and all(
        isinstance(piece, str) or (isinstance(piece, list) and all(type(i) is int for i in piece)) for piece in content
    )


def _special_ids(tokenizer: Tokenizer, *names: str) -> list[int]:
    missing = [name for name in names if name not in tokenizer.special_tokens]
    if missing:
        raise InputError(f"the tokenizer lacks {', '.join(missing)}; chat_format(tokenizer) finds the fitting format")
    return [tokenizer.special_tokens[name] for name in names]
