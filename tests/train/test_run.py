"""train.run and train.check: what is found before a run begins, what it says while it runs, and where things are."""

import json
import os
import re
import signal
from functools import partial

import pytest
import torch

from llamamm import Llama3Model, TextConfig, save_pretrained
from llamamm.errors import ConfigError, ContextOverflowError, InputError, LlamammError
from llamamm.lora.lora import lora_modules
from llamamm.train import check, loop, prepare, sources
from llamamm.train.check import check_records
from llamamm.train.config import TrainConfig
from llamamm.train.prepare import load_model, make_batches
from llamamm.train.processes import Processes
from llamamm.train.rows import encode_record
from llamamm.train.run import run_training
from llamamm.train.sources import open_data
from tests.training_data import write_texts

SHAPE = {"hidden_size": 16, "n_layers": 1, "intermediate_size": 32, "n_heads": 2, "n_kv_heads": 1}
GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, smol):
    """A tiny Llama of 64 places with SmolLM2's tokenizer."""
    torch.manual_seed(0)
    shape = TextConfig.tiny(**SHAPE, vocab_size=smol.vocab_size, context_length=64)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_pretrained(Llama3Model(shape), folder, tokenizer=smol)
    return folder


@pytest.fixture
def make(tmp_path, model_dir):
    def make(**changes):
        values = {"model": str(model_dir), "data": str(write_texts(tmp_path)), "output": tmp_path / "run", "steps": 2,
                  "batch_size": 2, "length": 32, "device": "cpu", "precision": "fp32"}  # fmt: skip
        return TrainConfig.make({**values, **changes})

    return make


def lines(tmp_path, *records):
    path = tmp_path / "data.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return str(path)


@pytest.fixture
def no_weights(monkeypatch):
    """Weights must not be asked for."""
    def refuse(*_args, **_options):
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(prepare, "from_pretrained", refuse)


# ---- before the run ----


def say(*turns):
    return {"messages": [{"role": role, "content": text} for role, text in zip(turns[::2], turns[1::2], strict=True)]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"text": "a"', "Expecting|delimiter"),
        ("[1]", "JSON object.*list"),
        ({"txt": "a"}, "needs 'messages', or 'text'.*'txt'"),
        ({"text": 5}, r"'text' \(int\)"),
        ({"text": ""}, "text is empty"),
        ({"text": " \n"}, "text is empty"),
        ({"prompt": "a"}, "'response' or 'completion'"),
        ({"prompt": "a", "response": ["b"]}, r"'response' \(list\)"),
        ({"messages": "hi"}, "list"),
        ({"messages": []}, "empty"),
        (say("bot", "Hi", "assistant", "Hello"), "message 0 has the role 'bot'; roles are"),
        (say("user", "Hi"), "assistant does not answer"),
        (say("assistant", "Hi"), "assistant does not answer"),
        (say("assistant", "Hi", "user", "a", "assistant", "b"), "message 0 is the assistant's"),
        (say("user", 5, "assistant", "b"), "message 0 has content of type int"),
        ({"messages": [{"role": "user"}]}, "message 0 must have"),
    ],
)
@pytest.mark.parametrize("key", ["data", "eval_data"])
@pytest.mark.usefixtures("no_weights")
def test_a_bad_record_is_named_with_its_line_before_weights_are_loaded(tmp_path, make, key, record,
                                                                       message):  # fmt: skip
    path = lines(tmp_path, GOOD, "", record, GOOD)
    with pytest.raises(InputError, match=rf"data\.jsonl, line 3: .*({message})") as caught:
        run_training(make(**{key: path}), quiet=True)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_weights")
def test_a_text_that_is_not_utf8_is_named_with_its_line(tmp_path, make):
    (tmp_path / "a.txt").write_bytes(b"one\n\ntwo\nthr\xe9e\n")
    with pytest.raises(InputError, match=r"a\.txt, line 4: byte 0xe9 is not UTF-8"):
        run_training(make(data=str(tmp_path / "a.txt")), quiet=True)


@pytest.mark.usefixtures("no_weights")
def test_rows_over_the_context_are_refused_before_weights_are_loaded(make, tmp_path):
    with pytest.raises(ContextOverflowError, match="length 65 .*context of 64 tokens: set length to 64"):
        run_training(make(length=65), quiet=True)
    shape = {"model": None, "tokenizer": "smollm2", "method": "full", "shape": {**SHAPE, "context_length": "3e1"}}
    with pytest.raises(ContextOverflowError, match="length 31 .*context of 30"):
        run_training(make(**shape, length=31), quiet=True)
    assert not (tmp_path / "run").exists()


def test_rows_as_long_as_the_context_train(make):
    assert run_training(make(length=64, steps=1), quiet=True).step == 1


def test_a_prompt_that_evaluations_could_not_answer_is_refused(make):
    with pytest.raises(ContextOverflowError, match="sample_prompts: 'a a a.* sample_tokens 20 .*context of 64"):
        run_training(make(sample_prompts=["a " * 50], sample_tokens=20), quiet=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "taken"}, "output: .*taken cannot be written: File exists"),
        ({"output": "taken/below/it"}, "output: .*it cannot be written: Not a directory; a part of .* is a file"),
        ({"adapter": "nowhere"}, "nowhere has no adapter_config.json"),
        ({"tokenizer": "nowhere"}, "'nowhere' is no file or folder here"),
        ({"data": "none.jsonl"}, "none.jsonl: No such file"),
        ({"data": "."}, "a folder"),
        ({"data": "a.json"}, "a.json holds no document"),
        ({"data": "a.jsonl.gz"}, "gunzip"),
        ({"data": "list.jsonl"}, "list.jsonl, line 1: the file is one JSON list"),
        ({"data": "empty.txt"}, "empty.txt holds no document: 0 bytes"),
        ({"eval_data": "none.jsonl"}, "none.jsonl: No such file"),
        ({"data": "datasets:"}, "names no dataset"),
    ],
)
@pytest.mark.usefixtures("no_weights")
def test_what_is_not_there_is_named_before_weights_are_loaded(make, tmp_path, monkeypatch, changes,
                                                              message):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    cfg = make(**changes)
    (tmp_path / "taken").write_text("")
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "a.jsonl.gz").write_text("")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "list.jsonl").write_text('[\n{"text": "a"}]'.replace("\n", ""))
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(LlamammError, match=message):
        run_training(cfg, quiet=True)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.usefixtures("no_weights")
def test_an_output_that_may_not_be_written_is_refused_with_its_own_remedy(make, monkeypatch):
    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ConfigError, match="Permission denied; choose a place where you may write") as caught:
        run_training(make(), quiet=True)
    assert "space" not in str(caught.value)


def test_dialogues_need_a_chat_format_before_the_first_step(tmp_path, make, model_dir):
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in model_dir.iterdir():
        (plain / file.name).write_bytes(file.read_bytes())
    settings = json.loads((plain / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    (plain / "tokenizer_config.json").write_text(json.dumps(settings).replace("<|im_start|>", "<|other|>"))
    text = (plain / "tokenizer.json").read_text().replace("<|im_start|>", "<|other|>")
    (plain / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match=r"data\.jsonl, line 2: .*chat format"):
        run_training(make(model=str(plain), data=lines(tmp_path, {"text": "a"}, GOOD)), quiet=True)
    assert not (tmp_path / "run").exists()


def test_what_is_checked_is_said():
    records = [{"text": "a"}] * 5 + [{"text": 5}]
    said, firsts = check_records(records, "x", most=5)
    assert said[0].startswith("x: the first 5 of 6 records are checked") and firsts == [0]
    with pytest.raises(InputError, match="^x, record 5: "):
        check_records(records, "x")
    assert check_records([GOOD, {"text": ""}, GOOD], "x") == (["x: 3 records, all checked"], [0, 1])


def test_a_bad_record_beyond_the_check_is_named_too(tmp_path, make, monkeypatch):
    monkeypatch.setattr(check, "check_records", partial(check_records, most=1))
    with pytest.raises(InputError, match=r"data\.jsonl, line 2: a record needs"):
        run_training(make(data=lines(tmp_path, {"text": "a b c"}, {"txt": "a"}), steps=9), quiet=True)


# ---- records of both kinds ----


def targets_of(batches):
    batch = next(batches)
    pairs = zip(batch.ids.flatten().tolist(), batch.targets.flatten().tolist(), strict=True)
    return [(i, t) for i, t in pairs if t >= 0]


@pytest.mark.parametrize("first", ["text", "dialogue"])
@pytest.mark.parametrize("cells", [{}, {"text": None, "messages": None}], ids=["a list", "a table"])
def test_each_record_is_split_by_its_own_kind(smol, make, first, cells):
    long = {**cells, "text": "word " * 60}
    talk = {**cells, "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "so " * 60}]}
    records = [long, talk] if first == "text" else [talk, long]
    cfg = make(length=32, batch_size=1)
    batches = make_batches(records, lambda r: encode_record(r, smol), cfg, smol, processes=Processes(), shuffle=False)
    seen = []
    while batches.epoch == 0:
        seen += targets_of(batches)
    text, dialogue = (encode_record(r, smol) for r in (long, talk))
    pairs = list(zip(text.ids[:-1], text.ids[1:], strict=True))
    assert [p for p in seen if p in set(pairs)][: len(pairs)] == pairs  # the text goes on in the next row
    assert batches.n_cut == 1  # the dialogue stays whole as far as a row goes
    assert batches.state_dict()["settings"]["split"] == "by document"
    assert len(dialogue.ids) > 33


# ---- names of data ----


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["C:\\data\\x", "with:colon", "a b", "deep/er:x"])
@pytest.mark.parametrize("split", ["", ":train", ":held_out"])
def test_paths_of_datasets_may_have_colons(tmp_path, monkeypatch, name, split):
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    parts = {part: datasets.Dataset.from_list([{"text": f"{part} text"}]) for part in ("train", "held_out")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / name)
    expected = f"{split[1:] or 'train'} text"
    assert open_data(f"datasets:{name}{split}")[0] == {"text": expected}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_data(f"datasets:~/{name}{split}")[0] == {"text": expected}
    with pytest.raises(InputError, match="no split 'tset'; there are train, held_out"):
        open_data(f"datasets:{name}:tset")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stream", [False, True])
def test_tables_in_files_and_folders_are_sets_too(tmp_path, stream):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"text": ["a", "b", "c"]})
    (tmp_path / "one").mkdir()
    for n in range(2):
        table.to_parquet(tmp_path / "one" / f"part-{n}.parquet")
    table.to_json(tmp_path / "t.jsonl")
    table.to_csv(tmp_path / "t.csv", index=False)
    table.save_to_disk(tmp_path / "saved")
    for name, n in (("one/part-0.parquet", 3), ("one/*.parquet", 6), ("one", 6), ("one:train", 6), ("t.jsonl", 3),
                    ("t.csv", 3), ("saved", 3), ("t.csv:train", 3)):  # fmt: skip
        rows = list(open_data(f"datasets:{tmp_path}/{name}", stream=stream))
        assert [row["text"] for row in rows] == ["a", "b", "c"] * (n // 3), name
    with pytest.raises(InputError, match="one:tset: .*tset"):
        open_data(f"datasets:{tmp_path}/one:tset", stream=stream)


@pytest.mark.parametrize(("name", "expected"), [
    ("squad", ("squad", {})),
    ("owner/name", ("owner/name", {})),
    ("owner/name/a subset", ("owner/name", {"name": "a subset"})),
    ("owner/name/chartqa(x,y)", ("owner/name", {"name": "chartqa(x,y)"})),
    ("/data/set/part", ("/data/set/part", {})),
    ("./data/set/part", ("./data/set/part", {})),
    ("a/b.parquet", ("parquet", {"data_files": "a/b.parquet"})),
    ("a/*.JSONL", ("json", {"data_files": "a/*.JSONL"})),
])  # fmt: skip
def test_what_the_library_is_asked_for(name, expected):
    assert sources._builder(name) == expected


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("C:\\data\\x:train", ("C:\\data\\x", "train")),
        ("C:\\data\\x", ("C:\\data\\x", "")),
        ("C:/data/x:train[:10%]", ("C:/data/x", "train[:10%]")),
        ("owner/name:train[10:20]+test", ("owner/name", "train[10:20]+test")),
        ("name:train", ("name", "train")),
        ("name", ("name", "")),
        ("\\\\server\\share\\x:dev", ("\\\\server\\share\\x", "dev")),
        ("/a:b/c:train", ("/a:b/c", "train")),
        ("c:x", ("c:x", "")),
    ],
)
def test_name_and_split(rest, expected):
    assert sources._name_and_split(rest) == expected


def test_files_below_the_home_folder(tmp_path, monkeypatch):
    write_texts(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_data("~/texts.jsonl")) == 60


@pytest.mark.filterwarnings("ignore")
def test_all_linear_is_every_linear_but_the_head_as_in_peft(make, model_dir):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoModelForCausalLM.from_pretrained(model_dir)
    wrapped = peft.get_peft_model(reference, peft.LoraConfig(r=2, target_modules="all-linear"))
    adapted = [name for name, module in wrapped.named_modules() if hasattr(module, "lora_A")]
    theirs = {name.removeprefix("base_model.model.model.") for name in adapted}
    model, _ = load_model(make(lora_targets="all-linear", lora_r=2), torch.device("cpu"))
    assert set(lora_modules(model)) == theirs


# ---- what it says ----


def test_a_run_without_a_terminal_speaks(make, capsys):
    cfg = make(steps=3)
    run_training(cfg)
    out, err = capsys.readouterr()
    told = err.splitlines()
    assert out == "" and told[0] == f"{cfg.data}: 60 records, all checked"
    assert told[1].startswith("step 1 of 3: loss ") and told[-2].startswith("step 3 of 3: loss ")
    assert re.fullmatch(rf"step 3 of 3, \d+ s: the adapter is in {re.escape(str(cfg.output / 'last'))}", told[-1])
    run_training(make(steps=5), resume=True)
    told = capsys.readouterr().err.splitlines()
    assert told[1] == "resumed at step 3 of 5" and told[-1].startswith("step 5 of 5, ")
    run_training(make(steps=5), resume=True)
    assert "resumed at step 5 of 5, which was the last" in capsys.readouterr().err
    run_training(make(steps=1, output=cfg.output.with_name("new")), resume=True)
    assert "nothing to resume in " in capsys.readouterr().err
    run_training(make(steps=1, output=cfg.output.with_name("quiet")), quiet=True)
    assert capsys.readouterr() == ("", "")


def test_a_run_that_was_stopped_says_where_it_stands(make, capsys, monkeypatch):
    before = loop.Trainer.train_step

    def stop(trainer):
        before(trainer)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop.Trainer, "train_step", stop)
    trainer = run_training(make(steps=9))
    told = capsys.readouterr().err.splitlines()
    assert trainer.step == 1 and trainer.stopped
    assert any("stopping after this step (SIGINT), with a checkpoint to resume from" in line for line in told)
    assert told[-1].startswith("step 1 of 9, ") and told[-1].endswith("last")


def test_a_cut_dialogue_is_told_once(tmp_path, make, capsys):
    long = say("user", "Hi", "assistant", "so " * 60)
    run_training(make(data=lines(tmp_path, long, long), steps=3))
    assert capsys.readouterr().err.count("a dialogue longer than length 32 was cut") == 1


def test_a_picture_that_cannot_be_written_ends_in_one_line(make, monkeypatch):
    before = os.replace

    def full(source, target):
        if str(target).endswith("run.png"):
            raise OSError(28, "No space left on device")
        before(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(LlamammError, match="run.png cannot be written: No space left on device; free some space"):
        run_training(make(steps=1), quiet=True)
