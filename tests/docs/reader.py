"""A reader of docs' pages who does what they say, and compares what is seen with what is shown.

docs/README.md tells the readers of the pages the same rules: what is run, and what may differ. To follow one page in an
empty folder, with the checkout on the PYTHONPATH: `python -m tests.docs.reader PAGE`.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline import cli

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What a detector of another machine may say in other words: ids, figures and times of the clock.
ID = re.compile(r"\b(?:\d+-[0-9a-f]{8}|[0-9a-f]{16}|[0-9a-f]{12})\b")
FIGURE = re.compile(
    r"-?\d+\.\d+(?:e-?\d+)?|\b\d+ ?%|\b\d+(?= s\b)|\b[\d,]+(?= anomalous)|\b\d+(?= (?:h|min)\b)|\b\d\d:\d\d\b"
)
ANY, ASK = "…", "echo $?"


class Reader:
    """Follows a page in `folder`, as one person at one terminal and in one notebook would.

    compared: how many outputs were found to be as shown
    """

    def __init__(self, folder: Path, page: Path) -> None:
        self.folder, self.page, self.compared = folder, page, 0
        self._namespace: dict[str, object] = {"__name__": page.stem}
        self._ids: dict[str, str] = {}  # an id as the page has it, and as it is here

    def follow(self) -> None:
        """Do all that the page says; raises AssertionError where something else is seen than it shows."""
        text, printed = self.page.read_text(encoding="utf-8"), ""
        for block in BLOCK.finditer(text):
            kind, body = block.groups()
            if kind == "console":
                self._commands(list(split_commands(body)))
            elif kind == "python":
                printed = run_python(body, self._namespace, self.page, text.count("\n", 0, block.start()) + 1)
            elif kind == "text":
                self._compare(printed, body, "the code above")
            elif kind == "yaml":
                write_yaml(self.folder, body)

    def _commands(self, commands: Sequence[tuple[str, str]]) -> None:
        """Run the commands of a block; one that fails must be followed by `echo $?`."""
        code = 0
        for (command, shown), (after, _) in zip(commands, [*commands[1:], ("", "")], strict=True):
            here = re.sub(ID, lambda found: self._ids.get(found[0], found[0]), command)
            code, printed = (0, str(code)) if command == ASK else run_command(here, self.folder)
            assert code == 0 or after == ASK, f"{self.page.name}: {command} ended with {code}\n{printed}"
            self._compare(printed, shown, command)

    def _compare(self, printed: str, shown: str, what: str) -> None:
        """Whether what is printed is what is shown, but for the words that `alike` lets differ."""
        assert alike(printed, shown), f"{self.page.name} shows of {what}\n{shown}\nbut here it is\n{printed}"
        self._ids |= dict(zip(ID.findall(shown), ID.findall(printed), strict=False))
        self.compared += bool(shown.strip())


def split_commands(body: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, lines that end in a backslash joined, each with the output shown below it."""
    for part in re.split(r"^\$ ", body.replace("\\\n", ""), flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield re.sub(r" {2,}", " ", command.split("   #")[0]).strip(), shown


def run_command(command: str, folder: Path) -> tuple[int, str]:
    """The exit code of a command and what it prints; of one that fails, with its complaint.

    `nightsift` runs in this process, which has imported TensorFlow already; everything else in a shell.
    """
    if command.startswith("export "):
        os.environ.update([command.removeprefix("export ").split("=", 1)])
        return 0, ""
    if not command.startswith("nightsift "):
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout + done.stderr
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(shlex.split(command)[1:])
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue() + (err.getvalue() if code else "")


def run_python(code: str, namespace: dict[str, object], page: Path, line: int) -> str:
    """What the code prints, run as line `line` of the page so that an error says where it stands."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile("\n" * line + code, str(page), "exec"), namespace)
    return out.getvalue()


def write_yaml(folder: Path, body: str) -> None:
    """Write the block to the file that its first line names, `# datasets/wells.yaml`, or `…, at the end` of it."""
    named = re.match(r"# ([\w./-]+\.yaml)(, at the end)?\n", body)
    if named:
        file = folder / named[1]
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a" if named[2] else "w", encoding="utf-8") as stream:
            stream.write(body[named.end() :])


def alike(printed: str, shown: str) -> bool:
    """Whether the same lines are printed as are shown: ids and figures may be others of their kind.

    `…` stands for anything in its line, and alone in a line for any lines.
    """
    lines = ["(?s:.*)" if line.strip() == ANY else "[^\n]*".join(re.escape(part) for part in words(line).split(ANY))
             for line in shown.strip().splitlines()]  # fmt: skip
    return re.fullmatch("\n".join(lines), "\n".join(words(line) for line in printed.strip().splitlines())) is not None


def words(line: str) -> str:
    """A line without colours, byte order mark and the widths of columns, ids as `ID` and figures as `FIGURE`."""
    plain = re.sub(r"\x1b\[[\d;]*m|\ufeff", "", line)
    return " ".join(FIGURE.sub("FIGURE", ID.sub("ID", plain)).split())


if __name__ == "__main__":
    reader = Reader(Path.cwd(), Path(sys.argv[1]))
    reader.follow()
    print(reader.compared)
