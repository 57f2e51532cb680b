"""Records as people have them, read as one kind of thing: a text, or a conversation with pictures and sounds in it.

    {"text": "..."}                                              a text
    {"messages": [{"role", "content"}, ...]}                     a conversation; contents with parts, as `as_part` reads
    {"messages": ..., "images": [...], "audios": [...]}          the same, with <image> and <audio> where they stand
    {"prompt": "...", "response" | "completion": "..."}          a question and its answer
    {"conversations": [{"from", "value"}, ...], "image": "a.png"}                      as LLaVA has it
    {"file_name": "a.png", "text": "..."}                        a line of metadata.jsonl, as `datasets` writes folders
    {"image" | "audio": ..., "text" | "caption" | "sentence" | "transcription": "..."}  a row of a set of the Hub
    {"image" | "audio": ..., "question": "...", "answer": "..."}                        the same, with a question
    {"prompt" | "messages", "chosen": "...", "rejected": "..."}  two answers, of which the first is preferred

Paths are relative to the file that a record stands in. Sources: LLaVA's data, arXiv:2304.08485; `datasets`' folders,
https://huggingface.co/docs/datasets. Built in notebooks 10 and 16.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamamm.errors import InputError, counted
from llamamm.generation.prompts import Conversation, Image, Part, Sound, as_part, place_media
from llamamm.text.chat import check_messages

DESCRIBE, TRANSCRIBE = "Describe the picture.", "What is said?"  # asked where a record has an answer alone
TEXTS = ("text", "caption", "sentence", "transcription", "label")  # names of what belongs to a picture or a sound
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
IMAGE_FILES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
SOUND_FILES = {".wav", ".flac", ".ogg", ".mp3"}


@dataclass(frozen=True)
class Record:
    """What a record is: `text`, or `messages`. rejected: the answer that is worse than the last of the messages."""

    text: str | None = None
    messages: Conversation = ()
    rejected: str | None = None

    @property
    def media(self) -> list[Image | Sound]:
        """Its pictures and sounds, in their order."""
        messages = self.messages if isinstance(self.messages, list | tuple) else ()
        contents = (message.get("content") for message in messages if isinstance(message, Mapping))
        parts = (part for content in contents if isinstance(content, list) for part in content)
        return [part for part in parts if isinstance(part, Image | Sound)]


def read_record(record: Mapping[str, Any] | Record, *, folder: Path | None = None) -> Record:
    """A record of any of the forms above; one that is read already, as it is. folder: where its relative paths begin;
    None: where you are.

    A table has a cell for each column: what a record lacks is None, and where one part is filled an empty one is no
    part. Raises InputError for any other form, and where markers and media do not match. Files are not opened.
    """
    if isinstance(record, Record):
        return record
    cells = record if isinstance(record, Mapping) else {}
    found = {key: value for key, value in cells.items() if value is not None}
    found = {key: value for key, value in found.items() if not _is_empty(value)} or found
    read = _preference(found) or _conversation(found) or _captioned(found) or _plain(found)
    if read is None:
        got = ", ".join(f"{key!r} ({type(value).__name__})" for key, value in cells.items())
        got = got or ("no keys" if isinstance(record, Mapping) else type(record).__name__)
        raise InputError(f"a record needs 'messages', or 'text', or 'prompt' with 'response' or 'completion', "
                         f"these as str; got {got}")
    return read if read.text is not None else replace(read, messages=_placed_in(read.messages, folder or Path()))


def is_text(record: Mapping[str, Any] | Record) -> bool:
    """Whether a record is a text, which may be split over rows, and no dialogue. Raises InputError."""
    return read_record(record).text is not None


def check_record(record: Mapping[str, Any] | Record, *, empty: bool = False) -> Record:
    """Without a tokenizer, whether there is something to learn in a record. empty: a text may be empty.

    Raises InputError.
    """
    read = read_record(record)
    if read.text is not None:
        if not (empty or read.text.strip()):
            raise InputError("the text is empty; take the record out")
        return read
    roles = [role for role, _ in check_messages(_without_media(read.messages))]
    if "assistant" not in roles[1:]:
        raise InputError("the assistant does not answer: there is nothing to learn")
    if roles[0] == "assistant":
        raise InputError("message 0 is the assistant's; a dialogue begins with what is answered, user or system")
    return read


def check_pair(record: Mapping[str, Any]) -> Record:
    """`check_record` for preferences: both answers are there, and neither is empty. Raises InputError."""
    for key in ("chosen", "rejected"):
        answer = record.get(key) if isinstance(record, Mapping) else None
        if answer is None or _is_empty(answer):
            raise InputError(f"a record of preferences (method: dpo) has a 'prompt', a 'chosen' and a 'rejected' "
                             f"answer; {key!r} is {'missing' if answer is None else 'empty'}")
    read = check_record(record)
    for key, words in (("chosen", read.messages[-1]["content"]), ("rejected", read.rejected)):
        if not words.strip():
            raise InputError(f"{key!r} is an answer without words; take the record out")
    return read


# ---- the forms ----


def _plain(found: Mapping[str, Any]) -> Record | None:
    match found.get("text"), found.get("prompt"), found.get("response", found.get("completion")):
        case str(text), _, _:
            return Record(text)
        case _, str(prompt), str(answer):
            return Record(messages=_asked(prompt, answer))
    return None


def _conversation(found: Mapping[str, Any]) -> Record | None:
    """`messages`, or LLaVA's `conversations`, and the pictures and sounds beside them."""
    if "messages" in found:
        messages = found["messages"]
    elif isinstance(found.get("conversations"), Sequence) and not isinstance(found["conversations"], str):
        messages = [_turn(turn, n) for n, turn in enumerate(found["conversations"])]
    else:
        return None
    images, sounds = _beside(found, "image", "images"), _beside(found, "audio", "audios")
    if not images and not sounds or not isinstance(messages, Sequence):
        return Record(messages=messages)
    seen = [Image(_source(image)) for image in images]
    return Record(messages=_with_media(messages, seen, [_sound(sound) for sound in sounds]))


def _turn(turn: Any, n: int) -> dict[str, Any]:
    if not isinstance(turn, Mapping) or turn.get("from") not in ROLES or not isinstance(turn.get("value"), str):
        raise InputError(f"conversations[{n}] must be {{'from': 'human' or 'gpt', 'value': a text}}, got {turn!r}")
    return {"role": ROLES[turn["from"]], "content": turn["value"]}


def _captioned(found: Mapping[str, Any]) -> Record | None:
    """A picture or a sound with its text, or with a question and its answer."""
    media: list[Image | Sound] = []
    if isinstance(name := found.get("file_name"), str):
        suffix, kind = Path(name).suffix.lower(), (mimetypes.guess_type(name)[0] or "").partition("/")[0]
        if suffix in IMAGE_FILES | SOUND_FILES:
            media.append(Image(name) if suffix in IMAGE_FILES else Sound(name))
        elif kind in ("image", "audio", "video"):
            raise InputError(f"file_name {name!r} is no picture ({', '.join(sorted(IMAGE_FILES))}) and no sound "
                             f"({', '.join(sorted(SOUND_FILES))}) that can be read")
    media += [Image(_source(image)) for image in _beside(found, "image", "images")]
    media += [_sound(sound) for sound in _beside(found, "audio", "audios")]
    if not media:
        return None
    question, answer = found.get("question"), found.get("answer", found.get("response", found.get("completion")))
    question = found.get("prompt") if question is None else question
    if answer is None:
        texts = [found[key] for key in TEXTS if isinstance(found.get(key), str)]
        answer = texts[0] if texts else None
    if not isinstance(answer, str) or not isinstance(question, str | None):
        raise InputError(f"a record with a picture or a sound needs a text beside it: one of {', '.join(TEXTS)}, or "
                         f"question and answer; got {', '.join(map(repr, found))}")
    question = question or (DESCRIBE if isinstance(media[0], Image) else TRANSCRIBE)
    images = [one for one in media if isinstance(one, Image)]
    sounds = [one for one in media if isinstance(one, Sound)]
    return Record(messages=_with_media(_asked(question, answer), images, sounds))


def _preference(found: Mapping[str, Any]) -> Record | None:
    """Two answers to one prompt. Those who write both as whole conversations have the same beginning in both."""
    if "chosen" not in found or "rejected" not in found:
        return None
    chosen, rejected = (_last_words(found[key], key) for key in ("chosen", "rejected"))
    begin = found.get("messages", found.get("prompt"))
    if begin is None and isinstance(found["chosen"], Sequence) and not isinstance(found["chosen"], str):
        begin = list(found["chosen"])[:-1]
    if isinstance(begin, str):
        begin = [{"role": "user", "content": begin}]
    if not isinstance(begin, Sequence) or not begin:
        raise InputError("a record with 'chosen' and 'rejected' needs the 'prompt' that both answer")
    rest = {key: value for key, value in found.items() if key in ("image", "images", "audio", "audios")}
    answered = _conversation({"messages": [*begin, {"role": "assistant", "content": chosen}], **rest})
    return replace(answered, rejected=rejected)


def _last_words(answer: Any, key: str) -> str:
    """An answer, written as a text or as a conversation that ends with it."""
    if isinstance(answer, str):
        return answer
    last = answer[-1] if isinstance(answer, Sequence) and answer else None
    answers = isinstance(last, Mapping) and last.get("role") == "assistant"
    if not answers or not isinstance(last.get("content"), str):
        raise InputError(f"{key!r} must be a text, or messages of which the last is the assistant's answer, "
                         f"got {answer!r:.60}")
    return last["content"]


# ---- pictures and sounds among the words ----


def _asked(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _beside(found: Mapping[str, Any], *keys: str) -> list[Any]:
    """What stands under one of the keys, one or several."""
    for key in keys:
        if key in found:
            several = isinstance(found[key], Sequence) and not isinstance(found[key], str | bytes)
            return list(found[key]) if several else [found[key]]
    return []


def _source(image: Any) -> Any:
    """A picture as `datasets` gives it undecoded: {"path", "bytes"}."""
    if isinstance(image, Mapping) and set(image) <= {"path", "bytes"}:
        return image.get("bytes") or image.get("path")
    return image


def _sound(sound: Any) -> Sound:
    """A sound as `datasets` gives it: a path, {"path", "bytes"}, {"array", "sampling_rate"}, or its decoder."""
    if isinstance(sound, Sound):
        return sound
    if isinstance(sound, Mapping) and sound.get("array") is not None:
        return Sound(sound["array"], int(sound.get("sampling_rate") or 16_000))
    if hasattr(sound, "get_all_samples"):  # torchcodec's, which newer `datasets` use
        samples = sound.get_all_samples()
        return Sound(samples.data, int(samples.sample_rate))
    return Sound(_source(sound))


def _with_media(
    messages: Conversation, images: Sequence[Image], sounds: Sequence[Sound]
) -> list[dict[str, Any]]:
    """Each where its marker stands, in the order of the markers; without any marker, before the user's first words.

    Raises InputError, with both counts, where markers and media do not match.
    """
    left = {"<image>": list(images), "<audio>": list(sounds)}
    texts = [m.get("content") if isinstance(m, Mapping) else None for m in messages]
    n_markers = {marker: sum(t.count(marker) for t in texts if isinstance(t, str)) for marker in left}
    for marker, media in left.items():
        if n_markers[marker] not in (0, len(media)):
            raise InputError(f"the record has {counted(n_markers[marker], f'{marker} marker')} and "
                             f"{counted(len(media), 'picture' if marker == '<image>' else 'sound')}; each needs one")
    placed, waiting = [], {marker for marker, media in left.items() if media and not n_markers[marker]}
    for message, text in zip(messages, texts, strict=True):
        if not isinstance(text, str):
            placed.append(message)
            continue
        here = {}
        for marker, media in left.items():
            n = text.count(marker) if n_markers[marker] else 0
            if marker in waiting and message.get("role") == "user":
                n = len(media)
                waiting.discard(marker)
            here[marker], left[marker] = media[:n], media[n:]
        parts = place_media(text, images=here["<image>"], sounds=here["<audio>"])
        with_media = any(here.values())
        placed.append({**message, "content": _trimmed(parts) if with_media else text})
    return placed


def _trimmed(parts: Sequence[Part]) -> list[Part]:
    """LLaVA parts picture and words by a line break, which is no part of the words."""
    return [p.removeprefix("\n") if n and isinstance(p, str) and not isinstance(parts[n - 1], str) else p
            for n, p in enumerate(parts)]  # fmt: skip


def _placed_in(messages: Conversation, folder: Path) -> Conversation:
    """The same conversation, its parts read, with paths that begin in a folder."""

    def whole(part: Any, n: int) -> Any:
        part = as_part(part, n)
        if isinstance(part, Image | Sound) and isinstance(part.source, str | Path):
            return replace(part, source=folder / part.source)
        return part

    if not isinstance(messages, Sequence) or isinstance(messages, str):  # for the chat format to refuse
        return messages
    placed = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, Sequence) and not isinstance(content, str | bytes):
            message = {**message, "content": [whole(part, n) for n, part in enumerate(content)]}
        placed.append(message)
    return placed


def _without_media(messages: Conversation) -> Conversation:
    """The words alone, for a check of roles."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        return messages
    words = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, Sequence) and not isinstance(content, str | bytes):
            message = {**message, "content": "".join(p for p in content if isinstance(p, str)) or "<media>"}
        words.append(message)
    return words


def _is_empty(value: Any) -> bool:
    return isinstance(value, str | list | tuple) and len(value) == 0
