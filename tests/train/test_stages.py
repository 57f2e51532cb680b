"""train.stages: what a stage trains, its losses, the share of each kind."""

import json
import math
from dataclasses import replace

import pytest
import torch

from llamamm.errors import ConfigError, InputError
from llamamm.experiments.small_multimodal import stages
from llamamm.multimodal.model import Features
from llamamm.tasks.items import Tasks, texts_of
from llamamm.train.losses import IGNORE
from llamamm.train.media_rows import RowMaker
from llamamm.train.randomness import randomness_kept
from llamamm.train.stages import Stage, TaskBatches, run_stage, stage_trainer
from llamamm.train.tokenizer import train_tokenizer
from tests.small_tasks import MODES, TASKS, TUNE, build, encoder_of, modes, weights


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(texts_of(Tasks(TASKS, {})), tmp_path_factory.mktemp("tokenizer"), vocab_size=320)


@pytest.fixture(scope="module", params=MODES.values(), ids=MODES)
def taught(request, tokenizer):
    """(model, encoder, losses): trained on pictures and sounds."""
    model = build(tokenizer, request.param)
    encoder = encoder_of(model, tokenizer)
    curve = run_stage(model, encoder, TASKS, TUNE, batch_size=6, shares=dict.fromkeys(TASKS, 1.0))
    return model.eval(), encoder, curve


@modes
@pytest.mark.parametrize("stage", stages(2, 2, 2), ids=lambda stage: stage.name)
def test_a_stage_trains_what_it_says_and_the_rest_stays_bit_for_bit(tokenizer, stage, changes):
    model = build(tokenizer, changes)
    before = weights(model)
    run_stage(model, encoder_of(model, tokenizer), {"both": TASKS["both"]}, stage, batch_size=4)
    trained = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    expected = {"embed_tokens", "layers", "norm", "lm_head"} if stage.text else set()
    if stage.bridges:
        expected |= {"image_bridge", "audio_bridge"} | ({"gated"} if changes else set())
    assert trained == expected
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == expected - {"lm_head"}
    assert model.training and model.lm_head.weight is model.embed_tokens.weight


def test_the_seed_decides_all_and_only_that(tokenizer):
    def trained(seed, noise):
        model = build(tokenizer)
        torch.manual_seed(noise)
        state = torch.random.get_rng_state()
        curve = run_stage(model, encoder_of(model, tokenizer), TASKS, replace(TUNE, steps=6), seed=seed,
                                     batch_size=3)  # fmt: skip
        assert torch.equal(state, torch.random.get_rng_state())
        return curve, weights(model)

    (curve, first), (same, second), (other, _) = trained(1, 5), trained(1, 6), trained(2, 5)
    assert curve == same != other
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_falls_to_nothing_where_features_say_the_answer(taught):
    _, _, curve = taught
    assert len(curve) == TUNE.steps
    assert sum(curve[:5]) / 5 > 3 and sum(curve[-20:]) / 20 < 0.1


def test_the_loss_is_that_of_the_learned_tokens(tokenizer):
    model = build(tokenizer)
    encoder, losses = encoder_of(model, tokenizer), []
    batch = encoder.batch(TASKS["word"], [0, 1], "shown")
    targets, features = batch.targets, batch.inputs("cpu")["features"]
    with torch.no_grad():
        logits = model(batch.ids, features=features)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    curve = run_stage(model, encoder, {"word": TASKS["word"]}, replace(TUNE, steps=1), batch_size=2,
                                 on_step=lambda *step: losses.append(step))  # fmt: skip
    assert losses == [(0, curve[0])] and curve[0] == pytest.approx(expected.item(), abs=1e-5)


class Listening(RowMaker):
    """Notes what it is asked for."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = []

    def batch(self, task, chosen, version):
        self.asked.append((task.name, version, len(chosen)))
        return super().batch(task, chosen, version)


def test_kinds_come_by_their_shares_and_some_questions_blind(tokenizer):
    shares = {"vqa": 0.6, "word": 0.2, "both": 0.0, "caption": 9.0}
    model = build(tokenizer)
    encoder = Listening(model.multimodal_cfg, tokenizer)
    read = Stage("read", "told", 120, text=True, bridges=False)
    run_stage(model, encoder, TASKS, read, batch_size=1, shares=shares)
    kinds = [kind for kind, _, _ in encoder.asked]
    assert 75 <= kinds.count("vqa") <= 105 and kinds.count("vqa") + kinds.count("word") == 120  # 3 in 4
    blind = [version for kind, version, _ in encoder.asked if kind == "vqa"].count("blind")
    assert 0.12 < blind / kinds.count("vqa") < 0.4  # BLIND
    assert {version for kind, version, _ in encoder.asked if kind == "word"} == {"told"}
    encoder.asked.clear()
    run_stage(model, encoder, TASKS, replace(TUNE, steps=20), batch_size=2)
    assert {version for _, version, _ in encoder.asked} == {"shown"} and {n for _, _, n in encoder.asked} == {2}


@modes
def test_a_stage_goes_on_as_if_never_stopped(tokenizer, changes):
    """Its place in every kind of task, its draws, its moments: bit for bit."""

    def trainer(model):
        with randomness_kept():
            return stage_trainer(model, encoder_of(model, tokenizer), TASKS, replace(TUNE, steps=9), batch_size=3,
                                 shares=dict.fromkeys(TASKS, 1.0))  # fmt: skip

    whole = trainer(build(tokenizer, changes))
    losses = [whole.train_step() for _ in range(9)]
    first = trainer(build(tokenizer, changes))
    begin = [first.train_step() for _ in range(5)]
    state, moments = json.loads(json.dumps(first.batches.state_dict())), first.optimizer.state_dict()
    second = trainer(build(tokenizer, changes))
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(moments)
    second.batches.load_state_dict(state)
    second.step = 5
    assert begin + [second.train_step() for _ in range(4)] == losses and len(set(losses)) == 9
    assert second.batches.epoch_progress == whole.batches.epoch_progress == 27 / 10  # items
    with pytest.raises(InputError, match="same data and settings"):
        TaskBatches(second.batches.rows, TASKS, "told").load_state_dict(state)


def test_pieces_of_a_batch_train_as_the_whole(tokenizer):
    """Also where a piece has more pictures, more sounds or more to learn than another."""

    def trained(**changes):
        model = build(tokenizer)
        run_stage(model, encoder_of(model, tokenizer), TASKS, replace(TUNE, steps=6), batch_size=4,
                  shares=dict.fromkeys(TASKS, 1.0), **changes)  # fmt: skip
        return weights(model)

    whole, pieces = trained(), trained(micro_batch_size=1)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=2e-5)


def test_steps_with_nan_are_left_out_and_counted(tokenizer):
    model = build(tokenizer)
    rows = encoder_of(model, tokenizer)
    broken = replace(TASKS["vqa"], features=Features(TASKS["vqa"].features.images * float("nan")))
    trainer = stage_trainer(model, rows, {"vqa": broken, "word": TASKS["word"]}, replace(TUNE, steps=8), batch_size=2,
                            shares={"vqa": 1.0, "word": 1.0})  # fmt: skip
    trainer.fit()
    assert 0 < trainer.skipped < 8 and all(math.isfinite(loss) for loss in trainer.log.losses)
    assert all(p.isfinite().all() for p in model.parameters())


def test_no_steps_change_nothing_and_nothing_to_train_is_refused(tokenizer):
    model = build(tokenizer).eval()
    encoder = encoder_of(model, tokenizer)
    assert run_stage(model, encoder, TASKS, replace(TUNE, steps=0)) == [] and not model.training
    with pytest.raises(ConfigError, match="no parameter trains"):
        run_stage(model, encoder, TASKS, replace(TUNE, text=False, bridges=False))
