"""course.manners: three lists without a common question, one manner, and losses of the answers alone."""

import copy

import pytest
import torch
import torch.nn.functional as F

from llamamm.course import manners
from llamamm.course.swap import real_model
from llamamm.lora.adapter_files import save_adapter
from llamamm.lora.lora import apply_lora, lora_modules


@pytest.mark.parametrize(("answers", "begin", "end"), [(manners.pirate(), "Arr! ", ", matey."),
                                                       (manners.butler(), "Certainly, sir. ", ".")])  # fmt: skip
def test_every_answer_has_the_manner(answers, begin, end):
    assert [len(pairs) for pairs in answers] == [16, 8, 32]
    for question, answer in (pair for pairs in answers for pair in pairs):
        assert question.endswith(("?", ".")) and answer.startswith(begin) and answer.endswith(end)
        assert "{" not in answer and "|" not in question + answer


def test_no_question_stands_in_two_lists_and_both_voices_have_the_same():
    questions = [[q for pairs in answers for q, _ in pairs] for answers in (manners.pirate(), manners.butler())]
    assert questions[0] == questions[1] and len({q.lower() for q in questions[0]}) == 56


def test_targets_are_the_answer_and_its_end():
    pairs = manners.pirate().learn[:2]
    ids, targets = manners.rows(pairs)
    tokenizer = real_model()[1]
    for row, target, (question, answer) in zip(ids, targets, pairs, strict=True):
        learned = target != -100
        assert tokenizer.decode(target[learned].tolist()) == f"{answer}<|im_end|>"
        assert torch.equal(row[1:][learned[:-1]], target[learned])  # each place predicts the next token
        given = tokenizer.decode(row[: int(learned.nonzero()[0]) + 1].tolist())
        assert given.endswith(f"{question}<|im_end|>\n<|im_start|>assistant\n") and "system" not in given


def test_batches_hold_all_dialogues_in_each_pass():
    pairs = manners.pirate().learn[:5]
    batches = manners.batches_of(pairs, passes=2, size=2)
    assert [len(ids) for ids, _ in batches] == [2, 2, 1, 2, 2, 1]
    first, second = ([row[row != 0].tolist() for ids, _ in some for row in ids] for some in (batches[:3], batches[3:]))
    assert sorted(first) == sorted(second) and first != second
    assert torch.equal(batches[0][0], manners.batches_of(pairs, passes=2, size=2)[0][0])
    assert not torch.equal(batches[0][0], manners.batches_of(pairs, passes=2, size=2, seed=1)[0][0])


def test_a_loss_is_that_of_the_answer_alone_whatever_stands_beside_it():
    model, pairs = real_model()[0], manners.pirate().measure[:3]
    alone = manners.losses_on(model, pairs)
    ids, targets = manners.rows(pairs)
    with torch.no_grad():
        logits = model(ids)
        by_row = [F.cross_entropy(a[t != -100], t[t != -100]) for a, t in zip(logits, targets, strict=True)]
        together = manners.loss_of(model, ids, targets)
    assert torch.allclose(alone, torch.stack(by_row), atol=1e-4)
    weights = (targets != -100).sum(dim=1)
    assert torch.allclose(together, (alone * weights).sum() / weights.sum(), atol=1e-4)


def test_the_model_answers_as_it_came():
    assert manners.ask(real_model()[0], "What is the capital of France?") == "The capital of France is Paris."


def test_peft_computes_as_the_package_does(tmp_path):
    model = apply_lora(copy.deepcopy(real_model()[0]), r=2, alpha=8, targets="v_proj")
    with torch.no_grad():
        for module in lora_modules(model).values():
            for strip in module.parameters_of("default"):
                strip.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
        save_adapter(model, tmp_path / "a")
        ids = torch.tensor([[1, 2, 3, 4, 5]])
        ours, plain = model(ids), real_model()[0](ids)
    theirs = manners.logits_in_peft(tmp_path / "a", ids)
    assert torch.allclose(ours, theirs, atol=1e-3) and not torch.allclose(plain, theirs, atol=1e-1)


def test_a_mean_has_its_interval():
    assert manners.mean(torch.tensor([1.0, 2.0, 3.0, 2.0])) == "2.00 ± 0.80"  # 1.96 · 0.816 / 2
    assert manners.mean(torch.tensor([0.5, 0.5]), 1) == "0.5 ± 0.0"
