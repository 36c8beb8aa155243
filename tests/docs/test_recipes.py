"""The recipes of docs/recipes: each page's code runs, in order and in one namespace, and prints what the page shows."""

import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "recipes").glob("*.md"))
BLOCK = re.compile(r"^```(python|text)(?: backend=(\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def check(page: Path, backend: str) -> None:
    """Run a page's blocks: those without a backend, and those for this one. A text block is what the last one printed.

    Raises AssertionError where a page prints something else than it shows, or shows nothing.
    """
    keras.utils.clear_session(free_memory=False)  # names of layers count from 0, as they do for a reader
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": page.stem}
    printed, ran, compared = "", True, 0
    for block in BLOCK.finditer(text):
        kind, only, body = block.groups()
        if kind == "python" and (ran := only in {None, backend}):
            start = text.count("\n", 0, block.start()) + 1
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile("\n" * start + body, str(page), "exec"), namespace)
            printed = out.getvalue()
        elif kind == "text" and ran:
            assert plain(printed) == plain(body), f"{page.name} shows\n{body}\nbut its code printed\n{printed}"
            compared += 1
    assert compared > 3, f"{page.name} shows too little of what it prints: {compared} blocks"


def plain(text: str) -> str:
    """The text without colours, and without spaces at the ends of lines."""
    return "\n".join(line.rstrip() for line in re.sub(r"\x1b\[\d+m", "", text).strip().splitlines())


def named_backends() -> list[tuple[Path, str]]:
    """The pages that have blocks for another backend than the one that the tests run on, with its name."""
    found = [(page, name) for page in PAGES for name in ("jax", "torch") if f"backend={name}\n" in page.read_text()]
    return sorted(found)


def test_the_recipes_are_there():
    names = {"input-shapes", "masking", "own-cell", "size-mismatch", "dimension-mismatch", "sequences"}
    assert {page.stem for page in PAGES} == names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_recipe_prints_what_it_shows(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(page, "tensorflow")


@pytest.mark.parametrize(("page", "backend"), named_backends(), ids=str)
def test_a_recipe_prints_the_same_on_other_backends(page, backend):
    assert importlib.util.find_spec(backend), f"{backend} is not installed: run the tests with `make test`."
    code = f"from tests.docs.test_recipes import *; check(Path({str(page)!r}), {backend!r})"
    env = {**os.environ, "KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-8_000:]
