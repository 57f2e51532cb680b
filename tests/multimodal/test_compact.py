"""multimodal.compact: words first and in their order, by hand; what says nothing and what repeats goes to the end."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamamm.errors import ConfigError
from llamamm.multimodal.bridge import Bridge
from llamamm.multimodal.compact import compacted, says_something, word_scores
from llamamm.multimodal.config import BridgeConfig, MultimodalConfig
from llamamm.multimodal.model import Features, MultimodalLlama
from llamamm.pretrained.load import from_pretrained
from llamamm.pretrained.save import save_pretrained
from llamamm.pretrained.skill import load_skill, save_skill
from llamamm.senses.config import AudioConfig
from llamamm.text.config import TextConfig

TABLE = 3 * torch.eye(4)  # four words, as far from each other as can be
NOTHING = TABLE.mean(dim=0)


def tokens_of(*words):
    """A sound's tokens that say these words; None: nothing."""
    return torch.stack([NOTHING if word is None else TABLE[word] for word in words])[None]


def said(tokens):
    return [None if torch.equal(t, NOTHING) else int(t.argmax()) for t in tokens[0]]


def scores_of(tokens):
    return word_scores(tokens, TABLE, NOTHING)


def test_words_move_up_and_silence_follows():
    tokens = tokens_of(None, 2, None, None, 0, 1, None)
    mask = torch.ones(1, 7, dtype=torch.bool)
    assert said(compacted(tokens, mask, TABLE)) == [2, 0, 1, None, None, None, None]


def test_what_repeats_counts_once_unless_silence_is_between():
    tokens = tokens_of(2, 2, None, 2, 3, 3)
    assert said(compacted(tokens, torch.ones(1, 6, dtype=torch.bool), TABLE)) == [2, 2, 3, None, None, None]


def test_padding_says_nothing():
    mask = torch.tensor([[True, True, False, False]])
    assert says_something(scores_of(tokens_of(1, 2, 3, 0)), mask).tolist() == [[True, True, False, False]]


def test_a_token_is_read_as_the_words_that_it_may_be():
    """Between two words, a little nearer to the first: e^-2d² of each, "nothing here" too, by hand."""
    token = (0.92 * TABLE[1] + 0.9 * TABLE[2]).requires_grad_()
    places = torch.stack([NOTHING, *TABLE])
    weights = [float(torch.exp(-2.0 * (token.detach() - place).square().sum())) for place in places]
    expected = sum(w / sum(weights) * place for w, place in zip(weights, places, strict=True))
    out = compacted(torch.stack([NOTHING, token])[None], torch.ones(1, 2, dtype=torch.bool), TABLE)
    assert torch.allclose(out[0, 0], expected, atol=1e-5)
    assert 0 < weights[3] < weights[2] and torch.equal(out[0, 1], NOTHING)
    out[0, 0, 1].backward()
    assert token.grad[1] > 0 > token.grad[2]  # what is said can be learned through it


def test_a_sure_token_is_its_word_however_long_it_is():
    out = compacted(12 * tokens_of(1), torch.ones(1, 1, dtype=torch.bool), TABLE)
    assert torch.equal(out[0, 0], TABLE[1])


def test_only_known_words_are_said():
    known = torch.tensor([True, False, True, True])
    token = TABLE[1] + 0.9 * TABLE[2]  # nearest to a word that is not known
    out = compacted(token[None, None], torch.ones(1, 1, dtype=torch.bool), TABLE, known)
    places = torch.stack([NOTHING, *TABLE[known]])
    shares = (-2.0 * (token - places).square().sum(dim=1)).softmax(dim=0)
    assert shares.argmax() == 2 and torch.allclose(out[0, 0], shares @ places, atol=1e-5)
    assert torch.equal(compacted(token[None, None], torch.ones(1, 1, dtype=torch.bool), TABLE),
                       compacted(token[None, None], torch.ones(1, 1, dtype=torch.bool), TABLE, known | True))
    assert not torch.equal(out[0, 0], compacted(token[None, None], torch.ones(1, 1, dtype=torch.bool), TABLE)[0, 0])


def test_what_is_not_real_may_be_anything():
    tokens = torch.cat([tokens_of(2), torch.full((1, 1, 4), torch.nan)], dim=1)
    out = compacted(tokens, torch.tensor([[True, False]]), TABLE)
    assert said(out) == [2, None]


def test_bf16_and_an_empty_batch_keep_their_shape():
    assert compacted(tokens_of(2, None).bfloat16(), torch.ones(1, 2, dtype=torch.bool), TABLE.bfloat16()).dtype is (
        torch.bfloat16)
    assert compacted(torch.zeros(0, 3, 4), torch.ones(0, 3, dtype=torch.bool), TABLE).shape == (0, 3, 4)


@given(st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=1, max_size=12))
def test_any_sound_reads_as_ctc_reads_it(words):
    read = [w for w, before in zip(words, [None, *words[:-1]], strict=True) if w is not None and w != before]
    out = said(compacted(tokens_of(*words), torch.ones(1, len(words), dtype=torch.bool), TABLE))
    assert out == read + [None] * (len(words) - len(read))


def test_scores_are_distances():
    tokens, table = torch.randn(2, 3, 4), torch.randn(5, 4)
    scores = word_scores(tokens, table, table.mean(dim=0))
    distances = torch.cdist(tokens, torch.cat([table.mean(dim=0)[None], table]).expand(2, -1, -1)).square()
    assert torch.allclose(scores.softmax(-1), (-2.0 * distances).softmax(-1), atol=1e-6)


def test_the_model_reads_compacted_tokens_where_its_bridge_says_so():
    torch.manual_seed(0)
    text, audio = TextConfig.tiny(vocab_size=20), AudioConfig.tiny()
    models = []
    for compact in (False, True):
        torch.manual_seed(1)
        bridge = BridgeConfig("swiglu", merge=2, compact=compact)
        models.append(MultimodalLlama(MultimodalConfig(text, None, audio, audio_bridge=bridge)).eval())
    plain, compact = models
    features = Features(sounds=torch.randn(1, 8, audio.encoder.hidden_size))
    ids = torch.tensor([[plain.multimodal_cfg.audio_token] * plain.multimodal_cfg.n_audio_places(8) + [3]])
    [(tokens, mask)] = compact.bridged(features).values()
    assert torch.equal(tokens, plain.bridged(features)["audio"][0])  # what is aligned stays as it is
    plain.bridged = lambda _features: {"audio": (compacted(tokens, mask, plain.embed_tokens.weight), mask)}
    assert torch.equal(plain(ids, features=features), compact(ids, features=features))


def test_what_a_bridge_knows_is_kept_by_a_skill_and_never_learned(tmp_path):
    cfg = MultimodalConfig.tiny(audio_bridge=BridgeConfig("swiglu", merge=2, compact=True))
    model, fresh = (MultimodalLlama(cfg).set_trainable(bridges=True) for _ in range(2))
    assert not model.audio_bridge.known.requires_grad and model.audio_bridge.known.all()
    model.audio_bridge.known.zero_()[[2, 5]] = 1
    save_skill(model, tmp_path / "skill")
    load_skill(fresh, tmp_path / "skill", check_base=False)
    assert fresh.audio_bridge.known.nonzero().flatten().tolist() == [2, 5]
    save_pretrained(model, tmp_path / "whole")
    whole, _ = from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    assert whole.audio_bridge.known.nonzero().flatten().tolist() == [2, 5]
    assert not whole.audio_bridge.known.requires_grad


def test_compact_is_kept_in_the_configuration_and_checked():
    cfg = MultimodalConfig.tiny(audio_bridge=BridgeConfig("swiglu", merge=2, compact=True))
    assert MultimodalConfig.from_hf(cfg.to_hf()).audio_bridge.compact is True
    with pytest.raises(ConfigError, match="compact is true or false, got 'yes'"):
        BridgeConfig(compact="yes")
    assert Bridge(BridgeConfig(), TextConfig.tiny(), n_numbers=4, flat=False).cfg.compact is False
