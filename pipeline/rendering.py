"""The templates of all pages and messages: what comes from data is escaped, and only scripts of ours run."""

import base64
import hashlib
from contextlib import suppress
from functools import cache
from pathlib import Path
from uuid import uuid4

import jinja2
from markupsafe import Markup

from pipeline.errors import NightsiftError

FOLDER = Path(__file__).parent / "templates"


@cache
def environment() -> jinja2.Environment:
    """The templates, with the filters `tight` and `plain`, and `inline` and `digest` of scripts."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"tight": tight, "plain": plain}
    made.globals |= {"inline": inline, "digest": digest}
    return made


@cache
def inline(script: str) -> Markup:
    """A script of ours, as it stands in a page."""
    return Markup((FOLDER / script).read_text(encoding="utf-8"))


@cache
def digest(script: str) -> str:
    """By what a page's content security policy knows a script of ours."""
    return f"sha256-{base64.b64encode(hashlib.sha256(inline(script).encode()).digest()).decode()}"


def tight(text: str) -> str:
    """`text` without a line break between a number and its sign, or a time and its zone."""
    for sign in (" %", " ×", " UTC"):
        text = text.replace(sign, f"\N{NO-BREAK SPACE}{sign[1:]}")
    return text


def plain(value: float, digits: int = 6) -> str:
    """A number of so many significant digits, for a script to read back."""
    return f"{value:.{digits}g}"


def write_page(file: Path, text: str) -> None:
    """Write a page whole, or not at all; raises `NightsiftError` where it cannot be written."""
    part = file.with_name(f".{file.name}.{uuid4().hex}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise NightsiftError(
            f"the page {file} could not be written: {error.strerror}; mend that, then run it again"
        ) from error
