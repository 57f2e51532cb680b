"""train.run of models that see and hear: own pictures and sounds, stages, skills, and what is wrong before a run."""

import json
import math
import os
import signal
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors import safe_open

from llamamm import Llama3Model, from_pretrained
from llamamm.errors import CheckpointError, ConfigError, InputError, TrainingError
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import MultimodalLlama
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.pretrained.save import save_pretrained
from llamamm.pretrained.skill import load_skill
from llamamm.senses.image_processor import ImageProcessor
from llamamm.senses.waves import save_wave
from llamamm.text.config import TextConfig
from llamamm.train import alignment, check, prepare
from llamamm.train.alignment import nearest_words
from llamamm.train.config import TrainConfig
from llamamm.train.loop import Trainer
from llamamm.train.run import make_trainer, run_training
from llamamm.train.tokenizer import train_tokenizer
from tests.training_data import media_table

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0), "gray": (120, 120, 120)}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer of few tokens: with SmolLM2's 49,152, scores alone take most of the time."""
    texts = ["user assistant", "Which colour?", "Describe the picture.", "a tone", "What?", "word ", *COLOURS] * 9
    return train_tokenizer(texts, tmp_path_factory.mktemp("words"), vocab_size=330)


@pytest.fixture(scope="module")
def base(tmp_path_factory, words):
    """A tiny model with an eye and an ear, which knows nothing."""
    torch.manual_seed(0)
    text = TextConfig.tiny(vocab_size=words.vocab_size, context_length=512, hidden_size=32, n_layers=2)
    cfg = MultimodalConfig.tiny(text=text)
    folder = tmp_path_factory.mktemp("models") / "senses"
    processor = MultimodalProcessor(cfg, words, ImageProcessor.vit(32))
    save_pretrained(MultimodalLlama(cfg), folder, processor=processor)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of pictures with metadata.jsonl, LLaVA's JSON, and sounds with transcripts."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "pictures").mkdir()
    for name, colour in COLOURS.items():
        PIL.Image.new("RGB", (40, 30), colour).save(folder / "pictures" / f"{name}.png")
    lines = [{"file_name": f"{name}.png", "text": name} for name in COLOURS]
    (folder / "pictures" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    llava = [{"id": name, "image": f"pictures/{name}.png", "conversations": [
        {"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": name}]}
        for name in COLOURS]  # fmt: skip
    (folder / "llava.json").write_text(json.dumps(llava, indent=1))
    save_wave(folder / "tone.wav", torch.sin(torch.arange(3200) / 5) * 0.3)
    record = {"messages": [{"role": "user", "content": [{"type": "audio", "path": "tone.wav"},
                                                        {"type": "image", "path": "pictures/red.png"},
                                                        {"type": "text", "text": "What?"}]},
                           {"role": "assistant", "content": "a tone"}]}  # fmt: skip
    (folder / "messages.jsonl").write_text(json.dumps(record) + "\n" + json.dumps({"text": "Plain words."}) + "\n")
    return folder


@pytest.fixture
def make(tmp_path, base, data):
    def make(**changes):
        values = {"model": str(base), "data": str(data / "llava.json"), "output": tmp_path / "run", "steps": 2,
                  "batch_size": 2, "length": 96, "device": "cpu", "precision": "fp32",
                  "learning_rate": 1e-2}  # fmt: skip
        return TrainConfig.make({**values, **changes})

    return make


@contextmanager
def stopped_in_step(n):
    """Ctrl-C comes in that step of a run."""
    step = Trainer.train_step

    def stop(trainer):
        if trainer.step == n - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", stop)
        yield


def trained_parts(model, base):
    """The first words of the names of what is no longer as it was, and whether LoRA stands beside it."""
    before = dict(from_pretrained(base, dtype=torch.float32)[0].named_parameters())
    return {name.split(".")[0] for name, p in model.named_parameters()
            if name in before and not torch.equal(p, before[name])}  # fmt: skip


@pytest.mark.parametrize("name", ["llava.json", "pictures", "messages.jsonl"])
def test_each_form_of_data_trains(make, data, name):
    trainer = run_training(make(data=str(data / name)), quiet=True)
    assert trainer.step == 2 and all(np.isfinite(trainer.log.losses))


def test_it_learns_what_pictures_show(make, tmp_path, base):
    """Without looking, the best is ln 4 for the colour and nothing for the end of the answer: 0.69."""
    cfg = make(steps=80, batch_size=4, schedule="constant", trains=["bridges", "text"], pack=False)
    trainer = run_training(cfg, quiet=True)
    assert trainer.log.losses[0] > 5 and sum(trainer.log.losses[-5:]) / 5 < 0.35
    model, _ = from_pretrained(tmp_path / "run" / "last", dtype=torch.float32)
    assert trained_parts(model, base) >= {"image_bridge", "layers"} and "vision_tower" not in trained_parts(model, base)


def test_a_skill_is_small_and_makes_the_base_the_trained_model(make, tmp_path, base):
    trainer = run_training(make(steps=4), quiet=True)
    last = tmp_path / "run" / "last"
    names = {path.name for path in last.iterdir()}
    assert {"bridges.safetensors", "skill.json", "adapter_model.safetensors"} <= names
    assert "model.safetensors" not in names
    model, _ = from_pretrained(base, dtype=torch.float32)
    load_skill(model, last)
    batch = next(trainer.batches).inputs("cpu")
    batch.pop("targets")
    assert batch["features"].images.shape[0] >= 2  # the tower has looked already
    with torch.no_grad():
        mine, theirs = (m.eval().hidden_states(**batch) for m in (trainer.model, model))
    assert torch.equal(mine, theirs)
    assert trained_parts(model, base) == {"image_bridge"}  # no sound was heard, and LoRA is beside


STAGES = [{"name": "align", "steps": 3, "trains": ["bridges"], "learning_rate": 3e-2},
          {"name": "tune", "steps": 4, "trains": ["bridges", "lora"], "lora_r": 2, "data": None}]  # fmt: skip


def stages(data):
    mixed = [{"source": str(data / "llava.json"), "share": 3}, str(data / "messages.jsonl")]
    return [STAGES[0], {**STAGES[1], "data": mixed}]


def test_stages_go_on_from_one_another(make, tmp_path, data, base):
    run_training(make(stages=stages(data)), quiet=True)
    names = {stage: os.listdir(tmp_path / "run" / stage / "last") for stage in ("align", "tune")}
    assert "adapter_model.safetensors" not in names["align"] and "adapter_model.safetensors" in names["tune"]
    first, second = (from_pretrained(base, dtype=torch.float32)[0] for _ in range(2))
    load_skill(first, tmp_path / "run" / "align" / "last")
    load_skill(second, tmp_path / "run" / "tune" / "last")
    fresh = from_pretrained(base, dtype=torch.float32)[0].image_bridge.state_dict()
    moved = [float(torch.cat([(m.image_bridge.state_dict()[k] - v).flatten() for k, v in fresh.items()]).norm())
             for m in (first, second)]  # fmt: skip
    assert 0 < moved[0] and moved[0] != moved[1]


def test_an_adapter_that_trains_no_further_stays_in_the_skill(make, tmp_path, data, base):
    three = [*stages(data), {"name": "polish", "steps": 2, "trains": ["bridges"]}]
    trainer = run_training(make(stages=three), quiet=True)
    model = from_pretrained(base, dtype=torch.float32)[0]
    load_skill(model, tmp_path / "run" / "polish" / "last")
    trained = dict(trainer.model.named_parameters())
    adapters = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    assert adapters and all(torch.equal(p, trained[name]) for name, p in adapters.items())
    assert not any(p.requires_grad for name, p in trained.items() if ".lora_" in name)


@pytest.mark.parametrize("method", ["text", "pictures"])
def test_preferences_train_by_their_method(make, data, tmp_path, text_model, method):
    record = {"prompt": "Which colour?", "chosen": "red", "rejected": "blue"}
    if method == "pictures":
        record["image"] = str(data / "pictures" / "red.png")
    (tmp_path / "pairs.jsonl").write_text((json.dumps(record) + "\n") * 4)
    base = {"model": text_model} if method == "text" else {}
    pairs = str(tmp_path / "pairs.jsonl")
    trainer = run_training(make(**base, method="dpo", data=pairs, eval_data=pairs, eval_every=4, steps=8), quiet=True)
    assert trainer.log.losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert trainer.log.losses[-1] < trainer.log.losses[0] - 0.01
    assert (tmp_path / "run" / "best" / "adapter_model.safetensors").exists()


PAIR = {"prompt": "Which colour?", "chosen": "red", "rejected": "blue"}
NO_PAIRS = {
    "no rejected": ({"prompt": "Which colour?", "response": "red"}, "'chosen' is missing"),
    "a text": ({"text": "red"}, "'chosen' is missing"),
    "only chosen": ({"prompt": "Which colour?", "response": "red", "chosen": "red"}, "'rejected' is missing"),
    "only rejected": ({"prompt": "Which colour?", "response": "red", "rejected": "blue"}, "'chosen' is missing"),
    "empty": ({**PAIR, "rejected": ""}, "'rejected' is empty"),
    "blank": ({**PAIR, "chosen": " "}, "'chosen' is an answer without words"),
    "empty messages": ({**PAIR, "chosen": []}, "'chosen' is empty"),
    "a number": ({**PAIR, "rejected": 5}, "'rejected' must be a text"),
    "the user's": ({"chosen": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
                    "rejected": "c"}, "'chosen' must be .* the assistant's answer"),
    "long": ({**PAIR, "rejected": "word " * 120}, "tokens, which cannot be cut, and length is 96"),
}  # fmt: skip


@pytest.mark.parametrize("key", ["data", "eval_data"])
@pytest.mark.parametrize("kind", NO_PAIRS)
def test_what_is_no_pair_is_named_with_its_line_before_training(make, tmp_path, text_model, kind, key):
    record, message = NO_PAIRS[kind]
    (tmp_path / "good.jsonl").write_text(json.dumps(PAIR) + "\n")
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (PAIR, record, PAIR)))
    files = {"data": str(tmp_path / "good.jsonl"), key: str(tmp_path / "bad.jsonl")}
    with pytest.raises(InputError, match=rf"bad\.jsonl, line 2: .*{message}"):
        run_training(make(model=text_model, method="dpo", **files), quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", NO_PAIRS)
def test_or_no_pair_is_left_out_and_counted(make, tmp_path, text_model, kind, capsys):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (PAIR, NO_PAIRS[kind][0], PAIR)))
    trainer = run_training(make(model=text_model, method="dpo", data=str(path), faulty="skip", steps=3))
    assert trainer.step == 3 and len(trainer.batches.documents) == 2
    assert f"1 faulty record left out, such as {path}, line 2: " in capsys.readouterr().err


@pytest.mark.parametrize("method", ["lora", "dpo"])
def test_rejected_answers_that_nothing_reads_are_said_once(make, tmp_path, text_model, capsys, method):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (PAIR, {"text": "red"}, PAIR)[:: 1 + (method == "dpo")]))
    run_training(make(model=text_model, method=method, data=str(path)))
    said = f"{path}: 2 records with a 'rejected' answer, which is not read: it belongs to method: dpo"
    assert capsys.readouterr().err.count(said) == (method == "lora")


@pytest.mark.parametrize("stage", [0, 1])
def test_a_run_stopped_in_any_stage_goes_on_bit_for_bit(make, tmp_path, data, monkeypatch, stage):
    whole = run_training(make(output=tmp_path / "whole", stages=stages(data)), quiet=True)
    count, step = [0], Trainer.train_step

    def stop(trainer):
        count[0] += 1
        if count[0] == (2, 5)[stage]:
            os.kill(os.getpid(), signal.SIGINT)
        return step(trainer)

    monkeypatch.setattr(Trainer, "train_step", stop)
    part = run_training(make(output=tmp_path / "part", stages=stages(data)), quiet=True)
    assert part.stopped and part.step == 2
    again = run_training(make(output=tmp_path / "part", stages=stages(data)), resume=True, quiet=True)
    assert again.step == 4 and again.log.losses == whole.log.losses
    for name, p in whole.model.named_parameters():
        assert torch.equal(p, dict(again.model.named_parameters())[name]), name
    with pytest.raises(ConfigError, match="holds a run already"):
        run_training(make(output=tmp_path / "part", stages=stages(data)), quiet=True)


@pytest.mark.parametrize(("wrong", "message"), [
    ([{"name": "a", "stepps": 3}], r"stages\[0\] \(a\): unknown key 'stepps'; did you mean 'steps'"),
    ([{"steps": 3}], r"stages\[0\]: each has a name of its own"),
    ([{"name": "a", "steps": 1}, {"name": "a", "steps": 1}], r"stages\[1\]: each has a name of its own"),
    ([{"name": "a/b", "steps": 1}], "letters and digits, got 'a/b'"),
    ([{"name": "a", "steps": 1, "model": "x"}], r"\(a\): 'model' belongs to the whole run"),
    ([{"name": "a", "steps": 1, "trains": ["eyes"]}], r"\(a\): trains.0: .*'bridges'"),
    ([{"name": "a", "steps": 1, "trains": ["lora", "text"]}], "lora stands beside frozen weights"),
    ([{"name": "a", "steps": 1, "trains": []}], "nothing would learn"),
])  # fmt: skip
def test_wrong_stages_are_named(make, wrong, message):
    with pytest.raises(ConfigError, match=message):
        make(stages=wrong).stage_settings()


@pytest.mark.parametrize("trains", [["bridges"], ["bridges", "lora"], ["bridges", "text", "towers"]], ids="-".join)
def test_what_trains_is_in_fp32_beside_short_frozen_weights(make, base, monkeypatch, trains):
    """As on a GPU: AdamW's steps are smaller than the last digit of 16 bits."""
    short = partial(from_pretrained, base, dtype=torch.bfloat16)
    monkeypatch.setattr(prepare, "from_pretrained", lambda *_, **__: short())
    trainer = make_trainer(make(trains=trains, learning_rate=1e-5, precision="bf16"), quiet=True)
    before = {name: p.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train_step()
    trainer.train_step()
    trainer.log.close()
    for name, p in trainer.model.named_parameters():
        assert p.dtype == (torch.float32 if p.requires_grad else torch.bfloat16), name
    after = dict(trainer.model.named_parameters())
    bridge = [name for name in before if name.startswith("image_bridge")]
    assert bridge and all(not torch.equal(before[name], after[name]) for name in bridge)


# ---- streams ----


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Pictures and sounds in a table, of which row 6 holds a broken picture."""
    pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("table")
    save_wave(folder / "tone.wav", torch.sin(torch.arange(1600) / 5) * 0.3)
    rows = []
    for n, (name, colour) in enumerate([*COLOURS.items()] * 3):
        PIL.Image.new("RGB", (40, 30 + n), colour).save(folder / "a.png")
        picture = (folder / "a.png").read_bytes()[: 50 if n == 6 else None]
        rows.append({"image": None if n == 3 else picture, "text": name,
                     "audio": (folder / "tone.wav").read_bytes() if n == 3 else None})  # fmt: skip
    media_table(rows).to_parquet(folder / "bad.parquet", batch_size=4)
    media_table(rows[:6] + rows[7:]).to_parquet(folder / "good.parquet", batch_size=4)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_a_streamed_run_goes_on_bit_for_bit(make, table, data, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    load = datasets.load_dataset

    def streaming(*args, **options):
        assert options["streaming"]  # nothing is loaded whole
        return load(*args, **options)

    monkeypatch.setattr(datasets, "load_dataset", streaming)
    mixed = [{"source": f"datasets:{table}/good.parquet", "share": 3}, str(data / "llava.json")]
    options = {"data": mixed, "stream": True, "stream_buffer": 4, "eval_data": f"datasets:{table}/good.parquet",
               "eval_every": 3, "save_every": 5, "features": tmp_path / "features"}  # fmt: skip
    whole = run_training(make(output=tmp_path / "whole", steps=6, **options), quiet=True)
    with stopped_in_step(3):
        assert run_training(make(output=tmp_path / "part", steps=6, **options), quiet=True).step == 3
    again = run_training(make(output=tmp_path / "part", steps=6, **options), resume=True, quiet=True)
    assert again.step == 6 and again.log.losses == whole.log.losses
    for name, p in whole.model.named_parameters():
        assert torch.equal(p, dict(again.model.named_parameters())[name]), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("checked", [256, 3], ids=["in the head", "later"])
def test_a_faulty_row_is_named_by_its_number(make, table, tmp_path, checked, monkeypatch, capsys):
    monkeypatch.setattr(check, "STREAM_CHECKED", checked)
    source = f"datasets:{table}/bad.parquet"
    options = {"data": source, "stream": True, "stream_buffer": 4, "steps": 8}
    with pytest.raises(InputError, match=r"bad\.parquet, row 6: ") as caught:
        run_training(make(**options))
    assert str(caught.value).count("row 6") == 1
    trainer = run_training(make(faulty="skip", **{**options, "output": tmp_path / "skipped"}))
    told = capsys.readouterr().err
    assert trainer.step == 8 and trainer.batches.n_skipped >= 1
    assert told.count("a faulty record was left out, as all such are") == 1 and f"{source}, row 6: " in told
    assert "left out on the way" in told
    assert f"{source}: the first {min(checked, 12)} rows of the stream are checked" in told


def n_kept(folder):
    """How many features stand on the disk."""
    kept = []
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            kept += file.keys()
    return len(set(kept))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("end", ["the last step", "a checkpoint", "an error", "Ctrl-C"])
def test_features_first_met_in_training_are_kept(make, table, tmp_path, monkeypatch, end):
    monkeypatch.setattr(check, "STREAM_CHECKED", 1)
    step, seen = Trainer.train_step, []

    def train_step(trainer):
        if trainer.step == 3:
            seen.append((n_kept(tmp_path / "features"), trainer.saver.features.n_computed))
            if end in ("an error", "Ctrl-C"):
                raise KeyboardInterrupt if end == "Ctrl-C" else TrainingError("NaN")
        return step(trainer)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    cfg = make(data=f"datasets:{table}/good.parquet", stream=True, steps=5, pack=False, features=tmp_path / "features",
               save_every=3 if end == "a checkpoint" else 100)  # fmt: skip
    expected = {"an error": TrainingError, "Ctrl-C": KeyboardInterrupt}.get(end)
    with pytest.raises(expected) if expected else nullcontext():
        trainer = run_training(cfg, quiet=True)
    [(kept, computed)] = seen
    assert kept == (computed if end == "a checkpoint" else 1) and computed >= 6
    assert n_kept(tmp_path / "features") == (computed if expected else trainer.saver.features.n_computed)


def test_features_met_before_a_faulty_record_are_kept(make, tmp_path):
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    lines = [{"file_name": "a.png", "text": "black"}, {"file_name": "none.png", "text": "black"}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="line 2"):
        run_training(make(data=str(tmp_path / "data.jsonl"), features=tmp_path / "features"), quiet=True)
    assert n_kept(tmp_path / "features") == 1


@pytest.fixture(scope="module")
def text_model(tmp_path_factory, words):
    folder = tmp_path_factory.mktemp("models") / "text"
    text = TextConfig.tiny(vocab_size=words.vocab_size, n_layers=1, hidden_size=16)
    save_pretrained(Llama3Model(text), folder, tokenizer=words)
    return str(folder)


def test_trains_is_for_models_that_see_or_hear(make, text_model):
    with pytest.raises(ConfigError, match="trains is for models that see or hear, .*text reads text alone"):
        run_training(make(model=text_model, trains=["bridges"], length=32), quiet=True)


def faulty(folder, *, kind):
    """A file of three records, of which the second is bad."""
    PIL.Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:45])
    good = {"file_name": "a.png", "text": "black"}
    bad = {"missing": {**good, "file_name": "b.png"}, "corrupt": {**good, "file_name": "broken.png"},
           "long": {**good, "text": "word " * 200}, "no text": {"file_name": "a.png"},
           "markers": {"image": ["a.png"], "conversations": [{"from": "human", "value": "<image><image>"},
                                                             {"from": "gpt", "value": "x"}]}}[kind]  # fmt: skip
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in (good, bad, good)))
    return str(path)


KINDS = {"missing": "No such file", "corrupt": "truncated|broken|cannot", "long": "tokens, .*length is 96",
         "no text": "needs a text beside it", "markers": "2 <image> markers and 1 picture"}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_faulty_record_is_named_with_its_line_before_training(make, tmp_path, kind):
    with pytest.raises(InputError, match=rf"data\.jsonl, line 2: .*({KINDS[kind]})"):
        run_training(make(data=faulty(tmp_path, kind=kind)), quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_or_left_out_and_counted_where_asked(make, tmp_path, capsys, kind):
    trainer = run_training(make(data=faulty(tmp_path, kind=kind), faulty="skip"))
    assert trainer.step == 2
    assert f"1 faulty record left out, such as {tmp_path}/data.jsonl, line 2: " in capsys.readouterr().err


def test_a_text_model_says_that_it_reads_text_alone(make, text_model):
    with pytest.raises(InputError, match="llava.json, line 2: .*reads text alone; `llamamm compose`"):
        run_training(make(model=text_model, length=32), quiet=True)


def test_a_skill_of_another_base_is_refused(make, tmp_path, base):
    run_training(make(steps=1), quiet=True)
    torch.manual_seed(5)
    cfg = from_pretrained(base)[0].multimodal_cfg
    other = MultimodalLlama(cfg)
    with pytest.raises(CheckpointError, match="another base"):
        load_skill(other, tmp_path / "run" / "last")


# ---- alignment: sounds and what is said in them ----


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Two tones, each a name: half a second, four tokens of this model's bridge."""
    folder = tmp_path_factory.mktemp("spoken")
    rows = []
    for name, step in (("red", 0.05), ("blue", 0.6)):
        save_wave(folder / f"{name}.wav", torch.sin(torch.arange(8000) * step) * 0.3)
        rows.append({"file_name": f"{name}.wav", "text": name})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_bridge_is_aligned_without_the_text_model(make, base, spoken, words, monkeypatch):
    def never(*_args, **_options):
        raise AssertionError("the text model has run")

    monkeypatch.setattr(MultimodalLlama, "run_blocks", never)
    monkeypatch.setattr(alignment, "PULL", 0.0)  # this base's words lie close together
    cfg = make(method="align", data=str(spoken), eval_data=str(spoken), steps=200, eval_every=200,
               learning_rate=1e-2, schedule="constant")
    trainer = run_training(cfg, quiet=True)
    assert trainer.log.losses[-1] < 0.1 < 1 < trainer.log.losses[0]
    assert trained_parts(trainer.model, base) == {"audio_bridge"}
    features = next(trainer.batches).inputs("cpu")["features"]
    tokens, mask = trainer.model.bridged(features)["audio"]
    said = {words.decode(ids) for ids in nearest_words(trainer.model, tokens, mask, trainer.objective.words.tolist())}
    assert said == {"red", "blue"}


def test_an_aligned_bridge_is_a_skill_that_the_next_stage_takes_up(make, spoken, tmp_path, base):
    stages = [{"name": "ear", "method": "align", "steps": 3}, {"name": "tune", "steps": 2, "trains": ["lora"]}]
    run_training(make(data=str(spoken), stages=stages), quiet=True)
    first, second = (from_pretrained(base, dtype=torch.float32)[0] for _ in range(2))
    load_skill(first, tmp_path / "run" / "ear" / "last")
    load_skill(second, tmp_path / "run" / "tune" / "last")
    assert all(torch.equal(p, q) for p, q in zip(first.audio_bridge.parameters(), second.audio_bridge.parameters(),
                                                 strict=True))  # fmt: skip
    assert trained_parts(first, base) == {"audio_bridge"}


def test_an_alignment_resumes_bit_for_bit(make, spoken, tmp_path):
    options = {"method": "align", "data": str(spoken), "steps": 6}
    whole = run_training(make(output=tmp_path / "whole", **options), quiet=True)
    with stopped_in_step(3):
        assert run_training(make(**options), quiet=True).step == 3
    again = run_training(make(**options), resume=True, quiet=True)
    assert again.step == 6 and again.log.losses == whole.log.losses
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), again.model.parameters(), strict=True))


def test_bridges_of_an_eye_and_an_ear_are_aligned_in_one_run(make, base, spoken, data, monkeypatch):
    """Sounds and pictures in one batch, each drawn to its own words."""
    monkeypatch.setattr(alignment, "PULL", 0.0)
    both = [{"source": str(spoken), "share": 1}, {"source": str(data / "pictures"), "share": 1}]
    cfg = make(method="align", data=both, steps=150, batch_size=6, learning_rate=1e-2, schedule="constant")
    trainer = run_training(cfg, quiet=True)
    assert sum(trainer.log.losses[-9:]) / 9 < 0.25 < 1 < trainer.log.losses[0]
    assert trained_parts(trainer.model, base) == {"image_bridge", "audio_bridge"}


def test_on_a_cpu_too_frozen_weights_are_short_where_that_is_asked_for(make):
    """What trains is not: its steps are smaller than bf16's last digit."""
    short, whole = (run_training(make(precision=p, output=make().output / p, steps=4), quiet=True)
                    for p in ("bf16", "fp32"))  # fmt: skip
    for trainer, frozen in ((short, torch.bfloat16), (whole, torch.float32)):
        assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
        assert {p.dtype for p in trainer.model.parameters() if not p.requires_grad} == {frozen}
    assert short.log.losses == pytest.approx(whole.log.losses, rel=0.1)
    assert short.log.losses[-1] < short.log.losses[0]


NOT_SPOKEN = {
    "a text": ({"text": "red"}, "0 sounds, 0 pictures and 0 messages"),
    "both": ({"audio": "red.wav", "image": "red.png", "text": "red"}, "1 sound, 1 picture and 2 messages"),
    "a question": ({"prompt": "Which?", "response": "red"}, "0 sounds, 0 pictures"),
    "two sounds": ({"audio": ["red.wav", "blue.wav"], "text": "red blue"}, "2 sounds"),
}


@pytest.mark.parametrize("kind", NOT_SPOKEN)
def test_what_cannot_be_aligned_is_named_with_its_line(make, spoken, kind):
    record, message = NOT_SPOKEN[kind]
    good = {"audio": "red.wav", "text": "red"}
    path = spoken / f"{kind.replace(' ', '-')}.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(InputError, match=rf"{path.name}, line 2: method: align .*{message}"):
        run_training(make(method="align", data=str(path)), quiet=True)


def test_what_does_not_align_is_refused(make, spoken, text_model):
    with pytest.raises(ConfigError, match="align trains bridges alone"):
        make(method="align", trains=["lora"])
    with pytest.raises(ConfigError, match="is for models that hear.*reads text alone"):
        run_training(make(method="align", model=text_model, data=str(spoken)), quiet=True)
