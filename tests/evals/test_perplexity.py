"""evals.perplexity: windows by hand, sums as one long reading and as token by token, and transformers' own loop."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from llamamm import Llama3Model, TextConfig
from llamamm.errors import ContextOverflowError, InputError
from llamamm.evals import perplexity as module
from llamamm.evals.perplexity import Reading, Window, bits_per_byte, read_texts, token_bits, windows
from llamamm.train.tokenizer import train_tokenizer

TEXT = "this is a red picture é and what is this a red picture, user? what a picture! " * 4
CONTEXT = 24


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(["user assistant what is this a red picture"] * 9, tmp_path_factory.mktemp("words"),
                           vocab_size=300)  # fmt: skip


class WithBos:
    """A tokenizer of a model that was trained on texts which begin with BOS, as Llama 3's."""

    adds_bos = True

    def __init__(self, tokenizer):
        self.inside, self.token_bytes = tokenizer, tokenizer.token_bytes

    def encode(self, text, *, bos):
        assert bos
        return [self.inside.eos_id, *self.inside.encode(text)]


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    cfg = TextConfig.tiny(vocab_size=tokenizer.vocab_size, tie_embeddings=False, context_length=CONTEXT)
    return sharpened(Llama3Model(cfg)).eval()


@pytest.fixture(scope="module")
def long_model(tokenizer):
    """The same weights with a context for the whole text."""
    torch.manual_seed(0)
    cfg = TextConfig.tiny(vocab_size=tokenizer.vocab_size, tie_embeddings=False, context_length=512)
    return sharpened(Llama3Model(cfg)).eval()


def sharpened(model):
    """Fresh weights are near 0 and foretell all alike; what a token reads would hardly matter."""
    for p in model.parameters():
        if p.dim() == 2:
            p.data *= 8
    return model


@torch.no_grad()
def bits_of(model, ids):
    """-log2 p of every token but the first, in one reading."""
    log_probs = model(torch.tensor([ids]))[0].double().log_softmax(dim=-1)
    return [-float(log_probs[n, ids[n + 1]]) / math.log(2) for n in range(len(ids) - 1)]


def by_hand(model, ids, length, stride):
    """Each token from as far back as its window reaches, one reading a token."""
    total = bits_of(model, ids[:length])
    begin, done = 0, min(length, len(ids))
    while done < len(ids):
        begin += stride
        for n in range(done, min(begin + length, len(ids))):
            total.append(bits_of(model, ids[begin : n + 1])[-1])
        done = min(begin + length, len(ids))
    return total


# ---- windows ----


def test_windows_by_hand():
    assert windows(9, length=6, stride=2) == [Window(0, 6, 1), Window(2, 8, 6), Window(4, 9, 8)]
    assert windows(6, length=6, stride=2) == windows(6, length=7, stride=2) == [Window(0, 6, 1)]
    assert windows(7, length=4, stride=3) == [Window(0, 4, 1), Window(3, 7, 4)]


@given(st.integers(2, 60), st.integers(2, 20), st.data())
def test_each_token_is_scored_once_with_enough_before_it(n_tokens, length, data):
    stride = data.draw(st.integers(1, length - 1))
    found = windows(n_tokens, length=length, stride=stride)
    scored = [n for w in found for n in range(w.first, w.end)]
    assert scored == list(range(1, n_tokens))
    for w in found:
        assert w.end - w.begin <= length and w.first < w.end
        assert w.first - w.begin >= min(length - stride, w.first)


@pytest.mark.parametrize("stride", [0, 6, 7, -1])
def test_a_stride_that_leaves_nothing_before_a_token_is_said(stride):
    with pytest.raises(InputError, match=f"got stride {stride} for windows of 6"):
        windows(9, length=6, stride=stride)


# ---- sums ----


def test_a_text_that_fits_is_read_at_once(long_model, tokenizer):
    ids = tokenizer.encode(TEXT)
    (found,) = read_texts(long_model, tokenizer, [TEXT], length=400)
    assert found.bits == pytest.approx(sum(bits_of(long_model, ids)), rel=1e-5)
    assert found.n_tokens == len(ids) - 1 == 100
    assert found.n_bytes == len(TEXT.encode()) - len(tokenizer.token_bytes(ids[0]))


@pytest.mark.parametrize("length, stride", [(12, 1), (CONTEXT, 1), (16, 5), (16, 15), (2, 1)])
def test_a_text_over_the_context_is_read_as_by_hand(model, tokenizer, length, stride):
    text = TEXT[:110]
    ids = tokenizer.encode(text)
    assert len(ids) > CONTEXT
    (found,) = read_texts(model, tokenizer, [text], length=length, stride=stride, batch_size=3)
    assert found.bits == pytest.approx(sum(by_hand(model, ids, length, stride)), rel=1e-5)
    assert (found.n_tokens, found.n_bytes) == (len(ids) - 1, len(text.encode()) - len(tokenizer.token_bytes(ids[0])))


def test_a_bos_foretells_the_first_token_and_is_no_byte(model, tokenizer):
    text = TEXT[:40]
    with_bos = WithBos(tokenizer)
    (found,) = read_texts(model, with_bos, [text])
    ids = with_bos.encode(text, bos=True)
    assert found.bits == pytest.approx(sum(bits_of(model, ids)), rel=1e-5)
    assert (found.n_tokens, found.n_bytes) == (len(ids) - 1, len(text.encode()))


def test_texts_of_all_lengths_together_are_as_each_alone(model, tokenizer, monkeypatch):
    texts = [TEXT[:20], TEXT, TEXT[5:60], "a red", TEXT[:200]]
    told = []
    together = read_texts(model, tokenizer, texts, length=20, stride=8, batch_size=4, say=told.append)
    assert told == [*range(4, told[-1], 4), told[-1]]
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    monkeypatch.setattr(module, "MIN_CHUNK", 5)  # rows of logits at a time
    for text, found in zip(texts, together, strict=True):
        (alone,) = read_texts(model, tokenizer, [text], length=20, stride=8, batch_size=1)
        assert found.bits == pytest.approx(alone.bits, rel=1e-5)
        assert (found.n_bytes, found.n_tokens) == (alone.n_bytes, alone.n_tokens)


def test_only_what_is_scored_goes_through_the_head(model, tokenizer, monkeypatch):
    rows = []
    head = model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda x: rows.append(len(x)) or head(x))
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    (found,) = read_texts(model, tokenizer, [TEXT], length=16, stride=4)
    assert sum(rows) == found.n_tokens and max(rows) <= module.MIN_CHUNK


def test_defaults_are_the_context_and_half_of_it(model, tokenizer):
    assert read_texts(model, tokenizer, [TEXT]) == read_texts(model, tokenizer, [TEXT], length=24, stride=12)
    assert read_texts(model, tokenizer, []) == []


def test_a_smaller_stride_reads_more_before_each_token(model, tokenizer):
    """Which lowers the figure of a model that has learnt to use it; of this one it changes it."""
    one, two = (read_texts(model, tokenizer, [TEXT], length=16, stride=stride)[0] for stride in (1, 15))
    assert one.n_tokens == two.n_tokens and one.bits != pytest.approx(two.bits, rel=1e-3)


# ---- figures ----


def test_a_model_that_knows_nothing_is_in_doubt_among_all_tokens(tokenizer):
    torch.manual_seed(0)
    model = Llama3Model(TextConfig.tiny(vocab_size=tokenizer.vocab_size, tie_embeddings=False)).eval()
    model.lm_head.weight.data.zero_()
    (found,) = read_texts(model, tokenizer, [TEXT], length=20)
    assert found.perplexity == pytest.approx(tokenizer.vocab_size, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(
        found.n_tokens * math.log2(tokenizer.vocab_size) / found.n_bytes, rel=1e-5)  # fmt: skip


def test_figures_by_hand_and_readings_add_up():
    one, two = Reading(12.0, 8, 4), Reading(6.0, 1, 5)
    assert (one.perplexity, one.bits_per_byte) == (8, 1.5)
    assert sum([one, two], Reading()) == Reading(18.0, 9, 9) and (one + two).perplexity == 4


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_of_which_nothing_is_foretold_is_said(model, tokenizer, text):
    with pytest.raises(InputError, match=f"{text!r} has {len(text)} tokens: none has one before it"):
        read_texts(model, tokenizer, ["a red picture", text])


def test_windows_over_the_context_are_said(model, tokenizer):
    with pytest.raises(ContextOverflowError, match="windows of 25 tokens pass the context of 24"):
        read_texts(model, tokenizer, [TEXT], length=25)


# ---- transformers ----


def test_as_transformers_documents_it(tokenizer):
    """Its loop over one text, on the same weights. There each loss is a mean over the labels that are not -100 and not
    shifted out; the page multiplies it by a number that is one too small in all windows but the first."""
    torch.manual_seed(0)
    cfg = TextConfig.tiny(vocab_size=tokenizer.vocab_size, tie_embeddings=False)
    ours = sharpened(Llama3Model(cfg)).eval()
    theirs = LlamaForCausalLM(LlamaConfig(**cfg.to_hf())).eval()
    theirs.load_state_dict({ours.hf_name(name): p for name, p in ours.state_dict().items()})
    ids = torch.tensor([tokenizer.encode(TEXT)])
    max_length, stride = 32, 12
    nll, n_tokens, previous = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + max_length, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : previous - begin] = -100
        with torch.no_grad():
            loss = theirs(ids[:, begin:end], labels=labels).loss
        n_losses = int((labels[:, 1:] != -100).sum())
        nll, n_tokens, previous = nll + float(loss) * n_losses, n_tokens + n_losses, end
        if end == ids.shape[1]:
            break
    (found,) = read_texts(ours, tokenizer, [TEXT], length=max_length, stride=stride)
    assert found.n_tokens == n_tokens == ids.shape[1] - 1
    assert found.bits * math.log(2) == pytest.approx(nll, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(nll / n_tokens), rel=1e-5)


# ---- a quick look ----


def test_bits_a_byte_of_a_model_that_knows_nothing_is_a_count(tokenizer):
    """Each token takes log2 of the vocabulary; the first is not predicted, nor are its bytes counted."""
    torch.manual_seed(0)
    model = Llama3Model(TextConfig.tiny(vocab_size=tokenizer.vocab_size, tie_embeddings=False)).eval()
    model.lm_head.weight.data.zero_()
    text = "what is this é"
    ids = tokenizer.encode(text)
    n_bytes = len(text.encode()) - len(tokenizer.decode(ids[:1]).encode())
    expected = (len(ids) - 1) * math.log2(tokenizer.vocab_size) / n_bytes
    assert bits_per_byte(model, tokenizer, [text, text]) == pytest.approx([expected] * 2, rel=1e-5)


def test_bits_a_byte_are_the_sum_over_tokens_up_to_a_length(model, tokenizer):
    text = "this is a red picture and what is this a red picture"
    ids = tokenizer.encode(text)[:6]
    (found,) = bits_per_byte(model, tokenizer, [text], length=6)
    assert found == pytest.approx(sum(bits_of(model, ids)) / len(tokenizer.decode(ids[1:]).encode()), rel=1e-5)
    assert found != pytest.approx(bits_per_byte(model, tokenizer, [text], length=24)[0], rel=1e-5)


def test_half_a_character_is_one_byte(model, tokenizer):
    ids = tokenizer.encode("a é")
    assert tokenizer.token_bytes(ids[-2]) == b"\xc3"
    (found,) = bits_per_byte(model, tokenizer, ["a é"], length=len(ids) - 1)
    n_bytes = len("a é".encode()) - 1 - len(tokenizer.token_bytes(ids[0]))
    assert found == pytest.approx(sum(bits_of(model, ids[:-1])) / n_bytes, rel=1e-5)


def test_a_text_of_one_token_says_nothing(model, tokenizer):
    with pytest.raises(InputError, match="'what is this' is a text of one token"):
        bits_per_byte(model, tokenizer, ["what is this"], length=1)


def test_bits_of_each_token_of_rows_of_two_lengths(model):
    rows = [[5, 9, 80, 200, 7], [8, 6, 4]]
    one, two = token_bits(model, rows, [3, 1])
    assert one.tolist() == pytest.approx(bits_of(model, rows[0])[2:], rel=1e-5)
    assert two.tolist() == pytest.approx(bits_of(model, rows[1]), rel=1e-5) and one.dtype == torch.float64
