"""The command line as a program among others: fast to start, any encoding, closed pipes, no terminal, no home."""

import ast
import io
import os
import pickle
import re
import stat
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import llamamm
from llamamm.cli import main as cli_main
from tests.cli.test_main import files, main, seeing_dir, shell, tiny_dir  # noqa: F401 (fixtures)
from tests.processes import each_apart, finish
from tests.training_data import write_texts

HEAVY = {"torch", "torchvision", "matplotlib", "numpy", "transformers", "huggingface_hub", "datasets"}
SPY = """
import atexit, sys
atexit.register(lambda: print("IMPORTED", *sys.modules, file=sys.stderr))
from llamamm.cli.main import main
main()
"""


@cache
def imported(*arguments, code=None):
    """Exit code, and the top modules that are imported when `llamamm` with these arguments ends."""
    done = finish([sys.executable, "-c", code or SPY, *map(str, arguments)], stdin=subprocess.DEVNULL)
    names = re.search(r"IMPORTED (.*)", done.stderr)
    assert names, done.stderr
    return done.returncode, {name.split(".")[0] for name in names[1].split()}


# ---- a second to start ----


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0), (["--version"], 0), (["--wrong"], 2), ([], 2),
        (["generate", "--help"], 0), (["generate", "--wrong"], 2), (["generate"], 2), (["generate", "-5 + 3"], 2),
        (["chat", "--help"], 0), (["eval", "--help"], 0), (["experiment", "fusion", "--help"], 0),
        (["bench", "--wrong"], 2), (["fetch", "--help"], 0), (["doctor", "--help"], 0), (["merge"], 2),
        (["check", "--help"], 0), (["train"], 2), (["experiment", "senses", "--help"], 0),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)  # fmt: skip
def test_help_and_wrong_use_import_nothing_heavy(arguments, code):
    ended, names = imported(*arguments)
    assert ended == code
    assert names & HEAVY == set()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["--wrong"], ["generate", "--help"],
                                       ["generate", "--wrong"], ["generate", "hi", "--wrong"], ["bench", "--wrong"],
                                       ["eval", "--help"]], ids=" ".join)  # fmt: skip
def test_help_and_a_wrong_option_take_little_more_than_typer(arguments):
    assert imported(*arguments)[1] & {"pydantic", "pydantic_core", "rich", "yaml"} == set()


def test_the_package_alone_imports_nothing_heavy():
    code = 'import llamamm, sys; print("IMPORTED", *sys.modules, file=sys.stderr)'
    assert imported(code=code)[1] & HEAVY == set()


def test_a_text_model_answers_without_what_draws_and_sees(tiny_dir):  # noqa: F811
    code, names = imported("generate", "hi", "--model", tiny_dir, "--max-new-tokens", 2)
    assert code == 0 and "torch" in names
    assert names & {"torchvision", "matplotlib", "transformers", "datasets"} == set()


def test_every_command_has_its_help_and_train_lists_its_keys():
    code, out, _ = shell("--help")
    commands = re.findall(r"^  ([a-z-]+) {2,}\S", out, re.M)
    assert code == 0
    assert {"generate", "chat", "train", "merge", "eval", "experiment", "bench", "check", "fetch",
            "doctor"} <= {*commands} and "train-multimodal" not in commands  # fmt: skip
    assert "lora_targets" in shell("train", "--help")[1]


# ---- the face ----


def face():
    """The names of the TYPE_CHECKING block of llamamm/__init__.py, each with the module it is imported from."""
    tree = ast.parse(Path(llamamm.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    return {alias.asname or alias.name: node.module for node in block.body for alias in node.names}


def test_the_table_of_names_is_what_type_checkers_read():
    assert face() == llamamm._HOME_OF
    assert sorted({*face(), "LlamammError"}) == sorted(llamamm.__all__)
    assert len(set(llamamm.__all__)) == len(llamamm.__all__)


@pytest.mark.parametrize("name", llamamm.__all__)
def test_every_public_name_is_its_homes(name):
    home = llamamm._HOME_OF.get(name, "llamamm.errors")
    fresh = f"import llamamm, {home} as home; assert llamamm.{name} is home.{name}"
    namespace = {}
    exec(fresh, namespace)
    exec(f"from llamamm import {name}", namespace)
    assert namespace[name] is getattr(llamamm, name)
    assert name in dir(llamamm)


def test_a_star_brings_every_public_name_and_a_wrong_name_is_told():
    namespace = {}
    exec("from llamamm import *", namespace)
    assert {*llamamm.__all__} <= {*namespace}
    with pytest.raises(AttributeError, match="llamamm.*'Lama3Model'"):
        _ = llamamm.Lama3Model
    with pytest.raises(ImportError, match="Lama3Model"):
        exec("from llamamm import Lama3Model")
    assert pickle.loads(pickle.dumps(llamamm.TextConfig.tiny())) == llamamm.TextConfig.tiny()


# ---- a version, and hints ----


def test_version():
    assert shell("--version") == (0, f"llamamm {llamamm.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["-5 + 3 = ?"], 'llamamm generate -- "-5 + 3 = ?"'),
        (["--temperature", "0", "-5 + 3 = ?"], 'llamamm generate -- "-5 + 3 = ?"'),
        (["-- and then?"], 'llamamm generate -- "-- and then?"'),
        (["-why is that so"], 'llamamm generate -- "-why is that so"'),
        (["-12"], 'llamamm generate -- "-12"'),
        (["-$5 a day"], "llamamm generate -- '-$5 a day'"),
        (["--hello there = x"], 'llamamm generate -- "--hello there = x"'),
    ],
)
def test_a_prompt_that_begins_with_a_dash_gets_a_hint(main, arguments, shown):  # noqa: F811
    code, out, err = main("generate", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.endswith(f"{shown}\n") and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--nope"], ["hi", "--nope"], ["-x", "hi"], ["--tempertaure", "3", "-5 x"],
                                       ["hi", "--nope=a b"]])  # fmt: skip
def test_any_other_unknown_option_is_told_as_typer_tells_it(main, arguments):  # noqa: F811
    code, _, err = main("generate", *arguments)
    assert code == 2 and "No such option" in err and "begins with a dash" not in err


def test_behind_two_dashes_a_prompt_may_begin_with_one(main, tiny_dir):  # noqa: F811
    options = ["--model", tiny_dir, "--max-new-tokens", 2, "--temperature", 0]
    code, out, _ = main("generate", *options, "--", "-5 + 3 = ?")
    assert code == 0 and out.strip()


@pytest.mark.parametrize("command", [["generate", "hi", "--model"], ["merge", "no-adapter", "out", "--model"]])
def test_a_missing_folder_is_called_so(main, command, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if command[0] == "generate":
        code, out, err = main(*command, "runs/typo")
        assert (code, out) == (2, "") and err.count("\n") == 1
        assert "no folder 'runs/typo' here" in err and "taken for a Hub repository" in err and "cache" in err
    else:
        code, out, err = main(*command, "runs/typo")
        assert code == 2 and err.count("\n") == 1


@pytest.mark.parametrize(
    ("address", "name"),
    [("https://huggingface.co/owner/name", "owner/name"), ("http://x.org/a/b/tree/main", "a/b"),
     ("https://huggingface.co/x", "owner/name"), ("hf://owner/name", "owner/name")],
)  # fmt: skip
def test_an_address_is_refused_with_both_its_slashes(main, address, name):  # noqa: F811
    commands = {name: ["generate", "hi", "--model", address], "download": ["experiment", "answers", address]}
    for hint, command in commands.items():
        code, out, err = main(*command)
        assert (code, out) == (2, "") and err.count("\n") == 1
        assert address in err and hint in err


# ---- gradients ----


def test_commands_leave_gradients_alone(main, tiny_dir, monkeypatch):  # noqa: F811
    seen = []

    def spy(path):
        seen.append(torch.is_grad_enabled())
        return llamamm.Tokenizer(path)

    monkeypatch.setattr("llamamm.pretrained.load.load_tokenizer", spy)
    assert main("generate", "hi", "--model", tiny_dir, "--max-new-tokens", 2)[0] == 0
    assert seen == [True] and torch.is_grad_enabled()


# ---- any encoding ----


@pytest.mark.parametrize("encoding", ["cp1252", "ascii:strict"])
def test_what_an_encoding_lacks_is_replaced(encoding, tiny_dir):  # noqa: F811
    answer = ["--model", tiny_dir, "--max-new-tokens", 40, "--temperature", 3, "--top-p", 1, "--seed", 5]
    commands = [["chat", *answer], ["fetch", "--list"], ["generate", "été 中", *answer], ["doctor", "中"], ["--help"],
                ["generate", "hi", "--model", "中/文"]]  # fmt: skip
    done = each_apart(commands, data=[b"h\xff\xfei\n"], PYTHONIOENCODING=encoding)
    for command, (code, out, err) in zip(commands, done, strict=True):
        assert code in (0, 2) and b"Traceback" not in err and b"Error: '" not in err, (command, err)
        assert out or err
    assert done[0][0] == 0


def test_a_model_that_writes_another_script(monkeypatch, tiny_dir):  # noqa: F811
    """cp1252 knows the accents and not the characters: those become question marks, and the answer goes on."""
    monkeypatch.setattr("llamamm.generation.generate.TextStream.__iter__", lambda _self: iter(["déjà ", "中文", " vu"]))
    monkeypatch.setattr(sys, "argv", ["llamamm", "generate", "hi", "--model", str(tiny_dir)])
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    with pytest.raises(SystemExit) as end:
        cli_main.main()
    assert not end.value.code
    assert written.getvalue().decode("cp1252").splitlines() == ["déjà ?? vu"]


def test_bad_bytes_from_standard_input_are_replaced(main, tiny_dir):  # noqa: F811
    options = ["--model", tiny_dir, "--max-new-tokens", 3, "--temperature", 0]
    ((code, out, err),) = each_apart([["generate", "-", *options]], data=[b"h\xff\xfei"], PYTHONIOENCODING="utf-8")
    assert code == 0 and b"Traceback" not in err
    assert out.decode() == main("generate", "h\ufffd\ufffdi", *options)[1]


# ---- pipes and closed files ----


BUFFERED = {"PYTHONUNBUFFERED": ""}  # as for users: what is printed is written at the end, and that fails there


def test_a_closed_pipe_ends_quietly(tiny_dir):  # noqa: F811
    commands = [["fetch", "--list"], ["--help"], ["generate", "--help"], ["--version"], ["doctor"],
                ["generate", "hi", "--max-new-tokens", "100", "--model", tiny_dir], ["fetch", "smollm2"]]  # fmt: skip
    reader, writer = os.pipe()
    os.close(reader)
    done = each_apart(commands, stdout=writer, **BUFFERED)
    os.close(writer)
    for command, (code, _, err) in zip(commands, done, strict=True):
        assert code == 1 and err in (b"", b"(stopped: the model's context is full)\n"), (command, code, err)


def test_a_disk_that_is_full_is_one_line():
    with open("/dev/full", "w") as full:
        done = finish([sys.executable, "-m", "llamamm", "--version"], stdout=full, env={**os.environ, **BUFFERED})
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")


def test_closed_standard_files(tiny_dir):  # noqa: F811
    command = f"{sys.executable} -m llamamm"
    for line in (f"{command} --version >&-", f"{command} chat --model {tiny_dir} <&-"):
        done = finish(["bash", "-c", line])
        assert done.returncode == 0 and "Traceback" not in done.stderr and "Error" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (PermissionError(13, "Permission denied", "runs/x"), 2, "error: runs/x: Permission denied"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device"),
        (OSError("odd"), 2, "error: odd"),
        (RuntimeError("two\nlines"), 1, "error: RuntimeError: two lines (LLAMAMM_TRACEBACK=1 shows where)"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_whatever_goes_wrong_is_one_line(main, monkeypatch, error, code, line):  # noqa: F811
    def broken(*_arguments, **_options):
        raise error

    monkeypatch.setattr("llamamm.doctor.examine_machine", broken)
    ended, out, err = main("doctor")
    assert (ended, out, err.strip()) == (code, "", line)
    if code == 1:
        monkeypatch.setenv("LLAMAMM_TRACEBACK", "1")
        with pytest.raises(RuntimeError):
            main("doctor")


def test_an_output_that_is_a_file_is_refused(main, tmp_path):  # noqa: F811
    (tmp_path / "taken").write_text("mine")
    for command in (["experiment", "senses", tmp_path / "taken"], ["merge", tmp_path / "a", tmp_path / "taken"],
                    ["experiment", "senses", tmp_path / "taken" / "below"]):  # fmt: skip
        code, _, err = main(*command)
        assert code == 2 and "taken" in err and err.count("\n") == 1
    assert (tmp_path / "taken").read_text() == "mine"


# ---- chat without a terminal ----


def test_chat_from_a_pipe_writes_answers_alone(main, tiny_dir):  # noqa: F811
    options = ["--model", tiny_dir, "--max-new-tokens", 4, "--temperature", 0]
    code, out, err = main("chat", *options, input_text="hi\n\n/nonsense\n")
    assert code == 0
    assert out == main("generate", "hi", *options)[1]
    assert "Type a message" not in err


@pytest.mark.parametrize("written", ["'{}'", '"{}"', "{}", "{escaped}", "  '{}'  ", "~/{name}", "'~/{name}'"])
def test_file_names_as_people_and_terminals_write_them(main, seeing_dir, files, tmp_path, monkeypatch, written):  # noqa: F811
    picture = tmp_path / "my red file.png"
    picture.write_bytes((files / "red.png").read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    text = written.format(picture, escaped=str(picture).replace(" ", "\\ "), name=picture.name)
    code, _, err = main("chat", "--model", seeing_dir, input_text=f"/image {text}\n")
    assert code == 0 and "(my red file.png goes with your next message)" in err


@pytest.mark.parametrize("written", ["it's not here.png", "'none here.png'", "'none.png", "a b.png"])
def test_a_missing_file_is_named(main, seeing_dir, written):  # noqa: F811
    for command in ("/image", "/audio"):
        code, _, err = main("chat", "--model", seeing_dir, input_text=f"{command} {written}\n")
        assert code == 0 and written.strip("'") in err and err.startswith("error: ") and err.count("\n") == 1


# ---- train without a terminal ----


@pytest.fixture
def config(tmp_path, tiny_dir):  # noqa: F811
    path = tmp_path / "config file.yaml"
    path.write_text(f"model: {tiny_dir}\ndata: {write_texts(tmp_path)}\noutput: {tmp_path / 'run'}\nsteps: 3\n"
                    f"batch_size: 2\nlength: 32\nlora_targets: [q_proj]\ndevice: cpu\nprecision: fp32\n")  # fmt: skip
    return path


def test_train_ends_with_the_path_of_what_it_made(main, config, tmp_path):  # noqa: F811
    code, out, err = shell("train", config, "--set", "steps=2", MPLCONFIGDIR=str(tmp_path / "fresh"))
    assert code == 0, err
    assert out == f"{tmp_path / 'run' / 'last'}\n"
    assert "\x1b" not in err and "\r" not in err and "font" not in err
    assert main("generate", "hi", "--adapter", out.strip(), "--max-new-tokens", 2)[0] == 0


def test_train_names_the_best_where_there_is_one(main, config, tmp_path):  # noqa: F811
    data = re.search("data: (.*)", config.read_text())[1]
    code, out, _ = main("train", config, "--set", f"eval_data={data}", "--set", "eval_every=1")
    assert (code, out) == (0, f"{tmp_path / 'run' / 'best'}\n")


def test_a_run_that_was_stopped_says_how_to_go_on(main, config, tmp_path, monkeypatch):  # noqa: F811
    from llamamm.train.loop import Trainer

    step = Trainer.train_step

    def then_stop(self):
        loss = step(self)
        if self.step == 2:
            self._asked_to_stop = True
        return loss

    monkeypatch.setattr(Trainer, "train_step", then_stop)
    code, out, err = main("train", config, "--set", "save_every=5")
    assert (code, out) == (130, f"{tmp_path / 'run' / 'last'}\n")
    assert "stopped at step 2 of 3" in err
    assert f"llamamm train '{config}' --set save_every=5 --resume\n" in err
    monkeypatch.setattr(Trainer, "train_step", step)
    assert main("train", config, "--set", "save_every=5", "--resume")[0] == 0


def test_a_run_that_was_stopped_before_it_saved_says_so(main, config, monkeypatch):  # noqa: F811
    def interrupted(_self):
        raise KeyboardInterrupt

    monkeypatch.setattr("llamamm.train.loop.Trainer.train_step", interrupted)
    code, out, err = main("train", config)
    assert (code, out) == (130, "") and "nothing was saved" in err and "--resume" not in err


# ---- under torchrun ----


def test_what_every_process_would_say_is_said_once(main, config, monkeypatch):  # noqa: F811
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # in the place of torchrun's
    for name, value in {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)

    def said(rank, change, start=0):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(start))
        code, out, err = main("train", config, "--set", change)
        assert (code, out) == (2, "")
        return err

    first = said(1, "stepps=3")
    assert first.startswith("error: ") and "stepps" in first and first.count("\n") == 1
    assert said(0, "stepps=3") == ""
    assert "lengthh" in said(0, "lengthh=3")  # another error is another line, whoever has it
    assert said(0, "stepps=3", start=1) == first  # torchrun has begun anew
    monkeypatch.setenv("MASTER_PORT", "no number")
    assert said(0, "stepps=3") == first  # rather twice than not at all


def test_torchrun_shows_a_mistake_in_the_settings_once(config, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "llamamm"]
    done = finish([*command, "train", str(config), "--set", "stepps=3"], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode != 0 and not (tmp_path / "run").exists()
    assert re.findall("^error: .*", done.stderr, re.M) == [f"error: {config}: unknown key 'stepps'; did you mean "
                                                           f"'steps'?"]  # fmt: skip


# ---- no home ----


def test_a_home_that_cannot_be_written_is_nobodys_concern(main, tmp_path, tiny_dir, config, monkeypatch):  # noqa: F811
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(stat.S_IREAD | stat.S_IEXEC)
    answer = ["generate", "hi", "--model", tiny_dir, "--max-new-tokens", 2, "--temperature", 0]
    # root may write anywhere: a file in place of a folder is a home that nobody can write
    (tmp_path / "no-folder").write_text("")
    commands, homes = [], []
    for where in (home, tmp_path / "no-folder"):
        env = {"HOME": str(where), "XDG_CONFIG_HOME": f"{where}/c", "XDG_CACHE_HOME": f"{where}/k", "MPLCONFIGDIR": ""}
        commands += [["--version"], answer]
        homes += [env] * 2
    commands.append(["train", config, "--set", f"output={tmp_path / 'run'}"])  # in the home that nobody can write
    homes.append(homes[-1])
    for command, (code, _, err) in zip(commands, each_apart(commands, apart=homes, **homes[-1]), strict=True):
        assert code == 0, (command, err)
        for noise in ("matplotlib", "Matplotlib", "font", "Warning", "Traceback"):
            assert noise not in err.decode()
    monkeypatch.setenv("LLAMAMM_CACHE", f"{tmp_path}/no-folder/below")
    code, out, err = main("fetch", "smollm2")
    assert (code, out) == (2, "") and err.count("\n") == 1 and err.startswith("error: ")
