"""train.alignment: CTC against embeddings, by hand and as PyTorch's own, and a bridge that learns by it."""

import math

import pytest
import torch
import torch.nn.functional as F

from llamamm.errors import InputError
from llamamm.multimodal.config import BridgeConfig, MultimodalConfig
from llamamm.multimodal.model import Features, MultimodalLlama
from llamamm.senses.config import AudioConfig
from llamamm.text.config import TextConfig
from llamamm.train.alignment import SHARPNESS, AlignmentObjective, nearest_words, word_scores
from llamamm.train.losses import IGNORE

WORDS, STOP = (3, 5, 8, 13), 2


@pytest.fixture
def model():
    torch.manual_seed(0)
    text = TextConfig.tiny(vocab_size=20)
    audio = AudioConfig.tiny()
    cfg = MultimodalConfig(text, None, audio, audio_bridge=BridgeConfig("swiglu", merge=2))
    model = MultimodalLlama(cfg)
    model.embed_tokens.weight.data.normal_()
    return model.set_trainable(bridges=True)


def rows(*answers):
    """Rows as they are trained on: a question that is not learned, an answer, its end."""
    width = 2 + max(map(len, answers)) + 1
    targets = torch.full((len(answers), width), IGNORE)
    for row, answer in zip(targets, answers, strict=True):
        row[2 : 3 + len(answer)] = torch.tensor([*answer, STOP])
    return torch.zeros_like(targets), targets


def sounds(model, n, length=8, seed=0):
    width = model.audio_encoder.cfg.encoder.hidden_size
    return torch.randn(n, length, width, generator=torch.Generator().manual_seed(seed))


def test_scores_are_distances():
    tokens, embeddings = torch.randn(2, 3, 4), torch.randn(5, 4)
    mean = embeddings.mean(dim=0)
    scores = word_scores(tokens, embeddings, mean)
    distances = torch.cdist(tokens, torch.cat([mean[None], embeddings]).expand(2, -1, -1)).square()
    assert torch.allclose(scores.softmax(-1), (-SHARPNESS / 2 * distances).softmax(-1), atol=1e-6)


def test_two_tokens_and_one_word_by_hand(model):
    """The word at the first token, at the second, or at both."""
    model.bridged = lambda _features: {"audio": (tokens, torch.ones(1, 2, dtype=torch.bool))}
    table = model.embed_tokens.weight
    tokens = (0.5 * (table[5] + table[8]) + 0.02 * torch.randn(1, 2, model.cfg.hidden_size)).detach()
    shares = word_scores(tokens, table[[5, 8]], table.mean(dim=0)).double().softmax(dim=-1)[0]
    nothing, word = shares[:, 0], shares[:, 1]
    expected = -math.log(float(word[0] * nothing[1] + nothing[0] * word[1] + word[0] * word[1]))
    objective = AlignmentObjective(model, words=(5, 8, STOP), stops=(STOP,))
    loss = objective(*rows([5]), features=Features(sounds=sounds(model, 1)))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_a_batch_is_the_sum_of_its_rows_and_what_is_padded_is_not_heard(model):
    ids, targets = rows([3, 5], [8])
    heard = sounds(model, 2)
    mask = torch.tensor([[True] * 8, [True] * 5 + [False] * 3])
    objective = AlignmentObjective(model, words=WORDS, stops=(STOP,))
    both = objective(ids, targets, features=Features(sounds=heard, sound_mask=mask))
    one = objective(ids[:1], targets[:1], features=Features(sounds=heard[:1]))
    other = objective(ids[1:], targets[1:], features=Features(sounds=heard[1:, :5]))
    assert torch.allclose(both, one + other, rtol=1e-5)


def test_a_bridge_learns_to_be_read_and_nothing_else_trains(model):
    ids, targets = rows([3, 5], [8], [13, 3])
    features = Features(sounds=sounds(model, 3))
    objective = AlignmentObjective(model, words=WORDS, stops=(STOP,))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(60):
        loss = objective(ids, targets, features=features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < losses[0]
    assert all(name.startswith("audio_bridge") for name in trained)
    tokens, mask = model.bridged(features)["audio"]
    assert nearest_words(model, tokens, mask, WORDS) == [[3, 5], [8], [13, 3]]
    assert objective.used == {"audio_bridge"}


def test_more_words_than_tokens_teach_nothing(model):
    objective = AlignmentObjective(model, words=WORDS, stops=(STOP,))
    loss = objective(*rows([3, 5, 8, 13, 3]), features=Features(sounds=sounds(model, 1)))  # 4 tokens
    loss.backward()
    assert loss.item() == 0
    assert all(not p.grad.any() for p in model.audio_bridge.parameters())


def test_rows_of_another_kind_are_refused(model):
    objective = AlignmentObjective(model, words=WORDS, stops=(STOP,))
    ids, targets = rows([3], [5])
    for given in ({}, {"features": Features(sounds=sounds(model, 1))}):
        with pytest.raises(InputError, match=f"one sound a row.*2 rows came with {'1 sound' if given else '0 sounds'}"):
            objective(ids, targets, **given)
    with pytest.raises(InputError, match="one sound a row"):
        objective(ids, targets, torch.ones_like(ids), features=Features(sounds=sounds(model, 2)))
    with pytest.raises(InputError, match="the word 7, which is not among"):
        objective(*rows([7]), features=Features(sounds=sounds(model, 1)))
    with pytest.raises(InputError, match="no words to align"):
        AlignmentObjective(model, words=(STOP,), stops=(STOP,))


def test_the_loss_is_pytorchs(model):
    ids, targets = rows([3, 5, 5], [8, 13])
    features = Features(sounds=sounds(model, 2, length=14))
    objective = AlignmentObjective(model, words=WORDS, stops=(STOP,))
    tokens, _ = model.bridged(features)["audio"]
    table = model.embed_tokens.weight
    log_probs = word_scores(tokens, table[list(WORDS)], table.mean(dim=0)).log_softmax(-1).transpose(0, 1)
    theirs = F.ctc_loss(log_probs, torch.tensor([[1, 2, 2], [3, 4, 0]]), torch.tensor([7, 7]), torch.tensor([3, 2]),
                        reduction="none")  # fmt: skip
    assert torch.allclose(objective(ids, targets, features=features), theirs.sum())
