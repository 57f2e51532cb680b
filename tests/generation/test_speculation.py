"""generation.speculation and drafts: the same text as plain decoding, the same distribution, and when it guesses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamm import Llama3Model, SamplingConfig, TextConfig, TextStream, Tokenizer, TokenStream, generate, pad_left
from llamamm.errors import ContextOverflowError, InputError, SamplingError
from llamamm.fast.quantized import quantize
from llamamm.generation import speculation
from llamamm.generation.drafts import ModelDraft, early_exit
from llamamm.generation.guarded import Judgement
from llamamm.generation.session import ChatSession
from llamamm.generation.speculation import (
    FEWEST,
    LOAN,
    MOST,
    Guess,
    Lookup,
    Speculator,
    accept,
    call_cost,
    choose,
    expected_tokens,
    look_up,
)
from llamamm.llama32_vision.config import MllamaConfig
from llamamm.llama32_vision.model import MllamaModel
from tests.generation.test_generate import ByteTokenizer, prompt
from tests.generation.test_guarded import Scripted
from tests.llama32_vision.test_model import inputs as vision_inputs
from tests.multimodal.test_model import PROMPTS, build, modes, one

WORDS = 12  # so few that a random model repeats itself, and guesses are right now and then


class Fixed:
    """Guesses what it is given, whatever was said."""

    def __init__(self, tokens, probs=None):
        self.guess = Guess(tokens, probs)

    def propose(self, ids, n, sampling, generator):  # noqa: ARG002
        probs = self.guess.probs
        return Guess(self.guess.tokens[:n], None if probs is None else probs[:n])


class Knowing:
    """Guesses the true continuation, but for every `wrong`th token."""

    def __init__(self, text, wrong=0, n_words=WORDS):
        self.text, self.wrong, self.n_words = text, wrong, n_words

    def propose(self, ids, n, sampling, generator):  # noqa: ARG002
        places = range(len(ids), min(len(ids) + n, len(self.text)))
        return Guess([(self.text[at] + (self.wrong > 0 and at % self.wrong == 0)) % self.n_words for at in places])


def model_of(seed=0, **changes):
    torch.manual_seed(seed)
    model = Llama3Model(TextConfig.tiny(**{"vocab_size": WORDS, **changes})).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4 if parameter.dim() > 1 else 1)  # decided, so that rounding does not choose
    return model


MODEL, SMALL = model_of(), model_of(1, n_layers=1)


# ---- the guess ----


def test_look_up_by_hand():
    assert look_up([1, 2, 3, 9, 8, 1, 2, 3], 2) == [9, 8]
    assert look_up([7, 1, 2, 5, 1, 2, 6, 1, 2], 4, size=2) == [6, 1, 2]  # the latest place, up to the end
    assert look_up([1, 2, 3], 5) == look_up([4], 5) == look_up([], 5) == []
    assert look_up([3, 3, 3, 3], 4) == [3]


@given(ids=st.lists(st.integers(0, 2), max_size=30), n=st.integers(1, 8))
def test_what_is_looked_up_stood_behind_the_same_tokens(ids, n):
    places = [at for at in range(3, len(ids)) if ids[at - 3 : at] == ids[-3:]]
    assert look_up(ids, n) == (ids[places[-1] : places[-1] + n] if places else [])


# ---- greedy, and with a seed: the same tokens ----

SETTINGS = st.sampled_from([
    {}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "seed": 1},
    {"repetition_penalty": 1.4}, {"temperature": 1.3, "min_p": 0.05, "repetition_penalty": 1.2, "seed": 2},
])  # fmt: skip


def answer(ids, n, speculate, *, temperature=0.0, top_k=None, top_p=None, min_p=None, repetition_penalty=1.0, **more):
    config = SamplingConfig(temperature, top_k, top_p, min_p, repetition_penalty)
    stream = TokenStream(MODEL, torch.tensor([ids]), max_new_tokens=n, sampling=config, speculate=speculate, **more)
    lengths, tokens = [], []
    for token in stream:
        tokens.append(int(token))
        lengths.append(stream.cache.length)
    return tokens, lengths, stream.cache.length, stream.stop_reasons


@settings(max_examples=30)
@given(ids=st.lists(st.integers(0, WORDS - 1), min_size=1, max_size=20), n=st.integers(0, 40),
       wrong=st.integers(0, 5), sampled=SETTINGS, stops=st.sets(st.integers(0, WORDS - 1), max_size=2),
       context=st.sampled_from([None, 24, 40]))  # fmt: skip
def test_text_cache_and_reason_are_those_of_plain_decoding(ids, n, wrong, sampled, stops, context):
    options = {**sampled, "stop_ids": stops, "context_size": context}
    plain = answer(ids, n, "off", **options)
    told = ids + answer(ids, 40, "off", **sampled)[0]
    for speculate in ("auto", "lookup", Knowing(told, wrong)):
        assert answer(ids, n, speculate, **options) == plain


@settings(max_examples=8)
@given(ids=st.lists(st.integers(0, WORDS - 1), min_size=1, max_size=20), n=st.integers(1, 30))
def test_a_draft_model_changes_no_greedy_token(ids, n):
    for draft in (ModelDraft(SMALL, n=3), ModelDraft(MODEL, n=3), ModelDraft(early_exit(MODEL, 1))):
        assert answer(ids, n, draft) == answer(ids, n, "off")


def test_a_right_guess_saves_calls_and_a_wrong_one_costs_none(monkeypatch):
    calls, run = [], Llama3Model.run_blocks
    monkeypatch.setattr(Llama3Model, "run_blocks", lambda m, x, **k: calls.append(x.shape[1]) or run(m, x, **k))
    told = [1, 2, 3] + answer([1, 2, 3], 30, "off")[0]
    calls.clear()
    answer([1, 2, 3], 30, Knowing(told))
    assert calls == [3, 17, 12]  # 1 + 17 + 12 tokens
    calls.clear()
    answer([1, 2, 3], 10, Knowing(told, 1))  # never right
    assert len(calls) == 10


@pytest.mark.parametrize("n_heard", range(1, 14))
def test_whoever_stops_listening_finds_the_cache_of_plain_decoding(n_heard):
    told = [1, 2, 3] + answer([1, 2, 3], 30, "off")[0]
    stream = TokenStream(MODEL, torch.tensor([[1, 2, 3]]), max_new_tokens=30, speculate=Knowing(told))
    heard = iter(stream)
    tokens = [int(next(heard)) for _ in range(n_heard)]
    heard.close()
    assert stream.cache.length == 3 + n_heard - 1
    so_far = torch.tensor([[1, 2, 3, *tokens]])
    rest = TokenStream(MODEL, so_far, max_new_tokens=5, cache=MODEL.make_cache(1, 50))
    again = TokenStream(MODEL, so_far, max_new_tokens=5, cache=stream.cache)
    assert [int(t) for t in again] == [int(t) for t in rest]


def test_stop_strings_and_text():
    torch.manual_seed(0)
    model = Llama3Model(TextConfig.tiny(vocab_size=256)).eval()

    def text(**options):
        stream = TextStream(model, ByteTokenizer(), [65, 66], max_new_tokens=60, **options)
        return list(stream), stream.new_ids, stream.stop_reason

    plain = text()
    assert text(speculate="lookup") == plain
    stop = ["".join(plain[0])[20:22]]
    assert text(stop=stop, speculate="lookup") == text(stop=stop)


def test_a_full_cache_is_told_at_the_same_token():
    told = [1, 2, 3] + answer([1, 2, 3], 30, "off")[0]
    for speculate in ("off", Knowing(told)):
        stream = TokenStream(MODEL, torch.tensor([[1, 2, 3]]), max_new_tokens=30, speculate=speculate,
                             cache=MODEL.make_cache(1, 9))  # fmt: skip
        heard = []
        with pytest.raises(ContextOverflowError, match="9 tokens"):
            heard += [heard.append(int(t)) for t in stream]
        assert heard == told[3:10]


def test_several_rows_are_decoded_plainly_or_refused():
    ids, padding = pad_left([[1, 2, 3], [4, 5]])
    plain = generate(MODEL, ids, 8, padding=padding)
    assert torch.equal(generate(MODEL, ids, 8, padding=padding, speculate="auto"), plain)
    with pytest.raises(InputError, match="one prompt.*2 rows"):
        generate(MODEL, ids, 8, padding=padding, speculate="lookup")
    with pytest.raises(InputError, match="cache"):
        generate(MODEL, ids[:1], 8, use_cache=False, speculate="lookup")


@pytest.mark.parametrize("speculate", ["fast", "", None, 3])
def test_no_other_settings(speculate):
    with pytest.raises(InputError, match="speculate|propose"):
        generate(MODEL, torch.tensor([[1]]), 3, speculate=speculate)


# ---- media, conversations, guards ----


@modes
def test_with_pictures_and_sounds(changes):
    model = build(changes)
    ids, media = one(model.multimodal_cfg, *PROMPTS[3])
    told = ids[0].tolist() + generate(model, ids, 24, inputs={"media": media})[0, ids.shape[1] :].tolist()
    for sampling in ({}, {"temperature": 1.0, "seed": 1}, {"repetition_penalty": 1.3}):
        plain = generate(model, ids, 20, inputs={"media": media}, **sampling)
        for draft in (Knowing(told, 3, n_words=512), "lookup", "auto"):
            assert torch.equal(generate(model, ids, 20, inputs={"media": media}, speculate=draft, **sampling), plain)


def test_with_pictures_of_llama32_vision():
    torch.manual_seed(0)
    model = MllamaModel(MllamaConfig.tiny()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    ids, images, sees = vision_inputs([[2]])
    inputs = {"images": images, "sees": sees}
    told = generate(model, ids, 24, inputs=inputs)[0].tolist()
    plain = generate(model, ids, 20, inputs=inputs)
    for draft in (Knowing(told, 3, n_words=512), Knowing(told, n_words=512), "lookup"):
        assert torch.equal(generate(model, ids, 20, inputs=inputs, speculate=draft), plain)


class Parroting:
    """Guesses that all goes on as it began: wrong mostly, right where an answer goes round in circles."""

    def propose(self, ids, n, sampling, generator):  # noqa: ARG002
        return Guess(look_up(ids, n, size=1) or [ids[-1]] * n)


def test_a_guarded_conversation_goes_as_without(smollm2_dir):
    torch.manual_seed(0)
    model, tokenizer = Llama3Model(TextConfig.tiny(vocab_size=49_152)).eval(), Tokenizer(smollm2_dir)

    def talk(speculate):
        session = ChatSession(model, tokenizer, max_new_tokens=24, guard=Scripted(unsafe_answer), speculate=speculate)
        heard = []
        for text in ("Hello there", "And then?", "Stop", "Why?"):
            reply = session.reply(text)
            heard.append([next(reply, ""), next(reply, "")] if text == "Stop" else list(reply))
            reply.close()
            heard.append((session.cache.length, session.stop_reason, session.refusal))
        return heard, session.messages

    plain = talk("off")
    assert any(turn[2] for turn in plain[0][1::2])  # something is refused
    assert talk(Parroting()) == talk("lookup") == plain


def unsafe_answer(_conversation, k):
    """The second answer is stopped."""
    return Judgement(k == 4, 0.9 if k == 4 else 0.1)


# ---- the distribution ----

TOY = torch.tensor([0.35, 0.25, 0.2, 0.15, 0.05, 0.0])
SKEWED = torch.tensor([0.1, 0.5, 0.0, 0.2, 0.1, 0.1])


def chi_square(observed, expected):
    """The p-value of counts, both of shape (N,), by Pearson's test."""
    observed, expected = torch.as_tensor(observed).double(), torch.as_tensor(expected).double()
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(observed) - 1) / 2).double(), statistic / 2))


def fit(rule, n=3000):
    """The p-value of tokens drawn by way of another distribution, one guess each."""
    generator = torch.Generator().manual_seed(0)
    q, p = SKEWED[None], torch.stack([TOY, TOY])
    counts = torch.zeros(len(TOY))
    for _ in range(n):
        guess = torch.multinomial(SKEWED, 1, generator=generator).tolist()
        counts[rule(guess, q, p, generator)[0]] += 1
    if counts[TOY == 0].any():
        return 0.0
    return chi_square(counts[TOY > 0], n * TOY[TOY > 0])


def test_the_rule_draws_from_the_models_distribution():
    assert fit(accept) > 0.01


def always(guess, q, p, generator):  # noqa: ARG001
    return guess


def no_residual(guess, q, p, generator):
    tokens = accept(guess, q, p, generator)
    return tokens if tokens[0] == guess[0] else torch.multinomial(p[0], 1, generator=generator).tolist()


@pytest.mark.parametrize("wrong", [always, no_residual])
def test_the_test_of_the_rule_notices_a_wrong_one(wrong):
    assert fit(wrong) < 1e-6


@pytest.mark.parametrize("sampling", [SamplingConfig(1.0), SamplingConfig(0.8, 3, None, None, 1.5),
                                      SamplingConfig(1.5, None, 0.8, 0.05, 0.7)])  # fmt: skip
def test_pairs_of_tokens_have_the_models_distribution(sampling):
    """The second token's penalty counts the first, guessed or not."""
    logits = torch.tensor([[2.0, 1.0, 0.5, -0.5], [1.8, 1.6, -1.0, 0.8], [1.0, 0.0, 0.0, 0.0]])
    q = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.3, 0.3, 0.2, 0.2]])
    seen = torch.tensor([[False, True, False, False]])
    expected = torch.zeros(4, 4)
    first = speculation.probabilities(logits[:1], [], sampling, seen)[0]
    for a in range(4):
        after = seen | (torch.arange(4) == a)
        expected[a] = first[a] * speculation.probabilities(logits[1:2], [], sampling, after)[0]
    generator, counts, n = torch.Generator().manual_seed(1), torch.zeros(4, 4), 2500
    for _ in range(n):
        tokens = torch.multinomial(q, 1, generator=generator).flatten().tolist()
        run = choose(logits, Guess(tokens, q), sampling, seen=seen, generator=generator)
        if len(run) == 1:  # its second token comes from the next call: the same scores, here
            after = seen | (torch.arange(4) == run[0])
            run += choose(logits[1:2], Guess([]), sampling, seen=after, generator=generator)
        counts[run[0], run[1]] += 1
    assert not counts[expected == 0].any()
    possible = expected > 0
    assert chi_square(counts[possible], n * expected[possible]) > 0.01
    assert seen.tolist() == [[False, True, False, False]]


def test_the_penalty_counts_the_tokens_before_each_place():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    sampling = SamplingConfig(0.7, 5, 0.9, 0.01, 2.0)
    seen, tokens = torch.zeros(1, 6, dtype=torch.bool), [3, 0, 5]
    found = speculation.probabilities(logits, tokens, sampling, seen)
    for n in range(4):
        seen[0, tokens[:n]] = True
        torch.testing.assert_close(found[n : n + 1], speculation.probabilities(logits[n : n + 1], [], sampling, seen))


def test_a_draft_model_draws_the_models_distribution():
    """Two tokens of a real stream, by way of a smaller model, beside the exact probabilities."""
    ids = torch.tensor([[1, 2, 3]])
    sampling = SamplingConfig(1.0, top_k=3)
    with torch.inference_mode():
        first = speculation.probabilities(MODEL(ids)[0, -1:], [], sampling, None)[0]
        expected = torch.zeros(WORDS)
        for token in first.nonzero().flatten().tolist():
            longer = torch.tensor([[1, 2, 3, token]])
            expected += first[token] * speculation.probabilities(MODEL(longer)[0, -1:], [], sampling, None)[0]
    counts, n, draft = torch.zeros(WORDS), 300, ModelDraft(SMALL, n=2)
    for seed in range(n):
        stream = TokenStream(MODEL, ids, max_new_tokens=4, sampling=sampling, seed=seed, speculate=draft)
        counts[[int(t) for t in stream][1]] += 1
    likely = expected * n >= 5
    observed = [*counts[likely].tolist(), float(counts[~likely].sum())]
    wanted = [*(n * expected[likely]).tolist(), float(n * expected[~likely].sum())]
    if not wanted[-1]:
        observed, wanted = observed[:-1], wanted[:-1]
    assert chi_square(observed, wanted) > 0.01


def test_scores_that_are_nan_are_told():
    with pytest.raises(SamplingError, match="NaN"):
        choose(torch.full((2, 3), torch.nan), Guess([1], torch.full((1, 3), 1 / 3)), SamplingConfig(1.0))


# ---- when it guesses ----


def test_an_account_bounds_what_guessing_may_cost():
    speculator = Speculator(Fixed([1] * MOST), MODEL, account=True)
    lost = 0.0
    for step in range(400):
        n = len(speculator.guess([0], 100, SamplingConfig()).tokens)
        speculator.note(n, 0)
        lost += call_cost(MODEL, n) - 1
        assert lost <= LOAN + (step + 1) / 32 + 1e-6
    assert 0 < speculator.calls < 400


def test_guesses_grow_while_they_are_right():
    speculator = Speculator(Fixed([1] * 99), MODEL, account=True)
    sizes = []
    for right in (True, True, True, False, True):
        n = len(speculator.guess([0], 100, SamplingConfig()).tokens)
        speculator.note(n, n if right else 0)
        sizes.append(n)
    assert sizes == [FEWEST, 2 * FEWEST, MOST, MOST, FEWEST]
    assert (speculator.calls, speculator.guessed) == (5, sum(sizes))


def test_a_guess_that_cannot_pay_is_not_made_and_ids_behind_the_vocabulary_are_not_guessed():
    compiled = model_of()
    compiled.fast = object()  # a step is so quick that a call for two tokens takes longer than two
    assert Speculator(Fixed([1]), compiled, account=True).guess([0], 9, SamplingConfig()).tokens == []
    assert Speculator(Fixed([1]), MODEL, account=False).guess([0], 9, SamplingConfig()).tokens == [1]
    assert Speculator(Fixed([1, WORDS, 2]), MODEL, account=False).guess([0], 9, SamplingConfig()).tokens == [1]


def test_weights_of_few_bits_are_decoded_plainly_by_auto():
    stream = TokenStream(quantize(model_of(vocab_size=64), 8), prompt(4), max_new_tokens=1, speculate="auto")
    assert stream.speculator is None


def test_a_draft_of_another_vocabulary_is_refused_with_both_numbers():
    other = Llama3Model(TextConfig.tiny(vocab_size=WORDS + 3)).eval()
    for temperature in (0, 1.0):  # greedy guesses bring no distribution whose size would tell
        with pytest.raises(InputError, match=f"{WORDS + 3} tokens.*{WORDS}"):
            generate(MODEL, torch.tensor([[1, 2]]), 9, temperature=temperature, speculate=ModelDraft(other))


@pytest.mark.parametrize(("given", "named"), [
    (None, "None"), (True, "True"), ("Lookup", "'Lookup'"), (ModelDraft, "ModelDraft"), (SMALL, "a Llama3Model"),
])  # fmt: skip
def test_what_is_no_draft_is_told_what_there_is(given, named):
    with pytest.raises(InputError, match=f"'off', 'auto', 'lookup' or a draft.*ModelDraft.*got .*{named}"):
        generate(MODEL, torch.tensor([[1, 2]]), 2, speculate=given)
    with pytest.raises(InputError, match="made of a loaded model, .* not of a str"):
        ModelDraft("smollm2")


def test_the_formula_by_hand_and_by_chance():
    assert expected_tokens(0.0, 4) == 1 and expected_tokens(1.0, 4) == 5
    assert expected_tokens(0.5, 2) == pytest.approx(1 + 0.5 + 0.25)


# ---- drafts ----


def test_a_draft_model_reads_what_is_new_alone(monkeypatch):
    draft = ModelDraft(SMALL, n=2)
    draft.propose([1, 2, 3, 4, 5], 2, SamplingConfig())
    read, run = [], Llama3Model.run_blocks
    monkeypatch.setattr(Llama3Model, "run_blocks", lambda m, x, **k: read.append(x.shape[1]) or run(m, x, **k))
    after = [1, 2, 3, 4, 5, 6, 7]
    tokens = draft.propose(after, 2, SamplingConfig()).tokens
    assert read == [2, 1] and tokens == ModelDraft(SMALL, n=2).propose(after, 2, SamplingConfig()).tokens
    assert draft.propose([9, 8], 2, SamplingConfig()) == ModelDraft(SMALL, n=2).propose([9, 8], 2, SamplingConfig())


def test_an_early_exit_shares_the_model_and_changes_nothing_of_it():
    before = {name: tensor.clone() for name, tensor in MODEL.state_dict().items()}
    short = early_exit(MODEL, 1)
    assert short.layers[0] is MODEL.layers[0] and short.lm_head is MODEL.lm_head
    with torch.inference_mode():
        assert short(prompt(5) % WORDS).shape == (1, 5, WORDS)
    assert all(torch.equal(before[name], tensor) for name, tensor in MODEL.state_dict().items())
    for n in (0, MODEL.cfg.n_layers):
        with pytest.raises(InputError, match=f"got {n}"):
            early_exit(MODEL, n)
    with pytest.raises(InputError, match="n=0"):
        ModelDraft(SMALL, n=0)


def test_lookup_is_a_draft():
    assert Lookup().propose([1, 2, 3, 9, 1, 2, 3], 2, SamplingConfig(), None) == Guess([9, 1])


# ---- real weights ----


def test_smollm2_copies_the_same_tokens(smollm2):
    model, tokenizer = smollm2
    ids = tokenizer.encode("red, green, blue; red, green, blue; red, green,")
    plain = TokenStream(model, torch.tensor([ids]), max_new_tokens=16)
    fast = TokenStream(model, torch.tensor([ids]), max_new_tokens=16, speculate="lookup")
    assert [int(t) for t in fast] == [int(t) for t in plain]
    assert fast.speculator.accepted > 4
