"""course.blanks: what counts as a blank, and what a cell would have defined. test_workbooks runs them in a kernel."""

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from llamamm.course.blanks import Blanks, install, names_made


@pytest.fixture
def shell():
    made = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    install(made)
    return made


def said(shell, source, capsys):
    shell.run_cell(source)
    return capsys.readouterr().out.strip()


def test_names_that_a_cell_makes():
    source = """
import a.b, c as d
from e import f, g as h
x, (y, *z) = 1, (2, 3)
for i in range(3):
    j: int = i
with open("k") as l:
    l.m = 1
def n():
    o = 1
class P:
    q = 2
if (r := 1) and [s for s in x] and (lambda t: t):
    u += 1
"""
    assert names_made(source) == {*"adfhxyzijlnPru"}
    assert names_made("not python at all") == names_made("\0") == set()


def test_a_blank_is_found_below_what_was_raised_from_it(shell):
    blanks = shell.llamamm_blanks
    blank = NotImplementedError("exercise 04.2")
    wrapped = ValueError("wrong")
    wrapped.__cause__ = blank
    during = KeyError("a")
    during.__context__ = wrapped
    hidden = KeyError("a")
    hidden.__context__, hidden.__suppress_context__ = blank, True
    line = "exercise 04.2 comes first: write rope_frequencies above, then run this cell again"
    assert [blanks.line(e) for e in (blank, wrapped, during)] == [line] * 3
    others = [hidden, None, NotImplementedError("exercise 4"), NotImplementedError(), ValueError("exercise 04.2")]
    assert [blanks.line(e) for e in others] == [None] * len(others)
    assert blanks.line(NotImplementedError("exercise 99.1")).startswith("exercise 99.1 comes first: write it above")


def test_names_that_are_missing_are_told_until_they_are_there(shell, capsys):
    assert "04.2 comes first" in said(shell, "made = 1 / 1\nraise NotImplementedError('exercise 04.2')", capsys)
    assert said(shell, "raise NotImplementedError('exercise 04.2')\nnever = 1", capsys).count("\n") == 0
    line = ("exercise 04.2 comes first: write rope_frequencies above, then run the cell that makes never, and this "
            "one, again")  # fmt: skip
    assert said(shell, "after = never + made", capsys) == line
    assert line.replace("never", "after") == said(shell, "print(after)", capsys)
    assert said(shell, "never = 2; after = 3", capsys) == ""
    assert said(shell, "del never; print(never)", capsys).count("\n") > 3  # a mistake of the learner's own


def test_a_name_missing_in_a_library_is_no_blank(shell, capsys, tmp_path, monkeypatch):
    (tmp_path / "library_of_test.py").write_text("def f():\n    return never\n")
    monkeypatch.syspath_prepend(tmp_path)
    said(shell, "raise NotImplementedError('exercise 04.2')\nnever = 1", capsys)
    out = said(shell, "import library_of_test\nlibrary_of_test.f()", capsys)
    assert "comes first" not in out and "Traceback" in out


def test_set_up_twice_is_set_up_once(shell, capsys):
    first, hook = shell.llamamm_blanks, shell.showtraceback
    install(shell)
    assert shell.llamamm_blanks is first and shell.showtraceback == hook
    assert isinstance(first, Blanks)
    assert said(shell, "raise NotImplementedError('exercise 04.2')", capsys).count("comes first") == 1
    shell.showtraceback((ValueError, ValueError("as always"), None))
    assert ": as always" in capsys.readouterr().out


def test_a_blank_lets_the_next_cell_run_but_not_where_nbgrader_gives_points(shell, capsys, monkeypatch):
    """Jupyter goes on after a cell whose result holds no error, and nbgrader takes such a cell for a right answer."""
    blank = "raise NotImplementedError('exercise 04.2')"
    assert shell.run_cell(blank).success
    for error in ("1 / 0", "raise NotImplementedError('another')", "raise NotImplementedError"):
        assert not shell.run_cell(error).success
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    assert not shell.run_cell(blank).success
    assert capsys.readouterr().out.count("exercise 04.2 comes first") == 2
