"""course.build.lint: each rule notices what it is there for, and each lesson breaks just what the list says."""

import base64
import struct
from pathlib import Path

import nbformat
import pytest

from llamamm.course.build import lint
from llamamm.course.build.lessons import opening_line
from llamamm.course.build.lint import NOT_YET, RULES, Lesson, main, paragraphs_of, problems, read_lesson
from llamamm.course.checks import exercises_of

ROOT = Path(__file__).parents[3]
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAME = "04_rope.ipynb"
MAP = lint.MAP.replace("rope", "**rope**")


def png(width):
    return base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, 9)).decode()


def code(source, *, width=None, shown=700):
    cell = nbformat.v4.new_code_cell(source)
    if width:
        html = f'<img alt="a line" width="{shown}" src="data:image/png;base64,{png(width)}">'
        cell.outputs = [nbformat.v4.new_output("display_data", data={"text/html": html})]
    return cell


def text(source):
    return nbformat.v4.new_markdown_cell(source)


def exercise(number):
    found = exercises_of("04")[number - 1]
    yield text(f"### Exercise {number} · Turn\n{lint.exercise_line(found.id)}\n\nWrite it.")
    yield code(
        f'# exercise: {found.id}\ndef {found.name}(x):\n    """It."""\n    ### BEGIN SOLUTION\n    return x\n'
        f'    ### END SOLUTION\n\n\nfrom llamamm.course.checks import check\n\ncheck("{found.id}", {found.name})'
    )
    if found.level == "core":
        yield code(f'from llamamm.course.swaps import in_real_model\n\nin_real_model("{found.id}", {found.name})')


OPENING = f"""{opening_line(NAME)}

# 04 · RoPE

Turn it by one place too far, and the real model writes nothing but commas.

**You will be able to**

- turn pairs;

**Time**: 60 minutes of study, about 1 minute on a 2-core CPU.

**Before this**: lesson 03.

**Where it sits**: {MAP}"""
TASK = "### Open task · Slower\n\n*Predict* it, change it, measure, explain.\n\n<details>\n\nSo it is.\n\n</details>"
PAPERS = "\n".join(f"- [Paper {n}](https://arxiv.org/abs/{n}): a line on it." for n in range(3))


def good():
    """The cells of a lesson that breaks no rule."""
    cells = [text(OPENING), code("from llamamm.course.env import setup\n\nenv = setup()")]
    for number in range(1, 6):
        cells += exercise(number)
    cells += [code("figures.angles(x)", width=1050), text("*Two arrows, and the angle between them.*\n\nMore.")]
    cells += [code(f"x = {n}") for n in range(8)]
    cells += [text(TASK), text(f"## Recap\n\nAll.\n\n## Questions\n\n1. Why?\n\n## Papers\n\n{PAPERS}\n"),
              text("## What moved into the package\n\n| a | b |\n|---|---|\n")]  # fmt: skip
    return cells


def lesson(tmp_path, cells):
    path = tmp_path / NAME
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return read_lesson(path)


def test_a_good_lesson_breaks_no_rule(tmp_path):
    assert problems(lesson(tmp_path, good())) == {}


def change(old, new, *, cell=0):
    def changed(cells):
        assert old in cells[cell].source
        cells[cell].source = cells[cell].source.replace(old, new)

    return changed


def add(*cells):
    return lambda given: given.extend(cells)


def drop(source):
    return lambda cells: cells.remove(next(c for c in cells if source in c.source))


@pytest.mark.parametrize(
    ("rule", "broken", "said"),
    [
        ("opening", change("workbooks/", ""), "first line"),
        ("opening", change("# 04 · ", "# 03 · "), "nothing like"),
        ("opening", change("- turn", "turn"), "nothing like"),
        ("opening", lambda c: change("**Before this**: lesson 03.\n\n", "")(c) or change(
            "**Time**", "**Before this**: 03.\n\n**Time**")(c), "different order"),
        ("hook", change("Turn it by one place too far, and the real model writes nothing but commas.", ""), "no parag"),
        ("time", change("60 minutes of study, ", ""), "minutes of study"),
        ("course map", change(" → llama 3.2 vision", ""), "the map is not"),
        ("course map", change("**rope**", "rope"), "nothing is bold"),
        ("course map", change(MAP, lint.MAP.replace("kv cache", "**kv cache**")), "kv cache"),
        ("exercise lines", change("●○○", "●●○", cell=2), "04.1"),
        ("exercise lines", change("minutes", "min", cell=2), "04.1"),
        ("exercise lines", change("Turn", "Turn (warm-up)", cell=2), "heading"),
        ("open task", drop("Open task"), "0 headings"),
        ("open task", add(text(TASK)), "2 headings"),
        ("open task", change("measure", "look", cell=-3), "measure"),
        ("open task", change("<details>", "", cell=-3), "model answer"),
        ("real model", drop('in_real_model("04.2"'), "04.2"),
        ("papers", change(PAPERS.splitlines()[0], "", cell=-2), "2 papers"),
        ("papers", change("https://arxiv.org/abs/1", "x", cell=-2), "no link"),
        ("close", change("## Recap", "## Summary", cell=-2), "Questions, Papers"),
        ("cell lines", add(code("\n".join(f"x{n} = {n}" for n in range(26)))), "26 lines"),
        ("cell lines", add(code("# package: llamamm.text.rope\n" + "\n".join(f"x{n} = {n}" for n in range(26)))), "26"),
        ("lesson lines", add(*(code("\n".join(f"x{n} = {n}" for n in range(25))) for _ in range(8))), "lines of its"),
        ("paragraphs", add(text("word " * 91)), "91 words"),
        ("words", add(text("It is the commonest.")), "most common"),
        ("words", add(text("The matrix behind it.")), "after"),
        ("words", add(text("Two in place\nof three.")), "instead of"),
        ("words", add(text("The score is another.")), "different"),
        ("words", add(text("They are summed in another order.")), "different"),
        ("words", add(text("What a norm is you know.")), "the verb before"),
        ("words", add(text("Who never looked can't say.")), "a subject"),
        ("words", add(text("It is the first token that matters.")), "the plain sentence"),
        ("pictures", add(code("import matplotlib.pyplot as p")), "matplotlib"),
        ("pictures", add(code("plt.plot(x)")), "plt."),
        ("pictures", add(code("x", width=1050), text("*Caption.*")), "without course.figures"),
        ("pictures", add(code("figures.a(x)", width=700), text("*Caption.*")), "700 pixels where 700"),
        ("captions", add(code("figures.a(x)", width=1050), text("No caption.")), "caption"),
        ("captions", add(code("figures.a(x)", width=1050), text("**Bold** is none.")), "caption"),
        ("captions", add(code("figures.a(x)", width=1050)), "caption"),
        ("plumbing", add(code("# NBVAL_CHECK_OUTPUT\nx = 1")), "NBVAL_"),
        ("plumbing", add(code("x = 1  # noqa: E501")), "noqa"),
        ("plumbing", add(code("for x in retries(3):\n    pass")), "retries"),
        ("size", add(*(text(str(n)) for n in range(30))), "cells"),
        ("size", lambda cells: cells.__delitem__(slice(17, 20)), "cells"),
        ("size", add(code("figures.a(x)", width=1050), text("*C.* " + "x" * 400_000)), "bytes"),
    ],
)  # fmt: skip
def test_what_breaks_a_rule_is_noticed_and_told(tmp_path, rule, broken, said):
    cells = good()
    broken(cells)
    found = problems(lesson(tmp_path, cells))
    assert rule in found and said in "\n".join(found[rule]), found


def test_what_is_allowed(tmp_path):
    cells = good()
    cells[0].source = cells[0].source.replace("CPU.", "CPU. Downloads come on top.")
    cells += [
        text("It is not shown that all units do so."),
        text("Here is another exercise. The idea behind it is old. `in place of` and \"the commonest\" are quotes."),
        text("1. " + "word " * 80 + "\n2. " + "word " * 80 + "\n\n```python\n" + "word " * 99 + "\n```"),
        text("| " + "word " * 99 + "|"),
    ]  # fmt: skip
    assert problems(lesson(tmp_path, cells)) == {}


def test_lines_on_view_are_counted_without_marks_checks_and_blank_lines(tmp_path):
    cells = good()
    assert lesson(tmp_path, cells).lines() == (5 * 3 + 1 + 8, 0)  # def, docstring, return; one picture; x = 0 to 7
    cells.append(code("# package: llamamm.text.rope\nx = 1\n\ny = 2"))
    assert lesson(tmp_path, cells).lines() == (24, 2)


def test_paragraphs_are_what_is_read_at_once():
    found = list(paragraphs_of("# A\n\none\ntwo\n- three\n  four\n- five\n\n| t |\n\n<b>six</b>\n\n> seven"))
    assert found == ["one two", "- three four", "- five", "six", "> seven"]


# ---- the real lessons ----


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_lesson_breaks_just_the_rules_that_the_list_names(path):
    """A rule that a lesson keeps leaves the list; none is added."""
    assert ", ".join(problems(read_lesson(path))) == NOT_YET.get(path.stem, "")


def test_the_list_names_lessons_and_rules_that_there_are():
    assert set(NOT_YET) <= {path.stem for path in LESSONS}
    assert {rule for rules in NOT_YET.values() for rule in rules.split(", ")} <= set(RULES)


def test_the_command_names_what_is_broken_and_what_no_longer_is(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    cells = good()
    assert isinstance(lesson(folder, cells), Lesson)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lint, "NOT_YET", {})
    assert main([]) == 0 and capsys.readouterr().out == ""
    monkeypatch.setattr(lint, "NOT_YET", {"04_rope": "hook"})
    assert main([]) == 1 and "hook: no longer broken" in capsys.readouterr().out
    lesson(folder, [*cells, text("commonest"), code("plt.x")])
    assert main([]) == 1
    out = capsys.readouterr().out
    assert "04_rope: words: 'commonest', say most common" in out and "04_rope: pictures: plt. in the cell" in out
    assert main([str(folder / NAME)]) == 1 and "lines of its own code on view" in capsys.readouterr().out
    assert main(["--table"]) == 0 and capsys.readouterr().out == '    "04_rope": "words, pictures",\n'
