"""generation.session: history, the cache kept between turns, interruption."""

import PIL.Image
import pytest
import torch

from llamamm import Llama3Model, TextConfig, TextStream, Tokenizer, chat_format
from llamamm.errors import ContextOverflowError, InputError
from llamamm.generation.guarded import Refusal
from llamamm.generation.prompts import Image, Sound
from llamamm.generation.session import ChatSession
from llamamm.multimodal.model import MultimodalLlama
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.senses.image_processor import ImageProcessor
from tests.generation.test_guarded import UNSAFE, Scripted, unsafe_from
from tests.multimodal.test_model import MODES, build

RED, BLUE = (PIL.Image.new("RGB", (32, 32), colour) for colour in ((255, 0, 0), (0, 0, 255)))


@pytest.fixture(scope="module")
def parts(smollm2_dir):
    torch.manual_seed(0)
    return Llama3Model(TextConfig.tiny(vocab_size=49_152)).eval(), Tokenizer(smollm2_dir)


@pytest.fixture(scope="module", params=MODES.values(), ids=MODES)
def sighted(request, smollm2_dir):
    """A model that sees and hears, features spliced or attended to, and its processor."""
    model = build({"text": TextConfig.tiny(vocab_size=49_152), **request.param})
    processor = MultimodalProcessor(model.multimodal_cfg, Tokenizer(smollm2_dir), ImageProcessor.vit(32))
    return model, processor


@pytest.fixture
def read(monkeypatch):
    """The number of tokens of each reading, and "eye" or "ear" before it where a tower was at work."""
    steps = []
    run_blocks, perceive = Llama3Model.run_blocks, MultimodalLlama.perceive

    def seen(self, media):
        steps.extend(["eye"] * (media.pixels is not None) + ["ear"] * (media.mel is not None))
        return perceive(self, media)

    monkeypatch.setattr(
        Llama3Model, "run_blocks", lambda self, x, **k: steps.append(x.shape[1]) or run_blocks(self, x, **k)
    )
    monkeypatch.setattr(MultimodalLlama, "perceive", seen)
    return steps


def fresh_answer(parts, messages, n):
    model, tokenizer = parts
    return "".join(TextStream(model, tokenizer, chat_format(tokenizer).encode(messages), max_new_tokens=n))


def test_each_turn_equals_reading_everything_anew(parts):
    session = ChatSession(*parts, max_new_tokens=8)
    for text in ("Hello there", "And then?", "Why?"):
        expected = fresh_answer(parts, [*session.messages, {"role": "user", "content": text}], 8)
        assert "".join(session.reply(text)) == expected
    assert [m["role"] for m in session.messages] == ["user", "assistant"] * 3


def test_only_what_is_new_is_read(parts, read):
    session = ChatSession(*parts, max_new_tokens=4)
    list(session.reply("A first message, which is long enough to be seen in the count of tokens"))
    first = read[0]
    read.clear()
    list(session.reply("Hm"))
    assert read[0] < first


def test_an_answer_broken_off_is_kept_as_far_as_it_came(parts):
    session = ChatSession(*parts, max_new_tokens=50)
    reply = session.reply("Tell me everything")
    said = next(reply) + next(reply)
    reply.close()
    assert session.messages[-1] == {"role": "assistant", "content": said}
    expected = fresh_answer(parts, [*session.messages, {"role": "user", "content": "Go on"}], 50)
    assert "".join(session.reply("Go on")) == expected


def test_system_message_and_reset(parts):
    session = ChatSession(*parts, system="Be brief.", max_new_tokens=4)
    assert session.messages == [{"role": "system", "content": "Be brief."}]
    list(session.reply("Hi"))
    session.reset()
    assert session.messages == []
    assert "".join(session.reply("Hi")) == fresh_answer(parts, [{"role": "user", "content": "Hi"}], 4)


def test_a_conversation_that_outgrows_the_context_is_refused_and_unchanged(parts):
    session = ChatSession(*parts, context_size=64, max_new_tokens=4)
    list(session.reply("Hi"))
    before = list(session.messages)
    with pytest.raises(ContextOverflowError, match=r"tokens, the context 64.*reset"):
        list(session.reply("word " * 100))
    assert session.messages == before
    assert "".join(session.reply("Go on")) == fresh_answer(parts, [*before, {"role": "user", "content": "Go on"}], 4)


# ---- images and sounds ----


def ask(session, text, media=()):
    """The answer, which must be that of a new session with the same messages."""
    fresh = ChatSession(session.model, session.processor, max_new_tokens=session.max_new_tokens, context_size=256)
    fresh.messages = list(session.messages)
    answer = "".join(session.reply(text, media=media))
    assert answer == "".join(fresh.reply(text, media=media))
    return answer


def conversation(sighted, **options):
    return ChatSession(*sighted, context_size=256, **{"max_new_tokens": 6, **options})


def test_another_question_about_the_same_picture_reads_only_what_is_new(sighted, read):
    session = conversation(sighted)
    picture = Image(RED)
    list(session.reply("What colour is this picture, and what else is there to be seen?", media=[picture]))
    n_first = len(sighted[1].chat(session.messages[:1]).ids)
    assert read[:2] == ["eye", n_first]
    read.clear()
    list(session.reply("And?"))
    n_all = len(sighted[1].chat(session.messages[:-1]).ids)
    assert "eye" not in read and read[0] <= n_all - n_first


def test_each_turn_about_media_equals_reading_everything_anew(sighted):
    session = conversation(sighted)
    sound = Sound(0.5 * torch.sin(torch.arange(4000) * 0.1))
    answers = [ask(session, "Look.", [Image(RED)]), ask(session, "And?"), ask(session, "Hm?"),
               ask(session, "Listen.", [sound]), ask(session, "So?")]  # fmt: skip
    other = conversation(sighted)
    assert answers[0] != "".join(other.reply("Look.", media=[Image(BLUE)]))  # what is seen decides what is said


def test_with_a_new_picture_all_are_read_again(sighted, read):
    session = conversation(sighted)
    list(session.reply("Look.", media=[Image(RED)]))
    read.clear()
    list(session.reply("And this?", media=[Image(BLUE)]))
    prompt = sighted[1].chat(session.messages[:-1])
    assert read[:2] == ["eye", len(prompt.ids)] and len(prompt.media) == 2
    session.messages[0]["content"][0] = Image(BLUE)  # as many pictures, the same words: another picture all the same
    ask(session, "Hm?")
    assert "eye" in read[2:]


@pytest.mark.parametrize("system", ["Be brief.", None])
def test_the_same_picture_after_a_reset(sighted, read, system):
    """Also where the new conversation begins as the old one does: nothing of its picture is left out or stale."""
    session, picture = conversation(sighted, system="Answer at length."), Image(RED)
    list(session.reply("Look.", media=[picture]))
    list(session.reply("And?"))
    session.reset(system=system)
    read.clear()
    ask(session, "Look.", [picture])
    assert read[:2] == ["eye", len(sighted[1].chat(session.messages[:-1]).ids)]
    session.reset(system=system)
    ask(session, "Look.", [picture])
    session.reset(system=system)
    ask(session, "Look.")  # and without: no picture is left in the cache


def test_an_answer_about_a_picture_broken_off(sighted):
    session = conversation(sighted, max_new_tokens=30)
    reply = session.reply("Look.", media=[Image(RED)])
    said = next(reply)
    reply.close()
    assert session.messages[-1] == {"role": "assistant", "content": said}
    ask(session, "Go on")


def test_media_that_cannot_be_read_leave_the_conversation_as_it_was(sighted, parts, tmp_path):
    for session, media, message in (
        (ChatSession(*parts, max_new_tokens=4), Image(RED), "reads text alone.*an image"),
        (ChatSession(*parts, max_new_tokens=4), Sound(torch.zeros(100)), "reads text alone.*a sound"),
        (conversation(sighted), Image(tmp_path / "none.png"), "none.png"),
    ):
        list(session.reply("Hi"))
        before = list(session.messages)
        with pytest.raises(InputError, match=message):
            list(session.reply("Look.", media=[media]))
        assert session.messages == before
        list(session.reply("Go on"))
        assert [m["role"] for m in session.messages] == ["user", "assistant"] * 2


# ---- a guard ----


def unless(word):
    """A judge to whom a conversation is unsafe that holds the word."""
    return Scripted(lambda conversation, _k: UNSAFE if word in str(conversation) else Scripted().judge(conversation))


def test_a_guard_that_finds_nothing_changes_nothing(parts, read):
    alone, guarded = ChatSession(*parts, max_new_tokens=20), ChatSession(*parts, max_new_tokens=20, guard=Scripted())
    for text in ("Hello there", "And then?"):
        expected = "".join(alone.reply(text))
        n_read = read.copy()
        read.clear()
        assert "".join(guarded.reply(text)) == expected and guarded.refusal is None
        assert (read, guarded.messages, guarded.stop_reason) == (n_read, alone.messages, alone.stop_reason)
        read.clear()


def test_a_name_is_no_guard(parts):
    with pytest.raises(InputError, match="'own' has none: give one, such as load_guard"):
        ChatSession(*parts, guard="own")


def test_a_refused_message_is_not_kept_and_the_model_reads_nothing(parts, read):
    session = ChatSession(*parts, max_new_tokens=8, guard=unless("bad"))
    list(session.reply("A first message"))
    before = list(session.messages)
    read.clear()
    assert list(session.reply("a bad one")) == [] and read == []
    assert session.refusal == Refusal("prompt", 0.97, ("S2",)) and session.stop_reason is None
    assert session.messages == before
    answer = "".join(session.reply("Go on"))
    new = [*before, {"role": "user", "content": "Go on"}]
    assert read[0] < len(chat_format(parts[1]).encode(new)) - 20  # the cache was left as it was
    assert answer == fresh_answer(parts, new, 8) and session.refusal is None


def test_a_refused_answer_is_shown_so_far_and_not_kept(parts):
    session = ChatSession(*parts, max_new_tokens=50, guard=unsafe_from(2))
    shown = "".join(session.reply("Tell me everything"))
    whole = fresh_answer(parts, [{"role": "user", "content": "Tell me everything"}], 50)
    assert shown and whole.startswith(shown) and shown != whole
    assert session.refusal == Refusal("answer", 0.97, ("S2",)) and session.messages == []
    session.guard = Scripted()
    assert "".join(session.reply("Hi")) == fresh_answer(parts, [{"role": "user", "content": "Hi"}], 50)
    assert session.refusal is None and len(session.messages) == 2


def test_a_guarded_answer_broken_off_is_kept_as_far_as_it_was_shown(parts):
    session = ChatSession(*parts, max_new_tokens=50, guard=Scripted())
    reply = session.reply("Tell me everything")
    said = next(reply)
    reply.close()
    assert session.messages[-1] == {"role": "assistant", "content": said} and session.refusal is None


def test_a_message_whose_judging_was_broken_off_is_not_kept(parts):
    session = ChatSession(*parts, max_new_tokens=4, guard=unsafe_from(0, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        list(session.reply("Hi"))
    assert session.messages == [] and session.refusal is None


def test_a_guard_judges_what_pictures_and_sounds_say_once_read(sighted):
    asked = []

    def transcribe(medium):
        asked.append(medium.source)
        return "a sign" if medium.source is RED else "a bad sign"

    session = conversation(sighted, guard=unless("bad"), transcribe=transcribe)
    said = "".join(session.reply("Look.", media=[Image(RED)]))
    assert said and session.refusal is None
    assert list(session.reply("And this?", media=[Image(BLUE)])) == [] and session.refusal.stage == "picture"
    assert len(session.messages) == 2
    session.guard = None  # the next answer is that of a conversation without what was refused
    ask(session, "And?")
    session.guard = Scripted()
    list(session.reply("Hm?"))
    assert len(asked) == 2 and asked[0] is RED and asked[1] is BLUE and session.refusal is None


def test_the_model_itself_says_what_a_picture_says(sighted, monkeypatch):
    seen = []
    session = conversation(sighted, guard=Scripted())
    monkeypatch.setattr(session.processor, "chat", lambda messages: seen.append(messages) or sighted[1].placed(
        messages, chat_format(sighted[1].tokenizer).encode))  # fmt: skip
    assert list(session.reply("Look.", media=[Image(RED)])) == []
    assert seen[1] == [{"role": "user", "content": [seen[0][0]["content"][0], "What text is in the picture?"]}]
    assert session.refusal.stage == "picture" and "has no end within" in session.refusal.error  # it babbles
