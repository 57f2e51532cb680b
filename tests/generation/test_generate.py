"""generation.generate: cached equals uncached, batched equals single, stops, seeds, streaming, the context's end."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamm import Llama3Model, SamplingConfig, TextConfig, TextStream, TokenStream, generate, pad_left
from llamamm.errors import ContextOverflowError, InputError, SamplingError


class ByteTokenizer:
    """A stand-in: token ids are bytes."""

    stop_ids = frozenset({0})

    def stream_decoder(self):
        import codecs

        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

        class Decoder:
            def push(self, token_id):
                return decoder.decode(bytes([token_id]))

            def flush(self):
                return decoder.decode(b"", final=True)

        return Decoder()


class Parrot:
    """A model that says what it is told to, whatever it reads."""

    cfg = TextConfig.tiny(vocab_size=256)

    def __init__(self, *scripts):
        self.scripts = scripts
        self.step = 0

    def make_cache(self, batch_size=1, max_length=None):
        return Llama3Model(self.cfg).make_cache(batch_size, max_length)

    def __call__(self, ids, *, cache=None, padding=None, last_only=False):  # noqa: ARG002
        logits = torch.zeros(ids.shape[0], 1, 256)
        for row, script in enumerate(self.scripts):
            logits[row, 0, script[self.step] if self.step < len(script) else 1] = 10.0
        self.step += 1
        return logits


def prompt(n, *, seed=0, batch=1):
    return torch.randint(512, (batch, n), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "top_k": 50, "seed": 3}, {"repetition_penalty": 1.3}])
def test_cached_equals_uncached(tiny_model, sampling):
    cached = generate(tiny_model, prompt(7), 40, **sampling)
    assert torch.equal(cached, generate(tiny_model, prompt(7), 40, use_cache=False, **sampling))
    assert cached.shape == (1, 47)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_prompt_read_in_pieces_gives_the_same(tiny_model, chunk):
    whole = generate(tiny_model, prompt(20), 20)
    assert torch.equal(generate(tiny_model, prompt(20), 20, prefill_chunk=chunk), whole)


@settings(max_examples=10)
@given(lengths=st.lists(st.integers(1, 15), min_size=2, max_size=4), cached=st.booleans())
def test_batch_of_unequal_prompts_equals_one_at_a_time(lengths, cached):
    torch.manual_seed(0)
    model = Llama3Model(TextConfig.tiny()).eval()
    prompts = [prompt(n, seed=n)[0].tolist() for n in lengths]
    ids, padding = pad_left(prompts)
    batch = generate(model, ids, 12, padding=padding, use_cache=cached, prefill_chunk=4)
    for row, one in enumerate(prompts):
        alone = generate(model, torch.tensor([one]), 12)
        assert batch[row, ids.shape[1] :].tolist() == alone[0, len(one) :].tolist()


def test_the_outline_runs_as_written(tiny_model):
    cfg = tiny_model.cfg
    idx = prompt(4)
    out = generate(tiny_model, idx, max_new_tokens=64, context_size=cfg["context_length"], temperature=0.8, top_k=50)
    assert out.shape == (1, 68)


def test_the_same_seed_gives_the_same_text_and_another_another(tiny_model):
    def run(seed):
        return generate(tiny_model, prompt(4), 30, temperature=1.0, seed=seed).tolist()

    assert run(1) == run(1) != run(2)


def test_seed_leaves_the_global_generator_alone(tiny_model):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    generate(tiny_model, prompt(4), 5, temperature=1.0, seed=1)
    assert torch.equal(torch.rand(1), expected)


def test_rows_stop_one_by_one():
    out = generate(Parrot([5, 0, 9, 9], [6, 7, 8, 0]), prompt(2, batch=2), 10, stop_ids={0})
    assert out[:, 2:].tolist() == [[5, 0, 0, 0], [6, 7, 8, 0]]


def test_stop_reasons():
    stream = TokenStream(Parrot([5, 0], [6, 7]), prompt(2, batch=2), max_new_tokens=2, stop_ids={0})
    assert len(list(stream)) == 2
    assert stream.stop_reasons == ["stop", "length"]


def test_repetition_penalty_counts_prompt_and_answer_but_not_padding():
    class Even(Parrot):
        def __call__(self, ids, **_):
            logits = torch.zeros(ids.shape[0], 1, 256)
            logits[:, 0, 3], logits[:, 0, 4], logits[:, 0, 0] = 5.0, 4.9, 4.8
            return logits

    ids, padding = pad_left([[9, 3], [9]])
    out = generate(Even(), ids, 3, padding=padding, repetition_penalty=1.5)
    # row 0 has seen 3: takes 4, then 0 (never seen), then 3 again (3.33 against 3.27 and 3.2)
    assert out[:, 2:].tolist() == [[4, 0, 3], [3, 4, 0]]


def test_context_end_stops_with_a_word(tiny_model):
    with pytest.warns(UserWarning, match="6 of 20 tokens: the context of 256 is full"):
        out = generate(tiny_model, prompt(250), 20)
    assert out.shape == (1, 256)
    with pytest.warns(UserWarning, match="2 of 5 tokens: the context of 10 is full"):
        assert generate(tiny_model, prompt(8), 5, context_size=10).shape == (1, 10)


def test_prompt_longer_than_the_context_is_refused_with_both_numbers(tiny_model):
    with pytest.raises(ContextOverflowError, match="257 tokens.*256"):
        generate(tiny_model, prompt(257), 1)
    with pytest.raises(ContextOverflowError, match="9 tokens.*8"):
        generate(tiny_model, prompt(9), 1, context_size=8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"idx": torch.empty(1, 0, dtype=torch.int64)}, InputError, "empty.*begin-of-text"),
        ({"idx": torch.tensor([1, 2])}, InputError, r"\(B, T\)"),
        ({"idx": [[1, 2]]}, InputError, "tensor of token ids"),
        ({"idx": torch.tensor([[-1]])}, InputError, "-1"),
        ({"idx": torch.tensor([[512]])}, InputError, "512"),
        ({"max_new_tokens": -1}, InputError, "-1"),
        ({"prefill_chunk": 0}, InputError, "0"),
        ({"temperature": -1.0}, SamplingError, "temperature"),
        ({"padding": torch.tensor([[True, False]])}, InputError, "left"),
        ({"padding": torch.tensor([[True]])}, InputError, r"\(1, 2\)"),
    ],
)
def test_bad_requests_are_refused(tiny_model, change, error, message):
    with pytest.raises(error, match=message):
        generate(tiny_model, **{"idx": torch.tensor([[1, 2]]), "max_new_tokens": 3, **change})


def test_zero_new_tokens_is_the_prompt(tiny_model):
    assert torch.equal(generate(tiny_model, prompt(3), 0), prompt(3))


def test_pad_left_by_hand():
    ids, padding = pad_left([[7], [1, 2, 3]], pad_id=9)
    assert ids.tolist() == [[9, 9, 7], [1, 2, 3]]
    assert padding.tolist() == [[False, False, True], [True, True, True]]
    with pytest.raises(InputError, match="at least one token"):
        pad_left([[1], []])


def test_result_can_be_trained_on(tiny_model):
    out = generate(tiny_model, prompt(3), 3)
    tiny_model(out).mean().backward()
    assert tiny_model.embed_tokens.weight.grad is not None


# ---- what a model is given beside ids ----


class Listener(Llama3Model):
    """Hears one number with the prompt and adds it to the score of token 7; keeps what it was called with."""

    def __init__(self):
        super().__init__(TextConfig.tiny())
        self.calls = []

    def forward(self, ids, *, loud=None, **options):
        self.calls.append((ids.shape[1], loud))
        logits = super().forward(ids, **options)
        if loud is not None:
            logits[..., 7] += loud
        return logits


def listen(**options):
    torch.manual_seed(0)
    model = Listener().eval()
    out = generate(model, prompt(9), 3, inputs={"loud": 100.0}, **options)
    return out[0, 9:].tolist(), model.calls


def test_inputs_go_with_the_prompt_alone():
    tokens, calls = listen()
    assert calls == [(9, 100.0), (1, None), (1, None)] and tokens[0] == 7


def test_a_prompt_with_inputs_is_read_in_one_piece():
    tokens, calls = listen(prefill_chunk=2)
    assert calls[0] == (9, 100.0) and tokens == listen()[0]


def test_without_a_cache_inputs_are_given_each_time():
    _, calls = listen(use_cache=False)
    assert calls == [(9, 100.0), (10, 100.0), (11, 100.0)]


def test_no_inputs_are_none(tiny_model):
    whole = generate(tiny_model, prompt(9), 5)
    for inputs in (None, {}):
        assert torch.equal(generate(tiny_model, prompt(9), 5, inputs=inputs, prefill_chunk=2), whole)


def test_inputs_reach_a_text_stream():
    torch.manual_seed(0)
    stream = TextStream(Listener().eval(), ByteTokenizer(), [1, 2], max_new_tokens=1, inputs={"loud": 100.0})
    assert list(stream) == ["\a"] and stream.new_ids == [7]


def test_ids_behind_the_vocabulary_are_not_counted_as_said():
    """Places for images and sounds: the penalty's table has no row for them, and its last row is not theirs."""

    class Picture(Parrot):
        def __call__(self, ids, **_):
            logits = torch.zeros(ids.shape[0], 1, 256)
            logits[:, 0, 255], logits[:, 0, 3] = 5.0, 4.9
            return logits

    ids = torch.tensor([[9, 256, 256, 257, 8]])
    assert generate(Picture(), ids, 2, repetition_penalty=1.5)[0, 5:].tolist() == [255, 3]
    ids = torch.tensor([[9, 256, 256, 257, 255]])
    assert generate(Picture(), ids, 1, repetition_penalty=1.5)[0, 5:].tolist() == [3]


# ---- text ----


def stream_text(text, **options):
    data = text.encode() if isinstance(text, str) else text
    stream = TextStream(Parrot(list(data)), ByteTokenizer(), [1], **{"max_new_tokens": len(data), **options})
    return stream, list(stream)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30))
@settings(max_examples=30)
def test_pieces_are_whole_characters_and_join_to_the_text(text):
    _, pieces = stream_text(text)
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


def test_text_that_ends_inside_a_character_gets_a_replacement():
    _, pieces = stream_text("né".encode()[:-1])
    assert "".join(pieces) == "n\ufffd"


@given(before=st.text("ab", max_size=8), stop=st.text("ab", min_size=1, max_size=3), after=st.text("abc", max_size=5))
@settings(max_examples=50)
def test_stop_strings_are_never_shown(before, stop, after):
    text = before + stop + after
    stream, pieces = stream_text(text, stop=[stop])
    assert "".join(pieces) == text[: text.index(stop)]
    assert stream.stop_reason == "stop"


def test_several_stop_strings_the_first_in_the_text_counts():
    stream, pieces = stream_text("one two three", stop=["three", "two"])
    assert "".join(pieces) == "one "
    assert bytes(stream.new_ids) == b"one two"


def test_beginning_of_a_stop_string_is_shown_when_it_comes_to_nothing():
    stream, pieces = stream_text("ab##", stop=["###"])
    assert "".join(pieces) == "ab##"
    assert stream.stop_reason == "length"


def test_stop_ids_end_the_text_and_are_not_part_of_it():
    stream, pieces = stream_text("hi\0there")
    assert "".join(pieces) == "hi"
    assert (stream.stop_reason, stream.new_ids[-1]) == ("stop", 0)


@pytest.mark.parametrize("stop", ["###", [""]])
def test_stop_must_be_a_list_of_strings(stop):
    with pytest.raises(InputError, match="stop"):
        stream_text("x", stop=stop)


def test_a_stream_is_read_once():
    stream, _ = stream_text("abc")
    with pytest.raises(InputError, match="already"):
        list(stream)


def test_sampling_config_reaches_the_stream(tiny_model):
    hot = SamplingConfig(temperature=100.0)
    a, b = (
        [int(t) for t in TokenStream(tiny_model, prompt(3), max_new_tokens=20, sampling=hot, seed=s)] for s in (1, 2)
    )
    assert a != b
