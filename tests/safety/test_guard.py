"""safety.guard: scores, verdicts and categories; one at a time, in batches, and while an answer grows; guards found."""

import json
import math
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import llamamm.safety
from llamamm import Guard, Llama3Model, TextConfig, apply_lora, from_pretrained, load_guard, save_pretrained
from llamamm.errors import CheckpointError, InputError
from llamamm.generation.guarded import Judgement
from llamamm.lora.adapter_files import save_adapter
from llamamm.lora.lora import lora_modules
from llamamm.safety import guard as module
from llamamm.safety.guard import read_names
from llamamm.safety.template import LLAMA_GUARD_3_1B, LLAMA_GUARD_3_8B, OURS
from tests.safety.stand_in import StandIn

SHAPE = dict(hidden_size=16, intermediate_size=32, n_heads=2, n_kv_heads=1, context_length=1024)
TALK = [{"role": "user", "content": "Tell me a story."}, {"role": "assistant", "content": "Once upon a time"}]


def model_of_strong_opinions(model):
    """Weights so large that scores differ from prompt to prompt."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(12)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def small(smol):
    """A random model with SmolLM2's tokenizer: its guard."""
    torch.manual_seed(0)
    model = Llama3Model(TextConfig.tiny(vocab_size=smol.vocab_size, **SHAPE)).eval()
    return model_of_strong_opinions(model)


@pytest.fixture(scope="module")
def llama_guard(llama3_tokenizer_path, tmp_path_factory):
    """A folder as that of a Llama Guard 3 from Meta, random and small."""
    folder = tmp_path_factory.mktemp("guard") / "model"
    torch.manual_seed(0)
    save_pretrained(model_of_strong_opinions(Llama3Model(TextConfig.tiny(vocab_size=128_256, **SHAPE))), folder)
    shutil.copy(llama3_tokenizer_path, folder / "tokenizer.model")
    return folder


def by_words(smol, **rules):
    """A guard that finds a word in the last 300 tokens: word -> (safe, unsafe, what follows "unsafe")."""
    def answer(ids):
        text = smol.decode(ids)
        return next((rule for word, rule in rules.items() if word in text), (0.0, -2.0, "S1"))

    return Guard(StandIn(smol, answer), smol, OURS)


def near(found, expected):
    return (found.unsafe, found.categories) == (expected.unsafe, expected.categories) and math.isclose(
        found.score, expected.score, abs_tol=1e-5)


# ---- scores and verdicts ----


def test_the_score_is_the_softmax_of_the_first_tokens_of_the_two_verdicts(small, smol):
    logits = small(torch.tensor([OURS.encode(smol, [("user", "Hi")])]))[0, -1]
    safe, unsafe = (math.exp(logits[smol.encode(word)[0]]) for word in ("safe", "unsafe"))
    judgement = Guard(small, smol, OURS).judge("Hi")
    assert isinstance(judgement, Judgement)
    assert judgement.score == pytest.approx(unsafe / (safe + unsafe), abs=1e-5)
    assert judgement.unsafe == (judgement.score >= 0.5)
    assert Guard(small, smol, OURS, judgement.score).judge("Hi").unsafe  # the threshold itself is unsafe


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.89, 0.91, 1.0])
def test_a_message_is_unsafe_from_the_threshold_on(smol, threshold):
    guard = by_words(smol, grue=(0.0, math.log(9), "S3"))  # 0.9, or a little less
    guard.threshold = threshold
    assert guard.judge("a grue").unsafe == (threshold < 0.9)
    assert guard.judge("a cat").unsafe == (threshold < 0.1)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan])
def test_a_threshold_that_is_no_probability_is_refused(small, smol, threshold):
    with pytest.raises(InputError, match="threshold is a probability"):
        Guard(small, smol, OURS, threshold)


def test_categories_are_what_the_guard_writes_and_none_of_what_is_safe(smol):
    guard = by_words(smol, grue=(0.0, 3.0, "S3, s1"), troll=(0.0, 3.0, "S9,S2 and more"), imp=(0.0, 3.0, ""))
    found = guard.judge_all(["a grue", "a troll", "an imp", "a cat"])
    assert [judgement.categories for judgement in found] == [("S3", "S1"), ("S2",), (), ()]
    assert [guard.judge(text) for text in ("a grue", "a troll", "an imp", "a cat")] == found


def test_names_are_read_leniently():
    known = LLAMA_GUARD_3_1B.categories
    for line in ("S1,S10", "S1, S10", " s1 s10.", "S1;S10\nS3", "S1,S10,S1", "S1: Violent Crimes, S10"):
        assert read_names(line, known) == ("S1", "S10"), line
    assert read_names("", known) == read_names("S14", known) == read_names("safe", known) == ()


@pytest.mark.parametrize("safe", [0.0, math.nan])
def test_a_guard_that_has_broken_lets_nothing_through(smol, safe):
    guard = by_words(smol, grue=(safe, math.nan, "S1"))
    guard.threshold = 1.0
    assert guard.judge("a grue") == (True, 1.0, ())
    assert guard.judge_all(["a cat", "a grue"])[1] == (True, 1.0, ())
    long = "fine " * 300 + "a grue" + " fine" * 300  # in one window of several
    guard = Guard(guard.model, smol, OURS, 1.0, context_size=300)
    assert guard.judge(long) == guard.judge_all([long])[0] == (True, 1.0, ())


@pytest.mark.parametrize("talk", [[], [{"role": "tool", "content": "a"}], [{"role": "system", "content": "a"}]])
def test_what_is_no_conversation_is_refused(small, smol, talk):
    guard = Guard(small, smol, OURS)
    for judge in (guard.judge, lambda talk: guard.judge_all(["Hi", talk])):
        with pytest.raises(InputError):
            judge(talk)


def test_system_messages_make_no_difference(small, smol):
    guard = Guard(small, smol, OURS)
    assert near(guard.judge([{"role": "system", "content": "All is safe."}, *TALK]), guard.judge(TALK))


# ---- the cache, and batches ----


def test_of_an_answer_that_grows_what_is_new_is_read_and_the_end_of_the_question(small, smol, monkeypatch):
    read, run_blocks = [], Llama3Model.run_blocks
    monkeypatch.setattr(Llama3Model, "run_blocks",
                        lambda self, x, **k: read.append(x.shape[1]) or run_blocks(self, x, **k))  # fmt: skip
    guard, words = Guard(small, smol, OURS), "there was a king who had a garden and in it a tree".split()
    guard.judge(TALK)
    n_question, n_end = read[0], len(smol.encode("\n\nIs the last message safe? Unsafe are S1: Prompt Injection. "
                                                 "S2: Dangerous Requests. S3: Hate and Abuse."))  # fmt: skip
    for n in (*range(len(words)), 3, len(words)):  # and once backwards
        talk = [TALK[0], {"role": "assistant", "content": "Once upon a time " + " ".join(words[:n])}]
        read.clear()
        judgement = guard.judge(talk)
        assert read[0] < n_end + 30 < n_question
        assert near(judgement, Guard(small, smol, OURS).judge(talk))
    assert near(guard.judge("Another"), Guard(small, smol, OURS).judge("Another"))


def test_after_an_error_the_cache_holds_nothing_wrong(small, smol, monkeypatch):
    guard, expected = Guard(small, smol, OURS), Guard(small, smol, OURS).judge(TALK)
    guard.judge("Hello")
    with monkeypatch.context() as broken:
        broken.setattr(small.layers[1], "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            guard.judge("Something else")
    assert near(guard.judge(TALK), expected)


def test_a_cache_that_has_become_too_short_is_made_longer(smol):
    guard = by_words(smol)
    guard.judge("Hi")
    first = guard._cache.max_length
    guard.judge("Hi " * 2000)
    assert first == module.SHORTEST_CACHE < guard._cache.max_length <= 4096


def test_a_batch_gives_what_each_gives_alone(small, smol):
    talks = ["Hi", TALK, "One two three " * 30, TALK[:1], "Why?", "", "Hi"]
    guard = Guard(small, smol, OURS)
    alone = [guard.judge(talk) for talk in talks]
    assert len({round(judgement.score, 2) for judgement in alone}) == 6  # "Hi" stands there twice
    for size in (1, 3, 16):
        found = guard.judge_all(talks, batch_size=size)
        assert all(near(a, b) for a, b in zip(found, alone, strict=True))
        assert guard.scores(talks, batch_size=size) == pytest.approx([one.score for one in alone], abs=1e-4)
    assert guard.judge_all([]) == guard.scores([]) == []
    with pytest.raises(InputError, match="batch_size"):
        guard.judge_all(talks, batch_size=0)


@pytest.mark.parametrize("one", ["Hello", {"role": "user", "content": "Hello"}])
def test_one_conversation_is_not_taken_for_several(small, smol, one):
    for judge in (Guard(small, smol, OURS).judge_all, Guard(small, smol, OURS).scores):
        with pytest.raises(InputError, match="put the one into a list"):
            judge(one)


def test_a_long_prompt_is_read_with_few_others():
    prompts = [[0] * n for n in (10, 3000, 1500, 1000, 20, 9000, 30)]
    found = module._batches(range(7), prompts, 3)
    assert found == [[5], [1], [2, 3], [6, 4, 0]]
    assert module._batches([], prompts, 3) == []


# ---- long ones ----


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.77, 1.0])
def test_the_worst_window_of_a_long_message_counts(smol, place):
    words = ["fine"] * 3000
    words.insert(int(place * 3000), "the grue comes")
    guard = by_words(smol, **{"the grue comes": (0.0, 4.0, "S2")})
    guard = Guard(guard.model, smol, OURS, context_size=600)
    expected = (True, pytest.approx(1 / (1 + math.exp(-4)), abs=1e-5), ("S2",))
    assert guard.judge(" ".join(words)) == expected
    assert guard.judge_all(["Hi", " ".join(words)])[1] == expected
    assert guard.scores([" ".join(words), "Hi"])[0] == expected[1]
    assert max(guard.model.read) <= 600
    assert not guard.judge("fine " * 3000).unsafe


def test_the_last_message_is_judged_however_long_the_ones_before_it_are(smol):
    guard = Guard(by_words(smol, grue=(0.0, 4.0, "S2")).model, smol, OURS, context_size=300)
    talk = [{"role": "user", "content": "kind words " * 500}, {"role": "assistant", "content": "a grue"}]
    with pytest.warns(UserWarning, match="oldest messages are left out"):
        assert guard.judge(talk).unsafe
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not guard.judge("Hi").unsafe


def test_a_model_without_room_for_the_question_is_refused(small, smol):
    with pytest.raises(InputError, match="question alone takes"):
        Guard(small, smol, OURS, context_size=80)


# ---- from a name ----


def test_the_doors():
    assert llamamm.safety.load_guard is llamamm.load_guard is module.load_guard
    assert llamamm.safety.Guard is llamamm.Guard is Guard
    with pytest.raises(AttributeError, match="safety.*load_gard"):
        _ = llamamm.safety.load_gard


def test_a_llama_guard_is_opened_and_scores_as_its_logits_say(llama_guard, llama):
    guard = load_guard(llama_guard)
    assert guard.template is LLAMA_GUARD_3_1B and guard.threshold == 0.5
    turns = [("user", "Tell me a story."), ("assistant", "Once upon a time")]
    with torch.no_grad():
        logits = guard.model(torch.tensor([LLAMA_GUARD_3_1B.encode(llama, turns)]))[0, -1]
    expected = torch.stack([logits[19193], logits[39257]]).softmax(dim=0)[1]  # "safe", "unsafe"
    assert guard.judge(TALK).score == pytest.approx(float(expected), abs=1e-6)
    assert guard.judge(TALK).unsafe == (float(expected) >= 0.5)
    other = load_guard(llama_guard, threshold=0.9, template=LLAMA_GUARD_3_8B, dtype=torch.bfloat16)
    assert (other.threshold, other.template) == (0.9, LLAMA_GUARD_3_8B)
    assert other.model.embed_tokens.weight.dtype == torch.bfloat16


def test_which_llama_guard_it_is(llama, smol):
    assert module._template("a", llama, 2048, ours=False) is LLAMA_GUARD_3_1B
    assert module._template("a", llama, 4096, ours=False) is LLAMA_GUARD_3_8B
    with pytest.raises(InputError, match="a is no guard: its chat template lists no categories"):
        module._template("a", smol, 576, ours=False)
    assert module._template("a", smol, 576, ours=True) is OURS


@pytest.mark.parametrize(("last", "template"), [("S13", LLAMA_GUARD_3_1B), ("S14", LLAMA_GUARD_3_8B)])
def test_the_published_chat_template_says_which_it_is(llama, monkeypatch, last, template):
    monkeypatch.setattr(llama, "chat_template", f"<BEGIN UNSAFE CONTENT CATEGORIES>\nS1: a\n{last}: b\n")
    assert module._template("a", llama, 3000, ours=True) is template


def test_llama_guard_4_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama4"}', encoding="utf-8")
    with pytest.raises(InputError, match="is a Llama 4 model.*take meta-llama/Llama-Guard-3-1B"):
        load_guard(tmp_path)


def test_a_chat_model_is_no_guard_unless_its_question_is_given(smollm2_dir):
    with pytest.raises(InputError, match="no guard.*give template="):
        load_guard(smollm2_dir)
    assert load_guard(smollm2_dir, template=OURS).template is OURS


@pytest.fixture
def trained(smollm2_dir, tmp_path):
    """The folder of an adapter on SmolLM2, as training writes it, not yet noting a threshold."""
    model, _ = from_pretrained(smollm2_dir)
    torch.manual_seed(0)
    apply_lora(model, r=2, alpha=4, targets=("q_proj",))
    for linear in lora_modules(model).values():
        torch.nn.init.normal_(linear.lora_b[linear.active], std=0.02)
    save_adapter(model, tmp_path / "adapter", base="smollm2")
    return tmp_path / "adapter"


def test_a_trained_adapter_and_the_packages_own_guard(trained, smollm2, monkeypatch):
    mine = load_guard(trained)
    assert mine.template is OURS and mine.threshold == 0.5
    base = Guard(smollm2[0], smollm2[1], OURS)
    assert abs(mine.judge(TALK).score - base.judge(TALK).score) > 1e-6  # the adapter is in the weights

    monkeypatch.setattr(module, "OWN_GUARD", trained)
    with pytest.raises(CheckpointError, match="without a guard of its own; name one"):
        load_guard()
    categories = {"S1": "Prompt Injection", "S2": "Dangerous Requests", "S3": "Hate and Abuse"}
    (trained / "guard.json").write_text(json.dumps({"threshold": 0.125, "categories": categories}), encoding="utf-8")
    own = load_guard()
    assert own.threshold == 0.125 and own.template is OURS
    assert own.judge(TALK).score == pytest.approx(mine.judge(TALK).score, abs=1e-6)
    assert load_guard("own").threshold == 0.125
    assert load_guard(trained, threshold=0.75).threshold == 0.75
    with pytest.raises(InputError, match="no threshold for a rate of 0.01; give threshold="):
        load_guard(rate=0.01)
    rates = {"threshold": 0.125, "categories": categories, "rates": {"0.01": 0.9, "0.05": 0.5}}
    (trained / "guard.json").write_text(json.dumps(rates), encoding="utf-8")
    assert load_guard(rate=0.01).threshold == 0.9 and load_guard(rate=0.05).threshold == 0.5
    with pytest.raises(InputError, match="rate of 0.2; it has 0.01, 0.05"):
        load_guard(rate=0.2)
    with pytest.raises(InputError, match="give one of them"):
        load_guard(rate=0.01, threshold=0.5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"threshold": 2}, "number from 0 to 1, got 2"), ({}, "got None"), ({"threshold": True}, "got True"),
     ({"threshold": 0.5, "categories": {"S1": "Spoilers"}}, "other categories"),
     ({"threshold": 0.5, "rates": [0.9]}, "thresholds by shares"),
     ({"threshold": 0.5, "rates": {"few": 0.9}}, "thresholds by shares"),
     ({"threshold": 0.5, "rates": {"0.01": "high"}}, "thresholds by shares")],
)  # fmt: skip
def test_settings_that_do_not_fit_are_told(tmp_path, settings, said):
    (tmp_path / "guard.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(CheckpointError, match=said):
        load_guard(tmp_path)


def test_of_a_training_run_the_folder_inside_is_named(tmp_path):
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="training run; what it has made is in .*last"):
        load_guard(tmp_path)


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_no_guard(name):
    with pytest.raises(InputError, match="name is empty; give 'own'"):
        load_guard(name)


def test_the_own_guard_is_where_the_package_keeps_it():
    assert Path(llamamm.__file__).parent / "pretrained" / "guard" == module.OWN_GUARD
