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
from llamamm.senses.config import AudioConfig
from llamamm.text.config import TextConfig

TABLE = 3 * torch.eye(4)  # four words, as far from each other as can be
NOTHING = TABLE.mean(dim=0)


def tokens_of(*words):
    """A sound's tokens that say these words; None: nothing."""
    return torch.stack([NOTHING if word is None else TABLE[word] for word in words])[None]


def said(tokens):
    return [None if torch.equal(t, NOTHING) else int(t.argmax()) for t in tokens[0]]


def test_words_move_up_and_silence_follows():
    tokens = tokens_of(None, 2, None, None, 0, 1, None)
    mask = torch.ones(1, 7, dtype=torch.bool)
    assert said(compacted(tokens, mask, TABLE)) == [2, 0, 1, None, None, None, None]


def test_what_repeats_counts_once_unless_silence_is_between():
    tokens = tokens_of(2, 2, None, 2, 3, 3)
    assert said(compacted(tokens, torch.ones(1, 6, dtype=torch.bool), TABLE)) == [2, 2, 3, None, None, None]


def test_padding_says_nothing():
    mask = torch.tensor([[True, True, False, False]])
    assert says_something(tokens_of(1, 2, 3, 0), mask, TABLE).tolist() == [[True, True, False, False]]


def test_a_token_keeps_its_own_numbers_and_its_gradient():
    tokens = (tokens_of(None, 1) + 0.1).requires_grad_()
    out = compacted(tokens, torch.ones(1, 2, dtype=torch.bool), TABLE)
    assert torch.equal(out[0, 0], tokens[0, 1])
    out.sum().backward()
    assert tokens.grad[0].tolist() == [[0.0] * 4, [1.0] * 4]


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


def test_compact_is_kept_in_the_configuration_and_checked():
    cfg = MultimodalConfig.tiny(audio_bridge=BridgeConfig("swiglu", merge=2, compact=True))
    assert MultimodalConfig.from_hf(cfg.to_hf()).audio_bridge.compact is True
    with pytest.raises(ConfigError, match="compact is true or false, got 'yes'"):
        BridgeConfig(compact="yes")
    assert Bridge(BridgeConfig(), TextConfig.tiny(), n_numbers=4, flat=False).cfg.compact is False
