"""What a machine can see of a lesson's form.

    python -m llamamm.course.build.lint                   fail where a lesson breaks a rule that not_yet.py lacks
    python -m llamamm.course.build.lint NOTEBOOK ...      all that these lessons break, and how much code they show
    python -m llamamm.course.build.lint --table           the lines of not_yet.py as they would be now

A rule takes a lesson and gives what is wrong with it, a sentence each.
"""

from __future__ import annotations

import base64
import re
import struct
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from llamamm.course.build import sync
from llamamm.course.build.lessons import opening_line
from llamamm.course.build.not_yet import NOT_YET
from llamamm.course.build.workbooks import REAL_MODEL, exercises_in
from llamamm.course.checks import find_exercise
from llamamm.course.checks.sheet import MARK, split_check

MAP = ("tokenizer → norm, feed-forward → attention → rope → kv cache → llama → real weights → generation → lora → "
       "training → vision → audio → fusion → multimodal → llama 3.2 vision → stages → evaluation → safety → "
       "faster")  # fmt: skip
CELL_LINES, LESSON_LINES, PARAGRAPH_WORDS, BYTES = 25, 200, 90, 400_000
NEVER = {  # what no lesson says -> what it says instead
    r"\bcommonest\b": "most common",
    r"\bin place of\b": "instead of",
    r"(?<!idea )(?<!reason )(?<!story )\bbehind\b": "after",
    r"\b(?:is|are|was|were|be|becomes?|gives?|has|have) another[.,;:)]|\banother than\b|\b(?:of|in) another "
    r"(?:kind|form|size|type|dtype|length|shape|order|way|place)\b": "different",
    r"\b(?:What|Why|How|Which) [^.?!:;]{2,70} (?:is|are|does|do|means?|has) (?:you|we) (?:know|have|saw)\b":
        "the verb before its object: 'You already know ...'",
    r"\bWho (?:never|does not|doesn't)\b[^.?!]*\b(?:can't|cannot)\b": "a subject that one can name",
    r"\b[Ii]t is (?:the|this|these|those|not the|not only|only|just) [^.?!,;:]{1,60} that\b": "the plain sentence",
}  # fmt: skip
PICTURE = re.compile(r'<img [^>]*width="(\d+)" src="data:image/png;base64,([^"]*)"')  # as course.plots shows it
PLUMBING = r"# *noqa|# *fmt:|NBVAL_|\bretr(?:y|ies)\b|time\.sleep|filterwarnings|set_verbosity|os\.environ"


@dataclass
class Lesson:
    """A master notebook."""

    path: Path
    notebook: NotebookNode

    @property
    def number(self) -> str:
        return self.path.stem[:2]

    @property
    def first(self) -> str:
        """The text of its first cell."""
        return self.notebook.cells[0].source

    @property
    def code(self) -> list[NotebookNode]:
        return [cell for cell in self.notebook.cells if cell.cell_type == "code"]

    @property
    def text(self) -> str:
        """All its text, one cell after another."""
        return "\n\n".join(cell.source for cell in self.notebook.cells if cell.cell_type == "markdown")

    def section(self, heading: str) -> str:
        """What stands between a heading and the next one of its level or above."""
        level = len(heading) - len(heading.lstrip("#"))
        found = re.search(rf"^{re.escape(heading)}[^\n]*\n(.*?)(?=^#{{1,{level}}} |\Z)", self.text, re.M | re.S)
        return found[1] if found else ""

    @property
    def pictures(self) -> Iterator[tuple[int, int, int]]:
        """Of each picture among the outputs: the place of its cell, its pixels, how wide it is shown."""
        for i, cell in enumerate(self.notebook.cells):
            for output in cell.get("outputs", ()):
                data = output.get("data", {})
                found = PICTURE.search(data.get("text/html", ""))
                if png := data.get("image/png") or (found and found[2]):
                    pixels = png_width(png)
                    yield i, pixels, int(found[1]) if found else pixels

    def lines(self) -> tuple[int, int]:
        """Lines of code on view: the lesson's own, and those quoted from the package."""
        own = quoted = 0
        for cell in self.code[1:]:
            if cell.source.startswith(sync.MARK):
                quoted += code_lines(cell.source)
            else:
                own += code_lines(cell.source)
        return own, quoted


def read_lesson(path: Path) -> Lesson:
    """Raises what nbformat raises for what is no notebook."""
    return Lesson(path, nbformat.read(path, as_version=4))


def code_lines(source: str) -> int:
    """The lines of a cell that a reader reads: without blank ones, marks, checks and runs in the real model."""
    if REAL_MODEL.search(source):
        return 0
    code = split_check(source)[0]
    marks = (MARK.strip(), sync.MARK.strip(), "### BEGIN", "### END", "# NBVAL")
    return sum(bool(line.strip()) and not line.strip().startswith(marks) for line in code.splitlines())


def opening(lesson: Lesson) -> Iterator[str]:
    """Badge, title, what one will be able to do, what to know before: in this order."""
    name = lesson.path.name
    if not lesson.first.startswith(opening_line(name) + "\n"):
        yield f"the first line is not {opening_line(name)}"
    parts = [rf"^# {lesson.number} · \S.*$", r"^\*\*You will be able to\*\*\n\n- ", r"^\*\*Time\*\*: ",
             r"^\*\*Before this\*\*: ", r"^\*\*Where it sits\*\*: "]  # fmt: skip
    places = [m.start() if (m := re.search(part, lesson.first, re.M)) else -1 for part in parts]
    for part, place in zip(parts, places, strict=True):
        if place < 0:
            yield f"the first cell has nothing like {part!r}"
    if places != sorted(places):
        yield "the first cell's parts stand in a different order"


def hook(lesson: Lesson) -> Iterator[str]:
    """A paragraph between the title and what one will be able to do."""
    between = re.search(r"^# [^\n]*\n(.*?)^\*\*You will be able to", lesson.first, re.M | re.S)
    if not between or len(between[1].split()) < 10:
        yield "no paragraph below the title makes one want to read on"


def time(lesson: Lesson) -> Iterator[str]:
    """Minutes of study, and minutes to run."""
    if not re.search(r"^\*\*Time\*\*: \d+ minutes of study, about \d+ minutes? on a 2-core CPU\b", lesson.first, re.M):
        yield "the line is not '**Time**: N minutes of study, about M minutes on a 2-core CPU.'"


def course_map(lesson: Lesson) -> Iterator[str]:
    """The map of the course, with this lesson in bold."""
    found = re.search(r"^\*\*Where it sits\*\*: (.*)$", lesson.first, re.M)
    stops = (found[1] if found else "").removesuffix(".").split(" → ")
    if [s.strip("*") for s in stops if s.strip("*") != "welcome"] != MAP.split(" → "):
        yield f"the map is not {MAP}"
    bold = [s.strip("*") for s in stops if s.startswith("**")]
    if bold != ["welcome", *MAP.split(" → ")][int(lesson.number)].split("\n"):
        yield f"on the map {bold or 'nothing'} is bold"


def exercise_lines(lesson: Lesson) -> Iterator[str]:
    """Below an exercise's heading: difficulty, importance and minutes, as the check has them."""
    for number, part in enumerate(exercises_in(lesson.notebook), start=1):
        heading, _, rest = part.text.partition("\n")
        if not re.fullmatch(rf"### Exercise {number} · [^(]+", heading):
            yield f"{part.id}: the heading is not '### Exercise {number} · Title'"
        expected = exercise_line(part.id)
        if rest.lstrip("\n").partition("\n")[0] != expected:
            yield f"{part.id}: the line below the heading is not '{expected}'"


def exercise_line(exercise_id: str) -> str:
    """Such as "Difficulty ●●○ · importance ●●● · 10 minutes"."""
    exercise = find_exercise(exercise_id)
    difficulty, importance = ("●" * n + "○" * (3 - n) for n in (exercise.difficulty, exercise.importance))
    return f"Difficulty {difficulty} · importance {importance} · {exercise.minutes} minutes"


def open_task(lesson: Lesson) -> Iterator[str]:
    """One task to predict, change, measure and explain, with a model answer, folded."""
    count = len(re.findall(r"^### Open task · ", lesson.text, re.M))
    if count != 1:
        yield f"{count} headings '### Open task · Title'"
        return
    task = lesson.section("### Open task · ")
    if lacking := [w for w in ("predict", "change", "measure", "explain") if not re.search(rf"(?i)\b{w}", task)]:
        yield f"the open task does not say to {', '.join(lacking)}"
    if "<details>" not in task:
        yield "the open task has no model answer in <details>"


def real_model(lesson: Lesson) -> Iterator[str]:
    """After each core exercise, a cell that runs the real model with it."""
    for part in exercises_in(lesson.notebook):
        if find_exercise(part.id).level == "core" and f'in_real_model("{part.id}"' not in part.real:
            yield f'{part.id} is not followed by a cell with in_real_model("{part.id}", ...)'


def papers(lesson: Lesson) -> Iterator[str]:
    """Three to five papers, each a linked line."""
    items = re.findall(r"^(?:-|\d\.) (.*(?:\n  .*)*)", lesson.section("## Papers"), re.M)
    if not 3 <= len(items) <= 5:
        yield f"{len(items)} papers"
    for item in items:
        if not re.search(r"\]\(https?://", item):
            yield f"no link: {item[:60]}"


def close(lesson: Lesson) -> Iterator[str]:
    """The last sections, in their order."""
    wanted = ["Recap", "Questions", "Papers", "What moved into the package"]
    found = [h for h in re.findall(r"^## (.*)$", lesson.text, re.M) if h in wanted]
    if found != wanted:
        yield f"the last sections are {', '.join(found)}"


def cell_lines(lesson: Lesson) -> Iterator[str]:
    """Short cells, quoted ones too."""
    for cell in lesson.code[1:]:
        if (n := code_lines(cell.source)) > CELL_LINES:
            yield f"{n} lines in the cell {cell.id}, {cell.source.splitlines()[0][:50]!r}"


def lesson_lines(lesson: Lesson) -> Iterator[str]:
    """Little code of its own. What is quoted does not count."""
    if (own := lesson.lines()[0]) > LESSON_LINES:
        yield f"{own} lines of its own code"


def paragraphs_of(text: str) -> Iterator[str]:
    """The paragraphs and list items of a text in Markdown, without code, tables, headings and tags."""
    text = re.sub(r"^```.*?^```|<[^>]+>", "\n\n", text, flags=re.M | re.S)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*>]|\d+\.) )", text):
        if block.strip() and not block.lstrip().startswith(("#", "|", "$$")):
            yield " ".join(block.split())


def paragraphs(lesson: Lesson) -> Iterator[str]:
    """No paragraph too long to say at once."""
    for paragraph in paragraphs_of(lesson.text):
        if (n := len(re.findall(r"\w[\w'’.,-]*", paragraph))) > PARAGRAPH_WORDS:
            yield f"{n} words: {paragraph[:60]}..."


def words(lesson: Lesson) -> Iterator[str]:
    """Plain English."""
    for paragraph in paragraphs_of(lesson.text):
        for pattern, instead in NEVER.items():
            for found in re.finditer(pattern, re.sub(r"`[^`]*`|\"[^\"]*\"", "", paragraph)):
                yield f"{found[0]!r}, say {instead}: ...{paragraph[max(0, found.start() - 20) :][:80]}"


def pictures(lesson: Lesson) -> Iterator[str]:
    """Drawn by `course.figures`, wide enough for 150 dpi, followed by a caption in italics."""
    for cell in lesson.code:
        if found := re.search(r"\bmatplotlib\b|\bplt\.|\.savefig\(", cell.source):
            yield f"{found[0]} in the cell {cell.id}"
    for i, pixels, width in lesson.pictures:
        cell = lesson.notebook.cells[i]
        if "figures." not in cell.source:
            yield f"the picture of the cell {cell.id} is drawn without course.figures"
        if pixels < 1.45 * width:
            yield f"the picture of the cell {cell.id} has {pixels} pixels where {width} are shown"


def captions(lesson: Lesson) -> Iterator[str]:
    """Below a picture a line in italics."""
    cells = lesson.notebook.cells
    for i in sorted({i for i, *_ in lesson.pictures}):
        after = cells[i + 1].source if i + 1 < len(cells) and cells[i + 1].cell_type == "markdown" else ""
        if not re.match(r"(\*|_)(?!\*)\S.*?\S\1(?:\n\s*\n|\Z)", after, re.S):
            yield f"the text after the cell {cells[i].id} does not begin with a caption in italics"


def plumbing(lesson: Lesson) -> Iterator[str]:
    """Nothing on view that is there for machines."""
    for cell in lesson.code[1:]:
        for found in dict.fromkeys(re.findall(PLUMBING, cell.source)):
            yield f"{found} in the cell {cell.id}"


def size(lesson: Lesson) -> Iterator[str]:
    """Neither too short nor too long; runs in the real model, one line each, do not count."""
    if not 25 <= (n := sum(not REAL_MODEL.search(cell.source) for cell in lesson.notebook.cells)) <= 45:
        yield f"{n} cells"
    if (n := lesson.path.stat().st_size) > BYTES:
        yield f"{n} bytes"


def png_width(data: str) -> int:
    """The width in pixels of a PNG file in base64."""
    return struct.unpack(">I", base64.b64decode(data)[16:20])[0]


RULES: dict[str, Callable[[Lesson], Iterator[str]]] = {
    rule.__name__.replace("_", " "): rule
    for rule in (opening, hook, time, course_map, exercise_lines, open_task, real_model, papers, close, cell_lines,
                 lesson_lines, paragraphs, words, pictures, captions, plumbing, size)
}  # fmt: skip


def problems(lesson: Lesson) -> dict[str, list[str]]:
    """What is wrong with a lesson, for each rule that it breaks."""
    found = {name: list(rule(lesson)) for name, rule in RULES.items()}
    return {name: said for name, said in found.items() if said}


def main(arguments: list[str]) -> int:
    """See the module's docstring."""
    named = [Path(a) for a in arguments if a != "--table"]
    failed = 0
    for path in named or sorted(Path("notebooks").glob("*.ipynb")):
        lesson = read_lesson(path)
        found = problems(lesson)
        if arguments == ["--table"]:
            line = f'"{path.stem}": "{", ".join(found)}",'
            print(*textwrap.wrap(line, 115, initial_indent="    "), sep='"\n    " ') if found else None
            continue
        listed = () if named else NOT_YET.get(path.stem, "").split(", ")
        if named:
            own, quoted = lesson.lines()
            print(f"{path.stem}: {own} lines of its own code on view, and {quoted} quoted")
        for rule, said in found.items():
            if rule not in listed:
                failed = 1
                print(*(f"{path.stem}: {rule}: {text}" for text in said), sep="\n")
        for rule in sorted(set(listed) - {*found, ""}):
            failed = 1
            print(f"{path.stem}: {rule}: no longer broken, so not_yet.py must not list it")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
