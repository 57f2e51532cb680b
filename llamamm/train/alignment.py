"""A bridge's first lesson, without the text model: its tokens are drawn to the embeddings of what a sound or a picture
says.

    tokens of the bridge (M, C), embeddings of the answer's words (L, C)
    score of word k at token h: -|h - e_k|² / 2, and of "nothing here" the same with the mean of all embeddings
    -> a small pull of each token to the embedding of what it says, and
    -> of a sound, CTC: the answer's probability, over all ways to lay its words along the tokens
    -> of a picture, whose words stand in no order: the probability that some token says each word, and that each token
       says one of them, or nothing

The text model then finds tokens that lie near words it knows, and has less to learn. Tokens of a bridge that is compact
are read as words anyway and are not pulled. A step runs the bridge alone, no block of the text model.

Source: connectionist temporal classification, Graves et al., ICML 2006,
https://www.cs.toronto.edu/~graves/icml_2006.pdf. Built in notebook 16.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.errors import InputError, counted
from llamamm.generation.prompts import Sound
from llamamm.multimodal.compact import SHARPNESS, word_scores
from llamamm.multimodal.model import Features, Media, MultimodalLlama
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.losses import IGNORE
from llamamm.train.media_rows import MediaObjective
from llamamm.train.records import Record
from llamamm.train.rows import encode_dialogue

RARE = 1e-4  # probability below which 1 - (1 - p)(1 - q)... is p + q + ..., also where fp32 has no more digits for it
PULL = 0.1  # of the distance to what a token says, beside what it should say


def check_aligned(record: Record) -> None:
    """Raises InputError for a record that is not one sound or picture, and as the answer what it says."""
    n_sounds = sum(isinstance(medium, Sound) for medium in record.media)
    if len(record.media) != 1 or len(record.messages) != 2:
        raise InputError(f"method: align learns from records of one sound or one picture, with what it says; this one "
                         f"has {counted(n_sounds, 'sound')}, {counted(len(record.media) - n_sounds, 'picture')} and "
                         f"{counted(len(record.messages), 'message')}")


def picture_loss(shares: Tensor, said: Collection[int]) -> Tensor:
    """What a picture's tokens have yet to learn: log-probabilities (M, 1 + V), "nothing here" in column 0 -> scalar.

    said: columns of its words. For each word, -log of the probability that some token says it; and the mean over tokens
    of -log of the probability that it says one of the words, or nothing.
    """
    words = sorted(set(said))
    silent = torch.log1p(-shares[:, words].exp().clamp(max=1 - 1e-6)).sum(dim=0)  # log of: no token says it
    told = torch.log(-torch.expm1(silent.clamp(max=-RARE)))
    told = torch.where(silent < -RARE, told, shares[:, words].logsumexp(dim=0))  # so rare ones just add up
    return -told.sum() - shares[:, [0, *words]].logsumexp(dim=1).mean()


def words_of(sources: Iterable[Sequence[Record]], tokenizer: Tokenizer) -> list[int]:
    """The ids of all words that the answers of some records hold."""
    words: set[int] = set()
    for records in sources:
        for index in range(len(records)):
            asked = {"role": "user", "content": "?"}  # without the sound, which is not learned
            example = encode_dialogue([asked, records[index].messages[-1]], tokenizer)
            words |= {token for token, learned in zip(example.ids, example.learn, strict=True) if learned}
    return sorted(words)


def distance(tokens: Tensor, shares: Tensor, words: Tensor, nothing: Tensor) -> Tensor:
    """How far tokens (..., C) are from what they say: SHARPNESS |h - e|² / 2, e the likeliest word, or "nothing here",
    by the log-probabilities (..., 1 + V). words (V, C), nothing (C,) -> (...).

    Scores alone leave a token's length free, and the longest are the surest; a text model knows words of one length.
    """
    said = torch.cat([nothing[None], words])[shares.argmax(dim=-1)]
    return SHARPNESS / 2 * (tokens - said).square().sum(dim=-1)


class AlignmentObjective(MediaObjective):
    """The summed loss of a batch whose rows hold one sound or one picture each, and what it says as the answer.

    words: ids among which the tokens are to find theirs, such as all that the data hold; None: the whole vocabulary,
    which takes longer; a compact bridge notes them as those it knows. stops: ids that end an answer and are not said.
    Of a transcript with more words than its sound has tokens nothing is learned but the pull.
    """

    def __init__(
        self, model: MultimodalLlama, *, words: Sequence[int] | None = None, stops: Collection[int] = ()
    ) -> None:
        super().__init__(model)
        self.stops = frozenset(stops)
        known = sorted({*(range(model.cfg.vocab_size) if words is None else words)} - self.stops)
        if not known:
            raise InputError("there are no words to align with")
        self._class_of = {word: n for n, word in enumerate(known, start=1)}  # 0: nothing here
        device = model.embed_tokens.weight.device
        self.register_buffer("words", torch.tensor(known, device=device), persistent=False)
        table = model.embed_tokens.weight.detach()  # the text model does not change: read once, not in each step
        self.register_buffer("table", table[self.words].float(), persistent=False)
        self.register_buffer("nothing", table.float().mean(dim=0), persistent=False)
        for bridge in (getattr(model, name, None) for name in ("image_bridge", "audio_bridge")):
            if bridge is not None and bridge.cfg.compact:
                bridge.known.zero_()[self.words] = 1

    def forward(
        self, ids: Tensor, targets: Tensor, segments: Tensor | None = None, *, media: Media | None = None,
        features: Features | None = None,
    ) -> Tensor:  # fmt: skip
        """ids, targets (B, T), a sound or a picture in each row -> scalar, fp32. Raises InputError for any others."""
        if features is None:
            features = self.model.perceive(media or Media())
        cfg = self.model.multimodal_cfg
        seen, heard = ((ids == token).any(dim=1) for token in (cfg.image_token, cfg.audio_token))
        n_images, n_sounds = (0 if some is None else len(some) for some in (features.images, features.sounds))
        is_matched = (int(seen.sum()), int(heard.sum())) == (n_images, n_sounds)
        if segments is not None or not is_matched or not (seen ^ heard).all():
            raise InputError(f"alignment reads one sound or one picture a row; {counted(len(ids), 'row')} came with "
                             f"{counted(n_sounds, 'sound')} and {counted(n_images, 'picture')}")
        said = [self._classes(row) for row in targets.tolist()]
        loss = torch.zeros((), device=ids.device)
        for kind, (tokens, mask) in self.model.bridged(features).items():
            rows = (seen if kind == "image" else heard).nonzero().flatten().tolist()
            loss = loss + self._loss(kind, tokens, mask, [said[row] for row in rows])
            self.used |= {f"{kind}_bridge"} if self.training else set()  # as in `MediaObjective`
        return loss + 0.0 * sum(p.sum() for p in self.model.added_parameters() if p.requires_grad)

    def _loss(self, kind: str, tokens: Tensor, mask: Tensor, said: Sequence[list[int]]) -> Tensor:
        """Of the tokens (n, M, C) of some sounds, or of some pictures, and what they say."""
        with torch.autocast(tokens.device.type, enabled=False):
            tokens, words, nothing = tokens.float(), self.table, self.nothing
            shares = word_scores(tokens, words, nothing).log_softmax(dim=-1)
            is_read_as_words = getattr(self.model, f"{kind}_bridge").cfg.compact
            pull = 0.0 if is_read_as_words else PULL * distance(tokens, shares, words, nothing)[mask].sum()
            if kind == "image":
                parts = [picture_loss(one, columns) for one, columns in zip(shares, said, strict=True)]
                return torch.stack(parts).sum() + pull
            lengths = torch.tensor([len(row) for row in said], device=tokens.device)
            return pull + F.ctc_loss(
                shares.transpose(0, 1), torch.tensor(sum(said, []), device=tokens.device), mask.sum(dim=1), lengths,
                reduction="sum", zero_infinity=True,
            )  # fmt: skip

    def _classes(self, targets: Sequence[int]) -> list[int]:
        """The words of a row's answer, as the columns of the scores."""
        said = [word for word in targets if word != IGNORE and word not in self.stops]
        if unknown := [word for word in said if word not in self._class_of]:
            raise InputError(f"the answer holds the word {unknown[0]}, which is not among those to align with")
        return [self._class_of[word] for word in said]


@torch.no_grad()
def nearest_words(model: MultimodalLlama, tokens: Tensor, mask: Tensor, words: Sequence[int]) -> list[list[int]]:
    """What tokens lie nearest to, read as CTC reads: what repeats once, without "nothing here".

    tokens (n, M, C) and mask (n, M) from `model.bridged`; words: ids to choose among -> ids for each of the n.
    """
    chosen, table = torch.tensor(sorted(set(words)), device=tokens.device), model.embed_tokens.weight.float()
    best = word_scores(tokens.float(), table[chosen], table.mean(dim=0)).argmax(dim=-1)  # (n, M)
    read = []
    for row, real in zip(best, mask, strict=True):
        once = torch.unique_consecutive(row[real])
        read.append(chosen[once[once > 0] - 1].tolist())
    return read
