"""What to learn of a text or a dialogue: its ids, each with a mark. Of a dialogue the answers alone are learned.

    record (a dict) -> Example -> `batches`: rows of one length

Built in notebook 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llamamm.errors import InputError, counted
from llamamm.text.chat import AnyChat, Messages, TemplateChat, chat_format, check_messages
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.records import read_record

END_OF_TEXT = ("<|end_of_text|>", "<|endoftext|>")  # Llama 3's, SmolLM2's and GPT-2's
END_OF_TURN = ("<|eot_id|>", "<|im_end|>")


# ---- one record -> one example ----


@dataclass(frozen=True)
class Example:
    """Token ids, and for each whether the model should learn to predict it. Nothing predicts the first.

    images, sounds: what stands in places among the ids, in their order, as `Batch` has them.
    """

    ids: list[int]
    learn: list[bool]
    images: tuple[Tensor, ...] = ()
    sounds: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.learn):
            raise InputError(f"an example has {counted(len(self.ids), 'id')} and {counted(len(self.learn), 'mark')}; "
                             f"each id needs one mark")


def encode_text(text: str, tokenizer: Tokenizer) -> Example:
    """A text with the tokens that begin and end one, all to be learned. Raises InputError without an end token."""
    named = [tokenizer.special_tokens[name] for name in END_OF_TEXT if name in tokenizer.special_tokens]
    end = named[0] if named else tokenizer.eos_id
    if end is None:
        raise InputError(f"the tokenizer has none of {', '.join(END_OF_TEXT)} and names no eos token: "
                         f"a model could not learn where a text ends")
    ids = [*tokenizer.encode(text, bos=tokenizer.adds_bos), end]
    return Example(ids, [True] * len(ids))


def encode_dialogue(messages: Messages, tokenizer: Tokenizer, *, chat: AnyChat | None = None) -> Example:
    """A conversation of which the assistant's words and the token that ends its turn are learned, nothing else.

    Space that begins an answer is left out: its newlines would merge with that of the header into one token, which no
    prompt ends with. chat: the format, by default that of the tokenizer.
    Raises InputError for a conversation that teaches nothing.
    """
    chat = chat_format(tokenizer) if chat is None else chat
    turns = check_messages(messages)
    answers = [n for n, (role, _) in enumerate(turns) if role == "assistant"]
    messages = [{"role": role, "content": text.lstrip() if role == "assistant" else text} for role, text in turns]
    if not answers:
        raise InputError(f"none of the {len(messages)} messages is the assistant's: there is no answer to learn")
    if answers[0] == 0:
        raise InputError("message 0 is the assistant's; a dialogue begins with what is answered, user or system")
    if isinstance(chat, TemplateChat):  # it trims answers itself, or leaves out their thoughts
        ids, places = chat.encode_answers([{"role": role, "content": content} for role, content in turns])
        learned = {i for place in places for i in place}
        return Example(ids, [i in learned for i in range(len(ids))])
    ends = {tokenizer.special_tokens[name] for name in END_OF_TURN if name in tokenizer.special_tokens}
    ids = chat.encode(messages, add_generation_prompt=False)
    learn = [False] * len(ids)
    for n in answers:
        prompt = chat.encode(messages[:n])  # ends with the header of the answer, as when the model is used
        assert ids[: len(prompt)] == prompt, f"the header and answer {n} merge into one token"
        answer_end = next(i for i in range(len(prompt), len(ids)) if ids[i] in ends) + 1
        learn[len(prompt) : answer_end] = [True] * (answer_end - len(prompt))
    return Example(ids, learn)


def encode_record(record: Mapping[str, Any], tokenizer: Tokenizer) -> Example:
    """A record of text alone, of any form that `read_record` knows. Raises InputError for any other."""
    read = read_record(record)
    if read.media:
        raise InputError("the record holds a picture or a sound, and this model reads text alone")
    return encode_text(read.text, tokenizer) if read.text is not None else encode_dialogue(read.messages, tokenizer)
