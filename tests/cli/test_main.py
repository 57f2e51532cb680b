"""cli.main: what a user types, what stands on the screen, and one line with the remedy when it goes wrong."""

import contextlib
import io
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
from types import ModuleType

import PIL.Image
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from llamamm import Llama3Model, TextConfig, Tokenizer, from_pretrained, save_pretrained
from llamamm.cli.main import app
from llamamm.cli.main import main as entry_point
from llamamm.errors import InputError
from llamamm.fast.quantized import quantize
from llamamm.generation.guarded import Judgement
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.senses.image_processor import ImageProcessor
from llamamm.senses.waves import save_wave
from llamamm.train.tokenizer import train_tokenizer
from tests.generation.test_guarded import SAFE, UNSAFE, Scripted, unsafe_from
from tests.multimodal.test_model import build
from tests.processes import end, finish, wait_while_it_gets_on
from tests.weights.test_loading import ENTRY, write_raw

FRANCE = "What is the capital of France?"


def run(*arguments, **options):
    """In this process, as typer runs it; what becomes of an error is tested with `main`."""
    return CliRunner().invoke(app, [str(a) for a in arguments], **options)


def shell(*arguments, input_text="", **env):
    done = finish([sys.executable, "-m", "llamamm", *map(str, arguments)], input=input_text,
                  env={**os.environ, "COLUMNS": "200", **env})  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def main(monkeypatch, capsys):
    """The whole program in this process: (exit code, stdout, stderr)."""

    def call(*arguments, input_text=""):
        monkeypatch.setattr(sys, "argv", ["llamamm", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(input_text))
        code = 0
        try:
            entry_point()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory, smollm2_dir):
    """A random model with SmolLM2's tokenizer: loads at once, speaks nonsense."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny") / "model"
    cfg = TextConfig.tiny(vocab_size=49_152, context_length=128, tie_embeddings=False)
    save_pretrained(Llama3Model(cfg), folder, tokenizer=Tokenizer(smollm2_dir))
    return folder


# ---- generate ----


def test_the_default_model_answers():
    result = run("generate", FRANCE, "--temperature", 0, "--dtype", "float32")
    assert result.exit_code == 0
    assert "Paris" in result.stdout


def test_prompt_from_standard_input_and_system_message(tiny_dir):
    options = ["--model", tiny_dir, "--temperature", 0, "--max-new-tokens", 5]
    piped = run("generate", "-", *options, input="hello")
    assert piped.stdout == run("generate", "hello", *options).stdout
    assert piped.stdout != run("generate", "hello", "--system", "Be rude.", *options).stdout


def test_raw_continues_the_text(smollm2_dir):
    result = run("generate", "The capital of France is", "--raw", "--temperature", 0, "--max-new-tokens", 3, "--model",
                 smollm2_dir, "--dtype", "fp32")  # fmt: skip
    assert result.stdout.strip().startswith("Paris")


def test_the_same_seed_gives_the_same_text(tiny_dir):
    def text(seed):
        options = ["--model", tiny_dir, "--max-new-tokens", 20, "--temperature", 1]
        return run("generate", "hi", *options, "--seed", seed).stdout

    assert text(1) == text(1) != text(2)


def test_stop_string(smollm2_dir):
    options = ["--model", smollm2_dir, "--dtype", "fp32", "--temperature", 0]
    whole = run("generate", FRANCE, *options).stdout
    cut = run("generate", FRANCE, *options, "--stop", "Paris").stdout
    assert cut.strip() == whole[: whole.index("Paris")].strip()


def test_it_says_why_it_stopped(tiny_dir):
    length = run("generate", "hi", "--model", tiny_dir, "--max-new-tokens", 3)
    assert "stopped after 3 tokens; --max-new-tokens" in length.stderr
    context = run("generate", "hi", "--model", tiny_dir, "--max-new-tokens", 500)
    assert "context is full" in context.stderr


def test_dtype_and_size_reach_the_loader(tiny_dir, monkeypatch):
    asked = []

    def loader(name, **options):
        asked.append((name, options))
        raise InputError("enough")

    monkeypatch.setattr("llamamm.pretrained.load.from_pretrained", loader)
    run("generate", "hi", "--model", tiny_dir, "--dtype", "bf16", "--device", "cpu")
    run("chat", "--size", "3B")
    name, options = asked[0]
    assert (name, options["dtype"], options["device"]) == (str(tiny_dir), torch.bfloat16, torch.device("cpu"))
    assert asked[1][0] == "meta-llama/Llama-3.2-3B-Instruct"


def test_compile_is_used_only_when_asked(tiny_dir, monkeypatch):
    calls = []
    monkeypatch.setattr(Llama3Model, "compile", lambda _self, **options: calls.append(options))
    run("generate", "hi", "--model", tiny_dir, "--max-new-tokens", 1)
    assert calls == []
    run("generate", "hi", "--model", tiny_dir, "--max-new-tokens", 1, "--compile")
    assert calls == [{"dynamic": True}]


# ---- errors ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "hi", "--model", "no-such-model"], "no-such-model.*smollm2"),
        (["generate", "hi", "--model", "x", "--size", "1B"], "--model x and --size 1B"),
        (["generate", "hi", "--model", ""], "--model is empty"),
        (["generate", "hi", "--temperature", "-1"], "temperature.*-1"),
        (["generate", "hi", "--top-p", "2"], "top_p.*2"),
        (["generate", "hi", "--dtype", "int3"], "int3.*float32"),
        (["generate", "hi", "--device", "abacus"], "abacus.*cpu"),
        (["generate", "hi", "--seed", "-1"], "seed.*-1"),
        (["generate", "hi", "--guard", ""], "--guard is empty.*own"),
        (["generate", "hi", "--guard", "owm"], "--guard: 'owm' is no file.*'own' is the one that comes with this"),
        (["fetch", "gpt5"], "gpt5.*smollm2"),
        (["doctor", "no-such-file"], "no-such-file does not exist"),
        (["bench", "--against", "vllm"], "transformers.*vllm"),
    ],
)
def test_errors_are_one_line_with_exit_code_2(main, arguments, message):
    code, out, err = main(*arguments)
    assert (code, out) == (2, "")
    lines = err.strip().splitlines()
    assert len(lines) == 1
    assert re.match(rf"error: .*{message}", lines[0]), err


def test_what_stands_between_colons_stays(main):
    assert "recipe:guard: " in main("plan", "recipe:guard", "--set", "steps=-1")[2]  # rich has a picture of a guard


@pytest.mark.parametrize(("command", "default"), [
    ("quantize", "the model's own"), ("merge", "the model's own"), ("compose", "the model's own"),
    ("eval", "the model's own"), ("bench same", "float32"), ("generate", "what this device multiplies fast"),
])  # fmt: skip
def test_help_says_which_dtype_it_is_without_the_option(command, default):
    said = " ".join(run(*command.split(), "--help").stdout.split())
    assert f"float32, bfloat16 or float16. Default: {default}." in said


def test_what_is_said_of_an_answer_comes_behind_its_last_line(tiny_dir):
    command = [sys.executable, "-m", "llamamm", "generate", "hi", "--model", str(tiny_dir), "--max-new-tokens", "2"]
    done = finish(["sh", "-c", f"{shlex.join(command)} 2>&1"])
    assert done.stdout.endswith("\n(stopped after 2 tokens; --max-new-tokens allows more)\n")


def test_wrong_use_explains_itself(main):
    code, _, err = main("generate")
    assert code == 2 and "Missing argument" in err and "prompt" in err


@pytest.mark.parametrize("command", ["generate", "chat", "transcribe", "check", "fetch", "doctor", "bench"])
def test_help_explains_each_flag(command):
    result = run(command, "--help", env={"COLUMNS": "200"})
    lines = [line for line in result.stdout.splitlines() if re.match(r"^\s+(--[a-z]|-h)", line)]
    assert result.exit_code == 0 and lines
    for line in lines:
        words = re.sub(r"--\S+|<\S+>|\[.*?\]", "", line).split()
        assert len(words) >= 2, line


# ---- chat ----


def test_chat_keeps_history_and_obeys_commands(main):
    code, out, err = main(
        "chat", "--temperature", "0", "--dtype", "float32",
        input_text=f"My name is Ada.\n/reset\n{FRANCE}\n/system Answer in one word.\n/nonsense\n/exit\n",
    )  # fmt: skip
    assert code == 0
    assert "Paris" in out
    assert "a new conversation, with this system message" in err
    assert "/reset" in err.split("(a new")[-1]  # an unknown command gets the list of commands


def test_chat_ends_at_the_end_of_input(main, tiny_dir):
    assert main("chat", "--model", tiny_dir)[0] == 0


def test_a_full_context_is_a_line_not_the_end(main, tiny_dir):
    code, _, err = main("chat", "--model", tiny_dir, "--max-new-tokens", 3, input_text="word " * 200 + "\n/reset\n")
    assert code == 0
    assert "the context 128: reset starts a new one (/reset)" in err


AT_THE_TERMINAL = """
import fcntl, runpy, signal, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that its Ctrl-C reaches this process
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs tests in the background has it ignored
runpy.run_module("llamamm", run_name="__main__", alter_sys=True)
"""


def test_ctrl_c_stops_the_answer_and_not_the_program(smollm2_dir):
    """On a real terminal: interrupt in the middle of an answer, then at the prompt, then leave."""
    ours, theirs = pty.openpty()
    # so many tokens that the answer cannot end before a busy machine has come to interrupt it
    options = ["--model", str(smollm2_dir), "--temperature", "0", "--max-new-tokens", "6000"]
    process = subprocess.Popen([sys.executable, "-c", AT_THE_TERMINAL, "chat", *options],
                               stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)  # fmt: skip
    os.close(theirs)
    seen = ""

    def read(seconds=0.2):
        nonlocal seen
        if select.select([ours], [], [], seconds)[0]:
            with contextlib.suppress(OSError):  # the other side is closed
                seen += os.read(ours, 4096).decode(errors="replace")

    def wait_until(condition, what):
        wait_while_it_gets_on(process, lambda: len(seen), until=lambda: condition() or read())
        assert condition(), f"waited for {what!r}, saw {seen!r}"

    def wait_for(text, after=0):
        wait_until(lambda: text in seen[after:], text)
        return seen.index(text, after) + len(text)

    try:
        at = wait_for("> ")
        os.write(ours, b"Tell me a very long story.\n")
        wait_until(lambda: "story.\r\n" in seen and len(seen.rpartition("story.\r\n")[2]) > 20, "an answer begun")
        process.send_signal(signal.SIGINT)
        at = wait_for("(stopped)", at)
        at = wait_for("> ", at)
        for _ in range(20):  # a key pressed while the prompt is being set up is lost, as on any terminal
            os.write(ours, b"\x03")  # Ctrl-C as the terminal sends it, at the prompt
            read(0.5)
            if "/exit" in seen[at:]:
                break
        at = wait_for("/exit leaves", at)
        wait_for("> ", at)
        os.write(ours, b"/exit\n")
        wait_while_it_gets_on(process, lambda: len(seen), until=read)
        assert process.returncode == 0
    finally:
        end(process)
        os.close(ours)


# ---- a guard ----


@pytest.fixture
def guards(monkeypatch):
    """What load_guard is asked for; it gives guards["next"]."""
    asked = {"names": []}

    def load_guard(name=None, *, threshold=None, device="cpu", dtype=None):  # noqa: ARG001
        asked["names"].append((name, str(device)))
        return asked["next"]

    for module in ("llamamm.safety", "llamamm.safety.guard"):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    sys.modules["llamamm.safety.guard"].load_guard = load_guard
    return asked


def test_generate_with_a_guard_that_finds_nothing(main, tiny_dir, guards):
    options = ["--model", tiny_dir, "--temperature", 0, "--max-new-tokens", 20, "--device", "cpu"]
    alone = main("generate", "hi", *options)
    assert guards["names"] == []
    for name in ("own", "owner/a-guard"):
        guards["next"] = Scripted()
        assert main("generate", "hi", *options, "--guard", name) == alone
        assert guards["names"].pop() == (name, "cpu")
        assert guards["next"].seen[0] == [{"role": "user", "content": "hi"}] and len(guards["next"].answers) == 2


@pytest.mark.parametrize("raw", [(), ("--raw",)])
def test_generate_says_what_was_refused_and_ends_with_3(main, tiny_dir, guards, raw):
    options = ["--model", tiny_dir, "--temperature", 0, "--max-new-tokens", 40, "--guard", "own", *raw]
    guards["next"] = unsafe_from(0)
    assert main("generate", "hi", *options) == (
        3, "\n", "(refused: the prompt was judged unsafe, S2, score 0.97)\n")  # fmt: skip
    guards["next"] = unsafe_from(2, Judgement(True, 0.5, ("S1", "S3")))
    code, out, err = main("generate", "hi", *options)
    assert (code, err) == (3, "(refused: the answer was judged unsafe, S1, S3, score 0.50)\n")
    assert out == guards["next"].answers[0] + "\n"
    guards["next"] = unsafe_from(0, RuntimeError("hi"))
    assert main("generate", "hi", *options) == (3, "\n", "(refused: the prompt could not be judged: RuntimeError)\n")


def test_chat_goes_on_after_a_refusal(main, tiny_dir, guards):
    guards["next"] = Scripted(lambda c, _k: UNSAFE if "bad" in str(c) else SAFE)
    code, out, err = main("chat", "--model", tiny_dir, "--max-new-tokens", 3, "--guard", "own",
                          input_text="a bad one\nhello\n")  # fmt: skip
    assert code == 0 and out.strip()
    assert err.splitlines() == ["(refused: the prompt was judged unsafe, S2, score 0.97)",
                                "(stopped after 3 tokens; --max-new-tokens allows more)"]  # fmt: skip


def test_help_tells_of_the_exit_code():
    for command in ("generate", "chat"):
        assert "exit code 3" in " ".join(run(command, "--help", env={"COLUMNS": "200"}).stdout.split())


# ---- images and sounds ----


@pytest.fixture(scope="module")
def seeing_dir(tmp_path_factory):
    """A random model that sees and hears, with a tokenizer of a few words: loads at once, speaks nonsense."""
    folder = tmp_path_factory.mktemp("seeing")
    tokenizer = train_tokenizer(["user assistant what is this a red picture"] * 9, folder, vocab_size=300)
    model = build({"text": TextConfig.tiny(vocab_size=tokenizer.vocab_size, context_length=200)})
    processor = MultimodalProcessor(model.multimodal_cfg, tokenizer, ImageProcessor.vit(32))
    save_pretrained(model, folder / "model", processor=processor)
    return folder / "model"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """red.png, blue.png, low.wav, high.wav; and bad.png, bad.wav, which hold words."""
    folder = tmp_path_factory.mktemp("media")
    for colour in ("red", "blue"):
        PIL.Image.new("RGB", (50, 40), colour).save(folder / f"{colour}.png")
    for name, pitch in (("low", 0.1), ("high", 0.9)):
        save_wave(folder / f"{name}.wav", 0.5 * torch.sin(torch.arange(8000) * pitch))
    for name in ("bad.png", "bad.wav"):
        (folder / name).write_text("no picture and no sound")
    return folder


def said(directory, *arguments):
    """What `generate` says, and that all is well."""
    options = ["--model", directory, "--temperature", 0, "--max-new-tokens", 8, "--dtype", "float32"]
    result = run("generate", *arguments, *options)
    assert result.exit_code == 0, result.exception
    return result.stdout


def test_generate_answers_about_images_and_sounds(seeing_dir, files):
    red, blue = ("--image", files / "red.png"), ("--image", files / "blue.png")
    low, high = ("--audio", files / "low.wav"), ("--audio", files / "high.wav")
    each = [(), red, blue, low, high, (*red, *blue), (*blue, *red), (*low, *high), (*red, *low),
            (*red, *blue, *low, *high)]  # fmt: skip
    answers = [said(seeing_dir, "what is this", *media) for media in each]
    assert len(set(answers)) == len(answers)  # each is looked at and listened to, in its order
    assert answers[-1] == said(seeing_dir, "what is this", *low, *red, *high, *blue)  # images come before sounds


def test_markers_say_where_images_and_sounds_stand(seeing_dir, files):
    red, blue, low = ("--image", files / "red.png"), ("--image", files / "blue.png"), ("--audio", files / "low.wav")
    first = said(seeing_dir, "what is this", *red)
    assert said(seeing_dir, "<image>what is this", *red) == first
    assert said(seeing_dir, "what is this<image>", *red) != first
    assert said(seeing_dir, "what<image> is<audio> this <image>", *red, *low, *blue) != said(
        seeing_dir, "what<image> is<audio> this <image>", *blue, *low, *red
    )
    assert said(seeing_dir, "what is this", "--raw", *red) == said(seeing_dir, "<image>what is this", "--raw", *red)
    assert said(seeing_dir, "what <image>") != said(seeing_dir, "what ")  # without a picture it is text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["<image> or <image>", "--image", "red.png"], "2 <image> markers, but 1 "),
        (["<image>", "--image", "red.png", "--image", "blue.png"], "1 <image> marker, but 2 "),
        (["<audio><audio>", "--audio", "low.wav"], "2 <audio> markers, but 1 "),
        (["hi", "--image", "bad.png"], "bad.png"),
        (["hi", "--image", "none.png"], "none.png"),
        (["hi", "--audio", "bad.wav"], "bad.wav"),
        (["hi", "--audio", "none.wav"], "none.wav"),
        (["hi", *["--image", "red.png"] * 40], r"\d{3} .*context.* 200"),
    ],
)
def test_media_that_do_not_work_are_one_line(main, seeing_dir, files, arguments, message):
    arguments = [files / a if a.endswith((".png", ".wav")) else a for a in arguments]
    code, out, err = main("generate", *arguments, "--model", seeing_dir)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: .*{message}.*\n", err), err


@pytest.mark.parametrize(
    ("option", "file", "kind"), [("--image", "red.png", "an image"), ("--audio", "low.wav", "a sound")]
)
def test_a_text_model_refuses_media(main, tiny_dir, files, option, file, kind):
    code, out, err = main("generate", "hi", option, files / file, "--model", tiny_dir)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: this model reads text alone, .*{kind}.* take a model that sees and hears\n", err)


def test_chat_about_images_and_sounds(main, seeing_dir, files):
    options = ["--model", seeing_dir, "--temperature", 0, "--max-new-tokens", 8, "--dtype", "float32"]
    spoken = [f"/image {files}/red.png", f"/audio {files}/low.wav", "what is this", "/reset", "what is this",
              "/reset", f"/image {files}/red.png", "/reset", "what is this",
              f"/image {files}/none.png", f"/image {files}/bad.png", f"/audio {files}/bad.wav", "/image", "/exit"]
    code, out, err = main("chat", *options, input_text="\n".join(spoken) + "\n")
    assert code == 0
    assert "(red.png goes with your next message)" in err and "(low.wav goes with your next message)" in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and all(n in e for n, e in zip(("none.png", "bad.png", "bad.wav"), errors, strict=True))
    assert "/image FILE" in err.split("bad.wav")[-1]  # /image alone gets the list of commands
    alone = said(seeing_dir, "what is this").strip()
    shown = said(seeing_dir, "what is this", "--image", files / "red.png", "--audio", files / "low.wav").strip()
    assert shown != alone
    assert out.count(shown) == 1 and out.count(alone) == 2  # media go with one message, and a reset drops them


def test_a_text_model_says_in_chat_that_it_cannot_see(main, tiny_dir, files):
    text = f"/image {files}/red.png\nhi\nhi\n"
    code, out, err = main("chat", "--model", tiny_dir, "--max-new-tokens", 2, input_text=text)
    assert code == 0
    assert err.count("this model reads text alone") == 1
    assert "stopped after 2 tokens" in err.split("reads text alone")[-1]  # the second "hi" is answered


def test_chat_begins_with_images_and_sounds(main, seeing_dir, files):
    """They go with the first message alone, after whatever command; /image adds to them, /reset drops them."""
    options = ["--model", seeing_dir, "--temperature", 0, "--max-new-tokens", 8, "--dtype", "float32"]
    red, low = ("--image", files / "red.png"), ("--audio", files / "low.wav")
    alone = said(seeing_dir, "what is this").strip()
    shown = said(seeing_dir, "what is this", *red, *low).strip()
    two = said(seeing_dir, "what is this", *red, "--image", files / "blue.png").strip()
    assert len({alone, shown, two}) == 3
    code, out, err = main("chat", *low, *red, *options, input_text="/help\nwhat is this\n/reset\nwhat is this\n")
    assert code == 0 and out.strip().startswith(shown) and out.strip().endswith(alone) and out.count(shown) == 1
    assert err.index("(red.png goes with your first message)") < err.index("(low.wav goes with your first message)")
    _, out, _ = main("chat", *red, *options, input_text=f"/image {files}/blue.png\nwhat is this\n")
    assert out.strip() == two
    _, out, _ = main("chat", *red, *options, input_text="/reset\nwhat is this\n")
    assert out.strip() == alone


@pytest.mark.parametrize(("option", "file"), [("--image", "none.png"), ("--image", "bad.png"), ("--audio", "none.wav"),
                                              ("--audio", "bad.wav")])  # fmt: skip
def test_a_wrong_file_ends_chat_before_weights_are_read(main, files, monkeypatch, option, file):
    def never(*_args, **_options):
        raise AssertionError("weights were read")

    monkeypatch.setattr("llamamm.pretrained.load.from_pretrained", never)
    code, out, err = main("chat", option, files / file, input_text="what is this\n")
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: .*{file}.*\n", err), err


@pytest.mark.parametrize(
    ("option", "file", "kind"), [("--image", "red.png", "an image"), ("--audio", "low.wav", "a sound")]
)
def test_chat_with_a_text_model_refuses_media(main, tiny_dir, files, option, file, kind):
    code, out, err = main("chat", option, files / file, "--model", tiny_dir, input_text="hi\n")
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: this model reads text alone, .*{kind}.* take a model that sees and hears\n", err)


def test_a_guard_judges_what_a_picture_says(main, seeing_dir, files, guards, monkeypatch):
    said = "a bad sign"
    monkeypatch.setattr("llamamm.generation.guarded.media_reader", lambda _model, _processor: lambda _medium: said)
    guards["next"] = Scripted(lambda c, _k: UNSAFE if c == said else SAFE)
    options = ["--image", files / "red.png", "--model", seeing_dir, "--guard", "own"]
    line = "(refused: the picture was judged unsafe, S2, score 0.97)\n"
    assert main("generate", "what is this", *options) == (3, "\n", line)


# ---- doctor, fetch, bench ----


def test_doctor_tells_about_the_machine_and_never_shows_the_token(main, monkeypatch):
    for name, value in {"HF_TOKEN": "hf_averysecretword", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    code, out, _ = main("doctor")
    assert code == 0
    for word in (torch.__version__.split("+")[0], "16-bit matrix units", "memory", "asset cache", "present", "offline"):
        assert word in out
    assert "secret" not in out


def test_doctor_answers_in_a_process_that_has_loaded_nothing_else():
    code, out, err = shell("doctor")
    assert code == 0 and "hub cache" in out and not err


def test_doctor_finds_damaged_numbers(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"good": torch.ones(3), "bad": torch.tensor([[1.0, float("nan")], [float("inf"), 2.0]])}, path)
    result = run("doctor", path)
    assert result.exit_code == 2
    assert "bad (2, 2): 1 NaN, 1 inf" in result.stdout and "good" not in result.stdout
    save_file({"good": torch.ones(3)}, path)
    result = run("doctor", path)
    assert result.exit_code == 0 and "every number is finite" in result.stdout and "3 parameters" in result.stdout


def test_doctor_refuses_a_truncated_file(main, tmp_path):
    code, _, err = main("doctor", write_raw(tmp_path / "w.safetensors", {"w": ENTRY}, b"123"))
    assert code == 2 and "download it again" in err


@pytest.mark.parametrize("bits", [8, 4])
def test_doctor_counts_the_weights_of_a_quantized_model(tiny_dir, tmp_path, bits):
    model, tokenizer = from_pretrained(tiny_dir)
    n = model.n_parameters() + model.lm_head.weight.numel() * model.cfg.tie_embeddings  # whose copy is rounded
    save_pretrained(quantize(model, bits), tmp_path / "small", tokenizer=tokenizer)
    assert f"{n:,} parameters" in run("doctor", tmp_path / "small").stdout


def test_doctor_reads_gguf(smollm2_gguf):
    result = run("doctor", smollm2_gguf)
    assert result.exit_code == 0 and "272 tensors" in result.stdout


def test_fetch_prints_where_the_asset_is(smollm2_dir):
    result = run("fetch", "smollm2")
    assert result.stdout.replace("\n", "") == str(smollm2_dir)
    table = run("fetch", "--list").stdout
    assert "Apache-2.0" in table and "98 MB" in table
    assert all(f" {name} " in table for name in ("llama3-tokenizer", "whisper-tiny", "vit-s"))  # in 80 columns


def test_check_prints_a_table_and_a_score(tmp_path):
    name = tmp_path / "n.ipynb"
    stub = "# exercise: 04.1\ndef mine(*_):\n    raise NotImplementedError"
    call = 'from llamamm.course.checks import check\ncheck("04.1", mine)'
    cells = [{"cell_type": "code", "source": source} for source in (stub, call)]
    name.write_text(json.dumps({"cells": cells}))
    result = run("check", name)
    assert result.exit_code == 1
    assert "04.1" in result.stdout and "not yet" in result.stdout and "0 of 6 passed" in result.stdout
    assert "04.2, 04.3, 04.4, 04.5 and 04.6 are missing" in " ".join(result.stdout.split())


def test_bench_prints_both_sides(tiny_dir):
    result = run("bench", "--model", tiny_dir, "--dtype", "float32", "--prompt-tokens", 8, "--new-tokens", 6,
                 "--prefill-tokens", 32, "--repeats", 1, "--against", "transformers")  # fmt: skip
    assert result.exit_code == 0, result.exception
    text = result.stdout
    for words in ("load, seconds", "peak memory", "read 32 tokens", "decode 6 after 8", "ratio", "GB/s",
                  "greedy tokens after 8: 6 of 6 identical", "greedy tokens after 32: 6 of 6 identical"):  # fmt: skip
        assert words in text, text


@pytest.mark.parametrize("arguments", [
    ("generate", "--image", "https://a.b/c.png", "hi"), ("generate", "--adapter", "hf://a/b", "hi"),
    ("generate", "--audio", "s3://a/b", "hi"), ("doctor", "https://a.b/c"), ("merge", "https://a/b", "c"),
    ("train", "https://a.b/c.yaml"),
])  # fmt: skip
def test_an_address_where_a_file_is_meant_is_refused_whole(main, arguments):
    code, _, err = main(*arguments)
    address = next(a for a in arguments if "://" in a)
    assert code == 2 and f"{address} is an address" in err


def test_each_path_of_the_commands_is_read_so():
    import inspect
    import typing

    from llamamm.cli.options import path

    seen = 0
    for command in app.registered_commands:
        hints = typing.get_type_hints(command.callback, include_extras=True)
        for name in inspect.signature(command.callback).parameters:
            kind, *option = typing.get_args(hints[name]) or (hints[name],)
            if "Path" in str(kind):
                assert option[0].parser is path, (command.callback, name)
                seen += 1
    assert seen > 8
