"""A message to a person, and how it reads as plain text, in Markdown and in HTML.

What comes from the data is escaped in Markdown and HTML: it can form no tag and no mark, and an address or an `@` in it
is broken by a space of no width, so that chats and mail programs make no link of it and call nobody. Plain text has it
as it stands, for what reads it may be a program.
"""

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

Form = Literal["text", "markdown", "html"]  # as Apprise calls them
OPEN = "Open the incident"

# What Markdown takes for a mark: an underscore not within a word, a number only where it begins a line as in a list.
_ACTIVE = re.compile(r"(?<=[^\W_])_+(?=[^\W_])|([\\`*\[\]<~_]|\|(?=\|)|(?<=\|)\||&(?=#?\w+;))")
# By what a chat or a mail program knows an address, or a person.
_CALLING = re.compile(r"(?i)://|www\.|@")
_AT_START = re.compile(r"(?m)^([#>+=-])|^(\d+)([.)])(?=\s|$)")


@dataclass(frozen=True, slots=True)
class Block:
    """What is told of one entity.

    who, what: its first line; facts: the lines below it; link: where there is more, empty where that is not known
    incidents: how many it tells of
    """

    who: str
    what: str
    facts: tuple[str, ...] = ()
    link: str = ""
    incidents: int = 1


@dataclass(frozen=True, slots=True)
class Link:
    """An address and what is there."""

    label: str
    url: str


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent: a title without anything from the data, the most important blocks first, then lines and links."""

    title: str
    blocks: tuple[Block, ...] = ()
    notes: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()


def render(message: Message, form: Form = "text") -> str:
    """The body of `message`; pure."""
    return {"text": _text, "markdown": _markdown, "html": _html}[form](message)


def fit(message: Message, form: Form, fits: Callable[[str], bool]) -> str:
    """The body, for which `fits` holds where that is possible at all: with fewer blocks, and how many are left out.

    Where not even one block fits, its first line is told; where that does not fit either, how many there are.
    """
    shorter = range(len(message.blocks) + 2 if message.blocks else 1)
    dropped = bisect_left(shorter, 1, hi=len(shorter) - 1, key=lambda n: int(fits(render(_without(message, n), form))))
    return render(_without(message, dropped), form)


def _without(message: Message, dropped: int) -> Message:
    """`message` without its last blocks; one step before the last only the first line of the first is left."""
    blocks = message.blocks[: max(len(message.blocks) - dropped, 0)]
    if dropped and dropped == len(message.blocks):
        blocks = (replace(message.blocks[0], facts=(), link=""),)
    rest = message.blocks[len(blocks) :]
    if not rest:
        return replace(message, blocks=blocks)
    incidents, entities = sum(block.incidents for block in rest), len({block.who for block in rest})
    who = f"{entities:,} {'entity' if entities == 1 else 'entities'}"
    note = f"{incidents:,} more of {who}, for which this message has no room"
    return replace(message, blocks=blocks, notes=(f"and {note}" if blocks else note, *message.notes))


def _text(message: Message) -> str:
    blocks = [
        "\n".join([f"{b.who}: {b.what}", *(f"  {line}" for line in (*b.facts, b.link) if line)]) for b in message.blocks
    ]
    end = "\n".join([*message.notes, *(f"{link.label}: {link.url}" for link in message.links)])
    return "\n\n".join(part for part in (*blocks, end) if part).replace("\N{NO-BREAK SPACE}", " ")


def _markdown(message: Message) -> str:
    """CommonMark, of which every chat understands the parts that are used here."""
    blocks = []
    for block in message.blocks:
        facts = [*map(escape_markdown, block.facts), *([_markdown_link(OPEN, block.link)] if block.link else [])]
        first = f"**{escape_markdown(block.who)}**: {escape_markdown(block.what)}"
        blocks.append("\n".join([first, *(f"- {fact}" for fact in facts)]))
    links = [_markdown_link(link.label, link.url) for link in message.links]
    return "\n\n".join([*blocks, *map(escape_markdown, message.notes), *links])


def escape_markdown(text: str) -> str:
    """`text` as it is read, whatever marks and addresses stand in it."""
    marked = _ACTIVE.sub(lambda m: f"\\{m[1]}" if m[1] else m[0], text)
    marked = _AT_START.sub(lambda m: f"\\{m[1]}" if m[1] else f"{m[2]}\\{m[3]}", marked)
    return inert(marked)


def inert(text: str) -> str:
    """`text` as it is read, but with no address to make a link of, and no `@` to call somebody by."""
    return _CALLING.sub(lambda m: f"{m[0]}\N{ZERO WIDTH SPACE}", text)


def _markdown_link(label: str, url: str) -> str:
    safe = re.sub(r"[()<>\\\s]", lambda m: "".join(f"%{byte:02X}" for byte in m[0].encode()), url)
    return f"[{escape_markdown(label)}]({safe})"


def _html(message: Message) -> str:
    """A page; addresses are shown, for the plain text that Apprise makes of it has no others."""
    from pipeline.rendering import environment

    return environment().get_template("message.html.jinja").render(message=message, inert=inert)
