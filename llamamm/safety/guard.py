"""A guard: a language model that is asked whether the last message of a conversation is safe.

    guard = load_guard("meta-llama/Llama-Guard-3-1B")
    guard.judge("How do I stop a process?")  ->  Judgement(unsafe=False, score=0.02, categories=())

Its answer would begin with "safe" or "unsafe", and the score is how the two share the probability of that first token:
softmax([logit of safe, logit of unsafe])[1]. A threshold makes a verdict of it, by default where the model itself would
answer "unsafe". Only then it goes on, and what it writes are the names of the categories.

Whatever comes out as NaN counts as unsafe: a guard that has broken lets nothing through.

Source: Llama Guard, arXiv:2312.06674, and the model card of Llama Guard 3, where the first token's probability is the
score. Used in notebook 18.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llamamm.errors import CheckpointError, InputError
from llamamm.files import read_json
from llamamm.generation.beginning import begun
from llamamm.generation.generate import CausalLM, TextStream, TokenStream, pad_left
from llamamm.generation.guarded import Judgement
from llamamm.lora.adapter_config import CONFIG_FILE as ADAPTER_FILE
from llamamm.pretrained.locate import BUILT_IN, locate_config
from llamamm.pretrained.ready import load_ready
from llamamm.safety.fitting import fit, turns_of
from llamamm.safety.template import LLAMA_GUARD_3_1B, LLAMA_GUARD_3_8B, OURS, SAFE, UNSAFE, Template
from llamamm.text.cache import KVCache
from llamamm.text.tokenizer import Tokenizer

Conversation = str | Sequence[Mapping[str, Any]]
OWN_GUARD = BUILT_IN["senses"].with_name("guard")  # an adapter that comes with the package
OWN = "own"  # its name where a name is asked for
GUARD_FILE = "guard.json"  # {"threshold", "categories", "rates"}, beside the adapter of a guard of ours
BATCH_TOKENS = 4096  # with padding
SHORTEST_CACHE = 1024  # tokens; it grows with the prompts
WIDTH_OF_8B = 4096  # of Llama Guard 3; 1B has 2048


class Guard:
    """A judge of messages. One conversation at a time keeps the keys and values of the last prompt, so that of an
    answer that grows only what is new is read, and the end of the question.

    tokenizer: the model's; template: the question it was trained on; threshold: the score from which on a message is
    unsafe; context_size: tokens that a prompt and its answer may take, at most the model's context.
    Raises InputError.
    """

    def __init__(
        self, model: CausalLM, tokenizer: Tokenizer, template: Template, threshold: float = 0.5, *,
        context_size: int = 8192,
    ) -> None:  # fmt: skip
        if not 0 <= threshold <= 1:
            raise InputError(f"the threshold is a probability from 0 to 1, got {threshold}")
        self.model, self.tokenizer, self.template, self.threshold = model, tokenizer, template, threshold
        self._verdicts = [tokenizer.encode(word)[0] for word in (SAFE, UNSAFE)]
        if self._verdicts[0] == self._verdicts[1]:
            raise InputError(f"the tokenizer writes {SAFE!r} and {UNSAFE!r} with the same first token: it cannot tell "
                             f"a verdict")  # fmt: skip
        self._unsafe = tokenizer.encode(f"{UNSAFE}\n")
        self._n_names = len(tokenizer.encode(", ".join(template.categories))) + 1  # all of them, and the end
        self._limit = min(context_size, model.cfg.context_length) - len(self._unsafe) - self._n_names
        self._cache: KVCache | None = None
        self._cached_ids: list[int] = []
        self._prompts("")  # raises where the question leaves no room

    # ---- one conversation ----

    @torch.inference_mode()
    def judge(self, conversation: Conversation) -> Judgement:
        """Of the last message: a str is one message of the user, messages may end with an answer.

        One that is too long is judged in overlapping windows, and the worst counts; older messages that do not fit
        are left out, with a warning. Raises InputError for what is no conversation, and for images and sounds.
        """
        prompts = self._prompts(conversation)
        scores = [self._scores(self._read(ids))[0] for ids in prompts]
        score, n = _worst(scores)
        return self._judgement(score, self._names(prompts[n]) if self._asks(score) else "")

    def _read(self, ids: list[int]) -> Tensor:
        """Scores of the next token, (1, V); the cache holds the prompt afterwards."""
        room = len(ids) + len(self._unsafe) + self._n_names
        if self._cache is None or self._cache.max_length < room:
            longest = self._limit + len(self._unsafe) + self._n_names
            self._cache = self.model.make_cache(1, min(longest, max(SHORTEST_CACHE, 2 * room)))
            self._cached_ids = []
        known = self._common_prefix(ids)
        self._cache.rewind(known)
        self._cached_ids = self._cached_ids[:known]  # also where reading fails
        logits = self.model(self._tensor([ids[known:]]), cache=self._cache, last_only=True)
        self._cached_ids = ids
        return logits[:, -1]

    def _common_prefix(self, ids: list[int]) -> int:
        """How many cached tokens the new prompt begins with; one is left to read, since its scores are needed."""
        same = 0
        for old, new in zip(self._cached_ids, ids[:-1], strict=False):
            if old != new:
                break
            same += 1
        return same

    def _names(self, ids: list[int]) -> str:
        """The line behind "unsafe"."""
        if self._cached_ids != ids:  # another window was read after this one
            self._read(ids)
        stream = TextStream(self.model, self.tokenizer, [*ids, *self._unsafe], stop=["\n"], cache=self._cache,
                            max_new_tokens=self._n_names, device=self._device)  # fmt: skip
        line = "".join(stream)
        self._cache.rewind(len(ids))
        return line

    # ---- many ----

    @torch.inference_mode()
    def judge_all(self, conversations: Iterable[Conversation], *, batch_size: int = 8) -> list[Judgement]:
        """As `judge` of each, in their order, prompts of like length read together. Raises InputError."""
        found = self._read_all(conversations, batch_size)
        prompts = [prompt for _, prompt in found]
        lines = [""] * len(found)
        for rows in _batches([n for n, (score, _) in enumerate(found) if self._asks(score)], prompts, batch_size):
            for row, line in zip(rows, self._all_names([prompts[row] for row in rows]), strict=True):
                lines[row] = line
        return [self._judgement(score, line) for (score, _), line in zip(found, lines, strict=True)]

    @torch.inference_mode()
    def scores(self, conversations: Iterable[Conversation], *, batch_size: int = 8) -> list[float]:
        """The scores of `judge_all` alone: no categories are written, which takes as long again. Raises InputError."""
        return [self._judgement(score, "").score for score, _ in self._read_all(conversations, batch_size)]

    def _read_all(self, conversations: Iterable[Conversation], batch_size: int) -> list[tuple[float, list[int]]]:
        """Of each conversation the score, and the prompt that has it: of several windows the worst."""
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        if isinstance(conversations, str | Mapping):
            raise InputError("several conversations are judged here, each a str or messages: put the one into a list")
        windows = [self._prompts(conversation) for conversation in conversations]
        prompts = [prompt for some in windows for prompt in some]
        scores = [0.0] * len(prompts)
        for rows in _batches(range(len(prompts)), prompts, batch_size):
            some = [prompts[row] for row in rows]
            (ids, padding), cache = self._padded(some), begun(self.model, some)
            n_read = 0 if cache is None else cache.length
            logits = self.model(ids[:, n_read:], padding=padding, cache=cache, last_only=True)[:, -1]
            for row, score in zip(rows, self._scores(logits), strict=True):
                scores[row] = score
        found, begin = [], 0
        for some in windows:
            score, n = _worst(scores[begin : begin + len(some)])
            found.append((score, some[n]))
            begin += len(some)
        return found

    def _all_names(self, prompts: list[list[int]]) -> list[str]:
        ids, padding = self._padded([[*prompt, *self._unsafe] for prompt in prompts])
        ends = self.tokenizer.stop_ids
        steps = TokenStream(self.model, ids, padding=padding, max_new_tokens=self._n_names, stop_ids=ends)
        rows = torch.stack(list(steps), dim=1).tolist()  # (B, n)
        return [self.tokenizer.decode([i for i in row if i not in ends]) for row in rows]

    def _padded(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
        ids, padding = pad_left(prompts)
        return ids.to(self._device), padding.to(self._device)

    # ---- both ----

    def _prompts(self, conversation: Conversation) -> list[list[int]]:
        turns = turns_of(conversation)
        return fit(lambda some: self.template.encode(self.tokenizer, some), self.tokenizer, turns, self._limit)

    def _scores(self, logits: Tensor) -> list[float]:
        """(B, V) -> the probability of "unsafe" against "safe", B of them."""
        return logits[:, self._verdicts].float().softmax(dim=-1)[:, 1].tolist()

    def _asks(self, score: float) -> bool:
        """Whether the guard is to say what is unsafe; one that gives NaN has nothing to say."""
        return score >= self.threshold

    def _judgement(self, score: float, line: str) -> Judgement:
        if math.isnan(score):
            return Judgement(True, 1.0, ())
        unsafe = score >= self.threshold
        return Judgement(unsafe, score, read_names(line, self.template.categories) if unsafe else ())

    @property
    def _device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    def _tensor(self, rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, device=self._device)


def read_names(answer: str, known: Iterable[str]) -> tuple[str, ...]:
    """The known names in a guard's second line, each once: "S1,S3", "s1, S3." or "S1 S3"; others are left out."""
    names = {name.casefold(): name for name in known}
    words = re.split(r"[\s,;:.]+", answer.strip().split("\n")[0])
    return tuple(dict.fromkeys(names[word.casefold()] for word in words if word.casefold() in names))


def _worst(scores: list[float]) -> tuple[float, int]:
    """The highest score, and its place; NaN is higher than all."""
    n = max(range(len(scores)), key=lambda n: math.inf if math.isnan(scores[n]) else scores[n])
    return scores[n], n


def _batches(rows: Iterable[int], prompts: list[list[int]], size: int) -> list[list[int]]:
    """The rows, `size` together or as many as BATCH_TOKENS hold, the longest first, so that memory that does not
    suffice shows at once, and one long prompt does not make fifteen short ones as long."""
    order, found = sorted(rows, key=lambda row: -len(prompts[row])), []
    while order:
        n = max(1, min(size, BATCH_TOKENS // len(prompts[order[0]])))
        found.append(order[:n])
        order = order[n:]
    return found


# ---- from a name ----


def load_guard(
    name: str | Path | None = None, *, threshold: float | None = None, rate: float | None = None,
    template: Template | None = None, device: torch.device | str = "cpu", dtype: torch.dtype | None = None,
) -> Guard:  # fmt: skip
    """A guard, ready to judge: the package's own, a Llama Guard 3, or one that you have trained.

    name: None or "own" is the package's own; "meta-llama/Llama-Guard-3-1B" or a folder of such a model; or the folder
    of an adapter that learned our question. threshold: None is what the folder's guard.json says, else 0.5; or rate,
    the share of harmless messages that may be refused, 0.01 or 0.05, for which guard.json notes a threshold.
    template: None is the one that the files tell; with another, any chat model is asked that question.
    Raises FetchError, CheckpointError, ConfigError or InputError with the remedy.
    """
    if name is not None and not str(name).strip():
        raise InputError("the guard's name is empty; give 'own', a Hub id or a folder, or leave it out")
    name = None if name == OWN else name
    if name is None and not (OWN_GUARD / GUARD_FILE).is_file():
        raise CheckpointError('this version comes without a guard of its own; name one, '
                              'load_guard("meta-llama/Llama-Guard-3-1B"), or a folder that you have trained')
    folder = OWN_GUARD if name is None else Path(name).expanduser()
    is_adapter = (folder / ADAPTER_FILE).is_file() and not (folder / "config.json").exists()
    settings = _settings(folder)
    if not is_adapter and not (folder / "config.json").exists() and (folder / "last" / ADAPTER_FILE).is_file():
        raise InputError(f"{folder} is the folder of a training run; what it has made is in {folder / 'last'}")
    if is_adapter:
        ready = load_ready(None, folder, dtype=dtype, device=device)
    else:
        _refuse_llama4(str(name))
        ready = load_ready(str(name), dtype=dtype, device=device)
    tokenizer = ready.processor.tokenizer
    if template is None:
        ours = is_adapter or bool(settings)
        template = _template(str(name or "the package's own guard"), tokenizer, ready.model.cfg.hidden_size, ours=ours)
    if rate is not None:
        threshold = _at_rate(settings, rate, threshold)
    if threshold is None:
        threshold = settings.get("threshold", 0.5)
    return Guard(ready.model, tokenizer, template, threshold)


def _at_rate(settings: Mapping[str, Any], rate: float, threshold: float | None) -> float:
    """The threshold that guard.json notes for a rate of false positives. Raises InputError."""
    known = {float(key): value for key, value in settings.get("rates", {}).items()}
    if threshold is not None:
        raise InputError("threshold and rate both say from where on a message is unsafe; give one of them")
    if rate not in known:
        raise InputError(f"this guard notes no threshold for a rate of {rate:g}; "
                         + (f"it has {', '.join(f'{one:g}' for one in known)}" if known else "give threshold="))
    return known[rate]


def _settings(folder: Path) -> dict[str, Any]:
    """What guard.json says, nothing where there is none. Raises CheckpointError."""
    file = folder / GUARD_FILE
    if not file.is_file():
        return {}
    found = read_json(file)
    threshold, categories, rates = found.get("threshold"), found.get("categories"), found.get("rates", {})
    if not _is_share(threshold):
        raise CheckpointError(f"{file}: the threshold must be a number from 0 to 1, got {threshold!r}")
    if not isinstance(rates, dict) or not all(re.fullmatch(r"0?\.\d+", key) and _is_share(rates[key])
                                              for key in rates):  # fmt: skip
        raise CheckpointError(f'{file}: rates must be thresholds by shares, such as {{"0.01": 0.9}}, got {rates!r}')
    if categories is not None and categories != dict(OURS.categories):
        raise CheckpointError(f"{file}: the guard learned other categories than this version asks for, "
                              f"{', '.join(OURS.categories)}; train it again, or give template=")
    return found


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _refuse_llama4(name: str) -> None:
    """Before gigabytes are fetched."""
    config = locate_config(name) / "config.json"
    kind = str(read_json(config).get("model_type")) if config.is_file() else ""
    if kind.startswith("llama4"):
        raise InputError(f"{name} is a Llama 4 model, as Llama Guard 4 is, and this package builds none; take "
                         f"meta-llama/Llama-Guard-3-1B or meta-llama/Llama-Guard-3-8B")


def _template(name: str, tokenizer: Tokenizer, width: int, *, ours: bool) -> Template:
    """By the published chat template, which lists the categories, or else by tokens and size. width: hidden_size."""
    published = tokenizer.chat_template or ""
    if "UNSAFE CONTENT CATEGORIES" in published:
        return LLAMA_GUARD_3_8B if "S14" in published else LLAMA_GUARD_3_1B
    if ours:
        return OURS
    if not published and all(control in tokenizer.special_tokens for control in LLAMA_GUARD_3_1B.controls):
        return LLAMA_GUARD_3_8B if width >= WIDTH_OF_8B else LLAMA_GUARD_3_1B
    raise InputError(f"{name} is no guard: its chat template lists no categories; name one, such as own or "
                     f"meta-llama/Llama-Guard-3-1B, or in Python give template=, the question that it was trained on")
