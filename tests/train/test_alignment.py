"""train.alignment: CTC and words without order, by hand and as PyTorch's own, and bridges that learn by them."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from llamamm.errors import InputError
from llamamm.generation.prompts import Image, Sound
from llamamm.multimodal.config import BridgeConfig, MultimodalConfig
from llamamm.multimodal.model import Features, MultimodalLlama
from llamamm.senses.config import AudioConfig, VisionConfig
from llamamm.text.config import TextConfig
from llamamm.train import alignment
from llamamm.train.alignment import (
    PULL,
    SHARPNESS,
    AlignmentObjective,
    check_aligned,
    distance,
    nearest_words,
    picture_loss,
    word_scores,
)
from llamamm.train.losses import IGNORE
from llamamm.train.records import Record, read_record

WORDS, STOP = (3, 5, 8, 13), 2
N_WORDS = 20
IMAGE, AUDIO = N_WORDS, N_WORDS + 1  # the ids that stand for media


@pytest.fixture
def model():
    torch.manual_seed(0)
    text = TextConfig.tiny(vocab_size=N_WORDS)
    cfg = MultimodalConfig(text, VisionConfig.tiny(), AudioConfig.tiny(), image_bridge=BridgeConfig("mlp", merge=2),
                           audio_bridge=BridgeConfig("swiglu", merge=2))  # fmt: skip
    model = MultimodalLlama(cfg)
    model.embed_tokens.weight.data.normal_()
    return model.set_trainable(bridges=True)


def rows(*answers, media=AUDIO):
    """Rows as they are trained on: a place of a sound, or of what `media` says for each row, and a word, which are not
    learned, an answer, its end."""
    width = 2 + max(map(len, answers)) + 1
    targets = torch.full((len(answers), width), IGNORE)
    for row, answer in zip(targets, answers, strict=True):
        row[2 : 3 + len(answer)] = torch.tensor([*answer, STOP])
    ids = torch.zeros_like(targets)
    ids[:, 0] = torch.tensor(media)
    return ids, targets


def sounds(model, n, length=8, seed=0):
    width = model.audio_encoder.cfg.encoder.hidden_size
    return torch.randn(n, length, width, generator=torch.Generator().manual_seed(seed))


def pictures(model, n, seed=1):
    """Of 4 x 4 patches, 4 tokens of this bridge."""
    width = model.vision_tower.cfg.encoder.hidden_size
    return torch.randn(n, 16, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def no_pull(monkeypatch):
    """What should be said alone; the pull beside it has tests of its own."""
    monkeypatch.setattr(alignment, "PULL", 0.0)


def test_scores_are_distances():
    tokens, embeddings = torch.randn(2, 3, 4), torch.randn(5, 4)
    mean = embeddings.mean(dim=0)
    scores = word_scores(tokens, embeddings, mean)
    distances = torch.cdist(tokens, torch.cat([mean[None], embeddings]).expand(2, -1, -1)).square()
    assert torch.allclose(scores.softmax(-1), (-SHARPNESS / 2 * distances).softmax(-1), atol=1e-6)


@pytest.mark.usefixtures("no_pull")
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
    assert {name.split(".")[0] for name in trained} == {"image_bridge", "audio_bridge"}
    assert all(not p.grad.any() for p in model.image_bridge.parameters())  # no picture was seen
    tokens, mask = model.bridged(features)["audio"]
    assert nearest_words(model, tokens, mask, WORDS) == [[3, 5], [8], [13, 3]]
    assert objective.used == {"audio_bridge"}


@pytest.mark.usefixtures("no_pull")
def test_more_words_than_tokens_teach_nothing(model):
    objective = AlignmentObjective(model, words=WORDS, stops=(STOP,))
    loss = objective(*rows([3, 5, 8, 13, 3]), features=Features(sounds=sounds(model, 1)))  # 4 tokens
    loss.backward()
    assert loss.item() == 0
    assert all(not p.grad.any() for p in model.audio_bridge.parameters())


def test_rows_of_another_kind_are_refused(model):
    objective = AlignmentObjective(model, words=WORDS, stops=(STOP,))
    ids, targets = rows([3], [5])
    for what in ({}, {"features": Features(sounds=sounds(model, 1))}):
        with pytest.raises(InputError, match=f"one sound or one picture a row; 2 rows came with "
                                             f"{'1 sound' if what else '0 sounds'} and 0 pictures"):  # fmt: skip
            objective(ids, targets, **what)
    with pytest.raises(InputError, match="2 rows came with 0 sounds and 2 pictures"):  # places of sounds
        objective(ids, targets, features=Features(images=pictures(model, 2)))
    with pytest.raises(InputError, match="one sound or one picture a row"):  # a row without any
        objective(*rows([3], [5], media=[AUDIO, 0]), features=Features(sounds=sounds(model, 1)))
    both, targets_of_one = rows([3])
    both[0, 1] = IMAGE
    with pytest.raises(InputError, match="1 row came with 1 sound and 1 picture"):
        objective(both, targets_of_one, features=Features(pictures(model, 1), sounds(model, 1)))
    with pytest.raises(InputError, match="one sound or one picture a row"):
        objective(ids, targets, torch.ones_like(ids), features=Features(sounds=sounds(model, 2)))
    with pytest.raises(InputError, match="the word 7, which is not among"):
        objective(*rows([7]), features=Features(sounds=sounds(model, 1)))
    with pytest.raises(InputError, match="no words to align"):
        AlignmentObjective(model, words=(STOP,), stops=(STOP,))


@pytest.mark.usefixtures("no_pull")
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


# ---- the pull to what is said already ----


def test_a_distance_by_hand():
    """A token at (3, 4) that rather says the word at (1, 0) than nothing, at (0, 2); and one for which it is not so."""
    tokens, words, nothing = torch.tensor([[3.0, 4.0]] * 2), torch.tensor([[1.0, 0.0]]), torch.tensor([0.0, 2.0])
    found = distance(tokens.requires_grad_(), torch.tensor([[0.4, 0.6], [0.6, 0.4]]).log(), words, nothing)
    assert found.tolist() == pytest.approx([SHARPNESS / 2 * (2**2 + 4**2), SHARPNESS / 2 * (3**2 + 2**2)])
    found.sum().backward()
    assert torch.allclose(tokens.grad, SHARPNESS * torch.tensor([[2.0, 4.0], [3.0, 2.0]]))  # towards it


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_the_pull_is_that_of_all_real_tokens(model, monkeypatch, kind):
    mask = torch.tensor([[True] * 8, [True] * 4 + [False] * 4])
    features = Features(images=pictures(model, 2)) if kind == "image" else Features(None, sounds(model, 2), mask)
    objective = AlignmentObjective(model, words=WORDS, stops=(STOP,))
    given = *rows([3], [5], media=IMAGE if kind == "image" else AUDIO),
    whole = objective(*given, features=features)
    monkeypatch.setattr(alignment, "PULL", 0.0)
    tokens, real = model.bridged(features)[kind]
    table = model.embed_tokens.weight
    said = table[list(WORDS)], table.mean(dim=0)
    shares = word_scores(tokens, *said).log_softmax(-1)
    assert real.sum() == (8 if kind == "image" else 6)
    expected = PULL * distance(tokens, shares, *said)[real].sum()
    assert torch.allclose(whole - objective(*given, features=features), expected, rtol=1e-3)


def test_a_compact_bridge_is_not_pulled_and_notes_the_words_it_knows(model):
    cfg = MultimodalConfig(model.cfg, None, AudioConfig.tiny(), audio_bridge=BridgeConfig("swiglu", 2, compact=True))
    compact = MultimodalLlama(cfg)
    compact.embed_tokens.weight.data.copy_(model.embed_tokens.weight)
    compact.audio_bridge.load_state_dict(model.audio_bridge.state_dict(), strict=False)
    given, features = rows([3, 5]), Features(sounds=sounds(model, 1))
    pulled, free = (AlignmentObjective(some, words=WORDS, stops=(STOP,)) for some in (model, compact))
    tokens, real = model.bridged(features)["audio"]
    table = model.embed_tokens.weight
    said = table[list(WORDS)], table.mean(dim=0)
    pull = PULL * distance(tokens, word_scores(tokens, *said).log_softmax(-1), *said)[real].sum()
    given = given[0].where(given[0] != AUDIO, compact.multimodal_cfg.audio_token), given[1]
    assert torch.allclose(pulled(*rows([3, 5]), features=features) - free(*given, features=features), pull, rtol=1e-3)
    assert compact.audio_bridge.known.nonzero().flatten().tolist() == list(WORDS)
    assert not hasattr(model.audio_bridge, "known")


# ---- pictures: words in no order ----


def log(*rows):
    return torch.tensor(rows, dtype=torch.float32).log()


def test_two_tokens_of_a_picture_by_hand():
    """Two words, "nothing here" first: some token says each, and each token says one of them or nothing."""
    shares = log([0.5, 0.3, 0.1, 0.1], [0.2, 0.4, 0.2, 0.2])
    said = (1 - 0.7 * 0.6) * (1 - 0.9 * 0.8)
    expected = -math.log(said) - (math.log(0.9) + math.log(0.8)) / 2
    assert picture_loss(shares, [1, 2]).item() == pytest.approx(expected, rel=1e-5)
    one = -math.log(1 - 0.7 * 0.6) - (math.log(0.8) + math.log(0.6)) / 2
    assert picture_loss(shares, [1]).item() == pytest.approx(one, rel=1e-5)
    assert picture_loss(shares, []).item() == pytest.approx(-(math.log(0.5) + math.log(0.2)) / 2, rel=1e-5)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 4), st.integers(0, 99))
def test_order_and_number_of_words_and_the_order_of_tokens_do_not_matter(said, n_tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    shares = torch.randn(n_tokens, 6, generator=generator).log_softmax(dim=-1)
    loss = picture_loss(shares, said)
    assert torch.isfinite(loss) and loss > 0
    for same in (sorted(said), said[::-1], said * 2):
        assert torch.equal(picture_loss(shares, same), loss)
    assert picture_loss(shares.flip(0), said).item() == pytest.approx(loss.item(), rel=1e-4)


def test_words_that_are_far_off_draw_the_tokens_too():
    """A score of -40 for both words: of probabilities below fp32's last digit of 1, the gradient is still whole."""
    scores = torch.tensor([[40.0, 0, 0], [40, 0, 0]], requires_grad=True)
    loss = picture_loss(scores.log_softmax(dim=-1), [1, 2])
    loss.backward()
    assert loss.item() == pytest.approx(2 * (40 - math.log(2)), rel=1e-3)
    assert torch.allclose(scores.grad, torch.tensor([[1, -0.5, -0.5]] * 2), atol=1e-3)


@pytest.mark.parametrize("p", [3e-5, 2e-4, 0.999999, 1.0])
def test_the_loss_is_the_same_on_both_sides_of_a_rare_word_and_finite_for_a_sure_one(p):
    shares = log([max(1 - p, 1e-9), p], [max(1 - p, 1e-9), p])
    expected = -math.log(1 - (1 - min(p, 1 - 1e-6)) ** 2)
    assert picture_loss(shares, [1]).item() == pytest.approx(expected, rel=1e-4, abs=2e-6)


@pytest.mark.usefixtures("no_pull")
def test_a_picture_in_a_batch_has_the_loss_of_its_own_tokens(model):
    objective = AlignmentObjective(model, words=WORDS, stops=(STOP,))
    features = Features(images=pictures(model, 2))
    tokens, _ = model.bridged(features)["image"]
    table = model.embed_tokens.weight
    shares = word_scores(tokens, table[list(WORDS)], table.mean(dim=0)).log_softmax(-1)
    expected = picture_loss(shares[0], [1, 3]) + picture_loss(shares[1], [4])
    loss = objective(*rows([8, 3], [13], media=IMAGE), features=features)
    assert torch.allclose(loss, expected, rtol=1e-5)


def test_sounds_and_pictures_of_a_batch_are_the_sum_of_the_two_alone(model):
    objective = AlignmentObjective(model, words=WORDS, stops=(STOP,))
    seen, heard = pictures(model, 2), sounds(model, 2)
    answers = [3, 5], [8], [13], [5, 8]
    mixed = objective(*rows(*answers, media=[IMAGE, AUDIO, AUDIO, IMAGE]), features=Features(seen, heard))
    alone = (objective(*rows(answers[0], answers[3], media=IMAGE), features=Features(seen))
             + objective(*rows(answers[1], answers[2]), features=Features(sounds=heard)))  # fmt: skip
    assert torch.allclose(mixed, alone, rtol=1e-5)
    mixed.backward()
    for bridge in (model.image_bridge, model.audio_bridge):
        assert any(p.grad.any() for p in bridge.parameters())
    assert objective.used == {"image_bridge", "audio_bridge"}


def test_an_evaluation_counts_no_bridge_as_used(model):
    """Else the optimizer would take a bridge of which no step has seen anything for one that learns."""
    objective = AlignmentObjective(model, words=WORDS, stops=(STOP,)).eval()
    objective(*rows([3], media=IMAGE), features=Features(images=pictures(model, 1)))
    assert objective.used == set()


@pytest.mark.usefixtures("no_pull")
def test_a_bridge_of_pictures_learns_their_words(model):
    ids, targets = rows([3, 5], [8], [13, 3], media=IMAGE)
    features = Features(images=pictures(model, 3))
    objective = AlignmentObjective(model, words=WORDS, stops=(STOP,))
    optimizer = torch.optim.AdamW(model.image_bridge.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = objective(ids, targets, features=features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < losses[0]
    tokens, mask = model.bridged(features)["image"]
    assert [set(words) for words in nearest_words(model, tokens, mask, WORDS)] == [{3, 5}, {8}, {13, 3}]


# ---- which records ----


@pytest.mark.parametrize("record", [{"image": "a.png", "text": "a cat"}, {"audio": "a.wav", "text": "hello"},
                                    {"audio": "a.wav", "question": "What?", "answer": "hello"}])  # fmt: skip
def test_a_picture_or_a_sound_with_what_it_says_is_aligned(record):
    check_aligned(read_record(record))


@pytest.mark.parametrize(("record", "has"), [
    (Record("a text"), "0 sounds, 0 pictures and 0 messages"),
    (Record(messages=[{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "a"}]),
     "0 sounds, 0 pictures and 2 messages"),
    (Record(messages=[{"role": "user", "content": [Image("a.png"), Sound("a.wav"), "?"]},
                      {"role": "assistant", "content": "a"}]), "1 sound, 1 picture and 2 messages"),
    (Record(messages=[{"role": "user", "content": [Image("a.png"), Image("b.png"), "?"]},
                      {"role": "assistant", "content": "a"}]), "0 sounds, 2 pictures and 2 messages"),
    (Record(messages=[{"role": "user", "content": [Image("a.png"), "?"]}, {"role": "assistant", "content": "a"},
                      {"role": "user", "content": "?"}, {"role": "assistant", "content": "b"}]),
     "0 sounds, 1 picture and 4 messages"),
])  # fmt: skip
def test_other_records_are_named_by_what_they_have(record, has):
    with pytest.raises(InputError, match=f"one sound or one picture, with what it says; this one has {has}$"):
        check_aligned(record)
