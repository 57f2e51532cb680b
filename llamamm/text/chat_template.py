"""A model's own chat template, rendered by Jinja as `transformers` does, and kept from what users type.

A template is a small program that writes one string, in which names of control tokens then count as those tokens,
whoever wrote them. So each name in a content is broken by a mark before the template runs, a character that occurs
nowhere else; afterwards the names that are whole are the template's own, and the marks are taken out of the rest.
The template may trim, cut and quote as it likes: what it wrote is compared with what it writes without marks.

    turns -> rendered text, marked -> pieces: a str, or the id of an added token -> ids

Source: `transformers` (`utils/chat_template_utils.py`): Jinja's sandbox, and the names that a template may use.
Told in notebook 01.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llamamm.errors import InputError
from llamamm.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import jinja2

Turns = Sequence[tuple[str, Any]]  # (role, content); content: a str, or a list of strings and of lists of ids
Words = list[tuple[str, str]]  # the same with one character in the place of each list of ids
Places = dict[str, list[int]]  # that character -> the ids

_PRIVATE = range(0xF0000, 0xFFFFE)  # characters that mean nothing to anybody
_WORD = "placeholder"


class ChatTemplate:
    """The template of one tokenizer. Raises InputError for one that is no Jinja template."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.source = tokenizer, tokenizer.chat_template or ""
        self._program = _compiled(self.source)
        self._in_parts = False
        self._in_parts = self._reads_only_parts()
        names = {*tokenizer.special_tokens, *self._marks_of_turns()} - {""}
        self._letters = {name for name in names if len(name) == 1}
        longest_first = sorted(names - self._letters, key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def encode(self, turns: Turns, *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation. Raises InputError for one that the template refuses, or that cannot be kept safe."""
        words, places, free = self._with_places(turns)
        mark = next(free)
        return self._ids(self._rendered(words, mark, places, add_generation_prompt), mark, places)[0]

    def encode_answers(self, turns: Turns) -> tuple[list[int], list[range]]:
        """Ids of a whole conversation, and where in them the assistant's words stand, each with the end of its turn.

        Words that the template leaves out stand nowhere. Raises InputError as `encode`, and where the answers cannot
        be found again in what the template wrote.
        """
        words, places, free = self._with_places(turns)
        mark = next(free)
        fenced, answers = _fenced(words, free)
        plain = self._rendered(words, mark, places, False)
        try:
            text = self._rendered(fenced, mark, places, False)
        except InputError:
            text = ""
        fences = "".join(begin + end for begin, end, _ in answers)
        if _without(text, fences) != plain or any(text.count(fence) > 1 for fence in fences):
            raise InputError("where the answers stand in what the chat template writes cannot be told: it looks at "
                             "them or repeats them; pass chat=, another format")
        for begin, end, answer in answers:
            if end in text and begin not in text:  # its head was cut off, as thoughts are
                text = self._begun(text, begin, text.index(end), answer, fences + mark)
        ids, at = self._ids(text, mark, places, fences)
        return ids, [range(at[begin], self._end_of_turn(ids, at[end])) for begin, end, _ in answers if end in at]

    # ---- text -> ids ----

    def _ids(self, text: str, mark: str, places: Places, fences: str = "") -> tuple[list[int], dict[str, int]]:
        """Ids of a marked text, and before which of them the fences stand."""
        ids: list[int] = []
        at: dict[str, int] = {}
        cut = re.compile(f"([{''.join(places)}])" if places else "(?!)")
        for piece in self.tokenizer.split(text):
            if isinstance(piece, int):
                ids.append(piece)
                continue
            for part in cut.split(piece):
                if part in places:
                    ids += places[part]
                    continue
                part = _without(part, mark)
                new = self.tokenizer.encode_ordinary(_without(part, fences))
                for match in re.finditer(f"[{fences}]", part) if fences else ():
                    before = _without(part[: match.start()], fences)
                    n = self._n_tokens(before, new, whole=fences.index(match[0]) % 2 == 0)
                    at[match[0]] = len(ids) + n
                ids += new
        return ids, at

    def _n_tokens(self, text: str, ids: list[int], *, whole: bool) -> int:
        """How many of the first ids `text` takes; one that goes on beyond it counts if not `whole`."""
        left, n = len(text.encode()), 0
        while n < len(ids) and left > 0:
            left -= len(self.tokenizer.token_bytes(ids[n]))
            n += 1
        return n - (whole and left < 0)

    def _end_of_turn(self, ids: list[int], place: int) -> int:
        """Past the stop token that follows, if but whitespace stands before it."""
        end = place
        while end < len(ids) and ids[end] not in self.tokenizer.stop_ids:
            if self.tokenizer.decode(ids[end : end + 1]).strip():
                return place
            end += 1
        return end + 1 if end < len(ids) else place

    def _begun(self, text: str, begin: str, end: int, answer: str, others: str) -> str:
        """`text` with a fence where the last characters of an answer begin that stand before place `end`."""
        pieces = self.tokenizer.split(text[:end])
        before = pieces[-1] if isinstance(pieces[-1], str) else ""
        start, left = end, len(answer)
        while left and start > end - len(before) and (text[start - 1] in others or text[start - 1] == answer[left - 1]):
            left -= text[start - 1] not in others
            start -= 1
        return text[:start] + begin + text[start:]

    # ---- turns -> text ----

    def _rendered(self, words: Words, mark: str, places: Places, generate: bool) -> str:
        """What the template writes, with a mark in each name that a user wrote and none elsewhere."""
        plain = text = self._render(words, generate)
        typed = {match[0] for _, content in words for match in self._names.finditer(content)}
        letter = next((c for _, content in words for c in content if c in self._letters), None)
        if letter is not None:
            raise InputError(f"a message holds {letter!r}, a control token of one letter: it cannot be told from text")
        if typed:
            text = self._render_safely(words, typed, mark, plain, generate)
        for place in places:
            if text.count(place) != 1:
                raise InputError(f"the chat template writes an image or a sound {text.count(place)} times, not once; "
                                 f"put it into a user's message")
        return text

    def _render_safely(self, words: Words, typed: set[str], mark: str, plain: str, generate: bool) -> str:
        """All names broken; in messages where the template looks for some, these whole, and none may remain."""
        def attempt(whole: Collection[int], others: bool = False) -> str:
            seen = {name for name in typed if others or name in self.source}
            marked = [(role, self._broken(content, mark, seen if n in whole else ()))
                      for n, (role, content) in enumerate(words)]
            try:
                return self._render(marked, generate)
            except InputError:
                return ""

        broken = text = attempt(())
        if _without(text, mark) != plain:
            looked_at = {n for n in range(len(words))
                         if _without(attempt({*range(len(words))} - {n}, others=True), mark) != plain}
            text = attempt(looked_at)
            remain = {name for name in typed if text.count(name) != broken.count(name)}
            if _without(text, mark) != plain or remain:
                raise InputError(f"a message holds {', '.join(sorted(remain or typed))}, which with this chat template "
                                 f"cannot be kept apart from its own control tokens; take it out of the text")
        return text

    def _broken(self, text: str, mark: str, whole: Collection[str] = ()) -> str:
        """`text` with the mark between the letters of each control token's name, but those in `whole`."""
        def cut(match: re.Match[str]) -> str:
            return match[0] if match[0] in whole else mark.join(match[0])

        while any(match[0] not in whole for match in self._names.finditer(text)):
            text = self._names.sub(cut, text)
        return text

    def _render(self, words: Words, generate: bool) -> str:
        messages = [{"role": role, "content": [{"type": "text", "text": content}] if self._in_parts else content}
                    for role, content in words]
        try:
            return self._program.render(messages=messages, tools=None, documents=None, add_generation_prompt=generate,
                                        **self.tokenizer.template_tokens)
        except Exception as error:  # a template is a program of somebody else's: it can raise anything
            reason = " ".join(str(error).split())
            raise InputError(f"the model's chat template refuses these messages: {reason or type(error).__name__}"
                             ) from None

    def _with_places(self, turns: Turns) -> tuple[Words, Places, Iterator[str]]:
        """One str for each content, and the characters that are left unused."""
        contents = [[content] if isinstance(content, str) else content for _, content in turns]
        used = set(self.source).union(*(piece for content in contents for piece in content if isinstance(piece, str)))
        free = (c for c in map(chr, _PRIVATE) if c not in used)
        places: Places = {}
        words: Words = []
        for (role, _), content in zip(turns, contents, strict=True):
            for n, piece in enumerate(content := list(content)):
                if not isinstance(piece, str):
                    content[n] = next(free)
                    places[content[n]] = list(piece)
            words.append((role, "".join(content)))
        return words, places, free

    # ---- asked once ----

    def _reads_only_parts(self) -> bool:
        """Whether a content must be a list of parts, as for Llama Guard 3 1B: a str would be left out in silence."""
        def shows(in_parts: bool) -> bool:
            self._in_parts = in_parts
            try:
                return _WORD in self._render([("user", _WORD)], False)
            except InputError:
                return False

        return not shows(False) and shows(True)

    def _marks_of_turns(self) -> set[str]:
        """Added tokens which are not called special, but with which the template marks turns."""
        found: set[int] = set()
        talk: Words = [("system", "a"), ("user", "b"), ("assistant", "c"), ("user", "d")]
        for words in (talk, talk[1:], talk[1:3], talk[1:2], talk[:2]):
            try:
                found |= {i for i in self.tokenizer.split(self._render(words, False)) if isinstance(i, int)}
            except InputError:
                continue
        return {self.tokenizer.token_bytes(i).decode() for i in found}


def _without(text: str, characters: str) -> str:
    return text.translate(dict.fromkeys(map(ord, characters))) if characters else text


def _fenced(words: Words, free: Iterator[str]) -> tuple[Words, list[tuple[str, str, str]]]:
    """A character before and one behind each answer, inside its outer whitespace; and these two with the answer."""
    answers, fenced = [], []
    for role, content in words:
        if role == "assistant":
            begin, end, answer = next(free), next(free), content.strip()
            lead = content[: len(content) - len(content.lstrip())]
            content = lead + begin + answer + end + content[len(lead) + len(answer) :]
            answers.append((begin, end, answer))
        fenced.append((role, content))
    return fenced, answers


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    """As `transformers` sets Jinja up: what a template sees is plain data, and it can reach nothing else."""
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}`, by which a template says what is the assistant's: the words inside, as they are."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

        def _inside(self, caller: Any) -> str:
            return caller()

    class Namespace(jinja2.utils.Namespace):
        """Without names that reach into Python."""

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace must not hold {name!r}")
            super().__setitem__(name, value)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:  # Jinja's own escapes HTML
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception,
                            "namespace": Namespace, "strftime_now": lambda form: datetime.now().strftime(form)}
    try:
        return environment.from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise InputError(f"the model's chat template is no Jinja template: {' '.join(str(error).split())}") from None
