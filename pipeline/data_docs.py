"""The page that shows how a day was judged: Great Expectations' own rendering, in a page that needs no network.

Great Expectations' page loads style and scripts from the web and puts values from the data into it as they are. Here
its sections stand in a page of ours with its style inside; values are escaped, and a policy in the page forbids the
browser to run or load anything.
"""

import html
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.rendering import write_page

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult

# Lists as long as the data, of which the page shows a sample that has a key of its own.
WHOLE_LISTS = ("unexpected_list", "unexpected_index_list", "unexpected_index_query")


@dataclass(frozen=True, slots=True)
class Summary:
    """The head of a page: what was judged, `outcome` in a few words, the counts, and what there is to say about it."""

    dataset: str
    day: date
    outcome: str
    counts: dict[str, int]
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]


def page_file(folder: Path, dataset: str, day: date) -> Path:
    """Where the page of `day` stands under the data docs' `folder`."""
    return folder / dataset / f"{day}.html"


def page_outcome(file: Path) -> str:
    """The outcome that a page's title states; empty where there is no page."""
    return _title(file).rpartition(": ")[2] if file.is_file() else ""


def write_docs(folder: Path, summary: Summary, result: "ExpectationSuiteValidationResult | None") -> Path:
    """Write the page of a day, without sections where nothing was evaluated, and the list of days; the page's path.

    Raises `NightsiftError` where one of them cannot be written.
    """
    file = page_file(folder, summary.dataset, summary.day)
    sections = _sections(result) if result is not None else ""
    write_page(file, _page(f"{summary.dataset} {summary.day}: {summary.outcome}", _head(summary) + sections))
    _write_index(file.parent, summary.dataset)
    return file


def _write_index(folder: Path, dataset: str) -> None:
    days = sorted((file for file in folder.glob("*.html") if file.name != "index.html"), reverse=True)
    items = "".join(f'<li><a href="{file.name}">{_title(file)}</a></li>\n' for file in days)
    body = f"<h1>{html.escape(dataset)}: how each day was judged</h1>\n<ul>\n{items}</ul>\n"
    write_page(folder / "index.html", _page(f"{dataset}: validation", body))


def _title(file: Path) -> str:
    """The title of a page as it stands there, escaped."""
    with file.open(encoding="utf-8") as stream:
        match = re.search(r"<title>(.*?)</title>", stream.read(1000))
    return match[1] if match else file.stem


def _head(summary: Summary) -> str:
    counts = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{count:,}</td></tr>" for name, count in summary.counts.items()
    )
    return "".join(
        [
            f"<p><a href='index.html'>all days</a></p><h1>{html.escape(summary.dataset)} {summary.day}</h1>",
            f"<p class='outcome'>{html.escape(summary.outcome)}</p><table>{counts}</table>",
            _list("Why the day was refused (its tables stay as they were)", summary.refusals),
            _list("Reported", summary.warnings),
        ]
    )


def _list(title: str, sentences: tuple[str, ...]) -> str:
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f"<h2>{title}</h2><ul>{items}</ul>" if items else ""


def _sections(result: "ExpectationSuiteValidationResult") -> str:
    """Great Expectations' sections as HTML: its table of the whole and one of each column, without its overview."""
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView

    for one in result.results:
        one.result = _shown(one.result)
    document = ValidationResultsPageRenderer().render(result).to_json_dict()
    template = DefaultJinjaPageView().env.from_string(SECTIONS)
    return template.render(document | {"sections": document["sections"][1:]})


def _shown(result: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a result.

    Of an expectation about the whole day the renderer cannot show unexpected values: they are shown as observed.
    """
    hidden = set(WHOLE_LISTS)
    if "unexpected_percent" not in result:
        hidden |= {"unexpected_count", "partial_unexpected_list"}
        result.setdefault("observed_value", result.get("partial_unexpected_list", "--"))
    return {key: _presentable(value) for key, value in result.items() if key not in hidden}


def _presentable(value: Any) -> Any:
    """`value` in plain Python types and with every text in it escaped for HTML; the renderer fails at the one, and puts
    the other into the page as it is."""
    if isinstance(value, str):
        return html.escape(value)
    if isinstance(value, dict):
        return {_presentable(key): _presentable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_presentable(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _page(title: str, body: str) -> str:
    return PAGE.replace("{title}", html.escape(title)).replace("{style}", STYLE).replace("{body}", body)


SECTIONS = "{% for section in sections %}{% set section_loop = loop -%}{% include 'section.j2' %}{% endfor %}"

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; background: #fff; max-width: 70rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: .5rem 0; }
h2, h5 { font-size: 1.1rem; margin: 1.5rem 0 .4rem; }
table { border-collapse: collapse; width: 100%; margin: .3rem 0; }
table table, h1 ~ table { width: auto; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #d8dee6; }
th { background: #f2f5f8; font-weight: 600; }
.outcome { font-weight: 600; }
.badge { background: #e6ebf1; border-radius: .3rem; padding: 0 .3rem; font-family: ui-monospace, monospace; }
.text-danger { color: #a51d2d; }
.text-success { color: #1f6f43; }
.fa-check-circle::before { content: "\\2713  met"; font-style: normal; font-weight: 600; }
.fa-times::before { content: "\\2717  not met"; font-style: normal; font-weight: 600; }
.fa-exclamation-triangle::before { content: "!  could not be evaluated"; font-style: normal; font-weight: 600; }
.ge-section td:first-child { white-space: nowrap; }
@media (prefers-color-scheme: dark) {
  body { color: #e3e8ee; background: #14191f; } a { color: #8ab4f8; } th { background: #212932; }
  th, td { border-color: #36414d; } .badge { background: #2c3641; }
  .text-danger { color: #ff8f8f; } .text-success { color: #7fd1a2; }
}
"""
