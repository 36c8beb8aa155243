"""A message in its three forms: what is escaped, and what is left out where there is no room."""

from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipeline.message import Block, Form, Link, Message, escape_markdown, fit, render
from pipeline.words import clean_text

NASTY = "<script>alert(1)</script> [x](javascript:alert(1)) *a* _b_ `c` ![i](http://e) &lt; <!channel> ~~s~~ # 1. a_b"
LINK = "https://airflow.example/nightsift/incidents/pumps/2026-03-25/ab?x=(1)&y=<2>"


def message(*who: str) -> Message:
    blocks = tuple(Block(name, "from 18:21 to 21:32 UTC", ("12.4 × the threshold",), LINK, 2) for name in who)
    return Message("pumps: 3 incidents", blocks, ("Told before: 1 incident",), (Link("Log", LINK),))


def parsed(text: str) -> tuple[str, set[str]]:
    """What a reader of CommonMark sees, and the kinds of marks in it."""
    tokens = [child for token in MarkdownIt("commonmark").parse(text) for child in token.children or [token]]
    shown = "".join(token.content for token in tokens if token.type in ("text", "text_special"))
    return shown, {token.type for token in tokens}


@given(st.text().map(clean_text).filter(bool))
@example(NASTY)
@example("1. no list")
@example("1)")
@example("- no list")
@example("# no heading")
@example("___")
@example("__0__")
@example("a\\")
def test_markdown_shows_what_stands_in_the_data(text: str) -> None:
    """Whatever it is: it is read as it stands, and is nothing but text."""
    shown, kinds = parsed(escape_markdown(text))
    assert shown.replace("\N{ZERO WIDTH SPACE}", "") == text.replace("\N{ZERO WIDTH SPACE}", "")
    assert kinds <= {"paragraph_open", "paragraph_close", "inline", "text", "text_special"}


def test_nobody_is_called_by_a_name_in_the_data() -> None:
    """`@channel` is read as such and calls nobody, as it is not written so."""
    assert "@channel" not in escape_markdown("@channel")
    assert escape_markdown("pump_0007-a.b") == "pump_0007-a.b"


@pytest.mark.parametrize("form", ["markdown", "html"])
@pytest.mark.parametrize("name", ["https://e.example/x", "HTTP://e.example", "WWW.e.example", "ana@e.example"])
def test_an_address_in_the_data_is_no_link(form: Form, name: str) -> None:
    """Neither as a name, nor in a fact or a note; it is read as it stands, and links of ours stay whole."""
    body = render(Message("t", (Block(name, name, (name,), LINK),), (name,), (Link("Log", LINK),)), form)
    assert name not in body
    assert body.replace("\N{ZERO WIDTH SPACE}", "").count(name) == 4
    assert "https://airflow.example/nightsift" in body


def test_markdown_has_a_list_a_block_and_links_that_hold() -> None:
    """The entity in bold, its facts as a list, a link that ends where it should."""
    text = render(message(NASTY), "markdown")
    tokens = MarkdownIt("commonmark").parse(text)
    links = [child.attrs["href"] for token in tokens for child in token.children or [] if child.type == "link_open"]
    assert links == ["https://airflow.example/nightsift/incidents/pumps/2026-03-25/ab?x=%281%29&y=%3C2%3E"] * 2
    assert text.splitlines()[1:3] == ["- 12.4 × the threshold", f"- [Open the incident]({links[0]})"]
    assert "html_block" not in {token.type for token in tokens}


class Page(HTMLParser):
    """The elements of a page, its links and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str | None] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_is_a_page_without_anything_to_load_or_run() -> None:
    """What comes from data is text; the only addresses are the links; no colour of the text is set, for dark mode."""
    html = render(message(NASTY), "html")
    page = Page(html)
    assert NASTY in page.text.replace("\N{ZERO WIDTH SPACE}", "")
    assert set(page.links) == {LINK}
    assert {"script", "img", "style", "em"}.isdisjoint(page.tags)
    assert 'content="light dark"' in html
    assert ";color:" not in html


def test_text_is_plain() -> None:
    """As it stands, each fact below its entity."""
    assert render(message("a_b <1>")) == (
        f"a_b <1>: from 18:21 to 21:32 UTC\n  12.4 × the threshold\n  {LINK}\n\nTold before: 1 incident\nLog: {LINK}"
    )


@pytest.mark.parametrize("form", ["text", "markdown", "html"])
def test_what_has_no_room_is_counted(form: Form) -> None:
    """As many blocks as fit, the first of them; the whole where all do."""
    whole = message(*"abcdefgh")
    for kept in range(1, 9):
        room = len(render(message(*"abcdefgh"[:kept]), form)) + 100
        body = fit(whole, form, lambda text, room=room: len(text) <= room)
        left = 8 - kept
        told = (
            f"and {2 * left} more of {left} {'entity' if left == 1 else 'entities'}, for which this message has no room"
        )
        assert len(body) <= room
        assert (told in body) == (kept < 8)
        assert body.count("12.4 × the threshold") == kept


def test_without_any_room_the_first_line_of_the_worst_is_told_and_then_how_many_there_are() -> None:
    """Nothing is cut in the middle, and no number is lost."""
    whole = message(*"abc")
    first = fit(whole, "text", lambda text: len(text.splitlines()[0]) < 60 and LINK not in text.split("\n\n")[0])
    assert first.splitlines()[0] == "a: from 18:21 to 21:32 UTC"
    assert "and 4 more of 2 entities" in first
    assert fit(whole, "text", lambda text: False).startswith("6 more of 3 entities, for which this message has no room")
    assert fit(Message("t", notes=("all of it",)), "text", lambda text: False) == "all of it"
