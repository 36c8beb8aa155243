"""The reference of a dataset's YAML, for people and for editors; both are made from the model in `pipeline/config.py`.

`python -m pipeline.reference` writes `docs/configuration.md` and `docs/dataset.schema.json`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic.json_schema import GenerateJsonSchema

from pipeline.config import CLOCK, CRON, DURATION, NAME, WHEN, Dataset

DOCS = Path(__file__).parents[1] / "docs"
PAGE, SCHEMA = DOCS / "configuration.md", DOCS / "dataset.schema.json"
EXAMPLES = (DOCS / "examples" / "wells.yaml", DOCS / "examples" / "payments.yaml")
NOTHING = "–"
Node = Mapping[str, Any]

# What a text of one of the model's patterns is called, and where this page explains it.
PATTERNS = {
    NAME: "[name](#names)",
    DURATION: "[duration](#durations)",
    CLOCK: "[time of day](#times-of-day)",
    WHEN: "[day or moment](#days-and-moments)",
    CRON: "[schedule](#schedules)",
}

TOP = """\
# The YAML of a dataset

<!-- Made from pipeline/config.py and docs/examples by `make reference`: change those. -->

One file a dataset: `datasets/NAME.yaml`. This page has every key that it may hold. A key that is not here is an error
that names the file, the key and what is allowed; so is a value out of bounds. `nightsift check NAME` finds them, and
looks at the source as well. `nightsift init` writes a first YAML from the data.

Only the keys marked **required** have to be there. The shortest YAML that works is

```yaml
kind: sensor
source: {path: "../data/wells/*.parquet"}
entity: well
event_time: time
cadence: 5m
features: [{name: pressure}, {name: flow}]
```

Contents: [how values are written](#how-values-are-written) · [a sensor](#a-sensor-complete) ·
[transactions](#transactions-complete) · [all keys](#all-keys) · [in an editor](#in-an-editor)

## How values are written
### Durations
A number and a unit: `ms`, `s`, `m` (minutes), `h` or `d`, such as `500ms`, `30s`, `1.5h`, `30d`. A day is 24 hours.

### Times of day
Hours and minutes in quotes, such as `"06:00"`, of the clock in the dataset's `zone`.

### Schedules
A cron expression in quotes that begins at most once a day: minute, hour, day of the month, month, day of the week (0 is
Sunday), in the dataset's `zone`. `"30 2 * * *"` is every night at 02:30, `"0 4 * * 0"` Sundays at 04:00,
`"0 5 1 * *"` the first of each month at 05:00.

### Days and moments
A day such as `2026-12-24`, or a moment such as `2026-03-04T08:00`, in the dataset's `zone`, or with one of its own, as
in `2026-03-04T08:00+01:00`.

### Paths
Relative to the YAML's folder. `{home}` at the beginning is the state folder (`--home`, by default `var`). Source,
labels and calendar may also stand in an object store: `s3://`, `gs://`, `az://`. A `*` stands for any name.

### Names
Small letters, digits and `_`, beginning with a letter, at most 63. Of entities also globs: `well-1*` is every entity
whose name begins so.
"""

KEYS = """\
## All keys
A part that is left out has the defaults of its keys. `–` as default: nothing; what then happens stands in the meaning.
The examples are from the two YAMLs above, where these have the key.
"""

EDITOR = """\
## In an editor
[dataset.schema.json](dataset.schema.json) is the same as a JSON schema. Editors with YAML support complete keys, show
their meaning and underline what is wrong when the file's first line names it, as the two shipped YAMLs do:

```yaml
# yaml-language-server: $schema=../docs/dataset.schema.json
```

The schema knows keys, types and bounds. What goes together (a sensor needs `cadence`, a `label_rate` needs `labels`),
and whether the source is there, `nightsift check` tells.
"""


class _Plain(GenerateJsonSchema):
    """JSON schema without the titles that pydantic makes up from the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - the signature is pydantic's
        return False


def schema() -> dict[str, Any]:
    """The JSON schema of a dataset's YAML, whose name the file's name gives where it is left out."""
    made = Dataset.model_json_schema(schema_generator=_Plain)
    required = [key for key in made["required"] if key != "name"]
    return {"$schema": _Plain.schema_dialect, **made, "required": required}


def page(made: Node, sensor: str, transaction: str) -> str:
    """The reference in Markdown, of the schema `made` and the texts of two YAMLs that show it at work."""
    shown = [yaml.safe_load(text) for text in (sensor, transaction)]
    keys = "\n".join(_section(place, node, made, shown) for place, node in parts(made))
    examples = f"## A sensor, complete\n{_fenced(sensor)}\n## Transactions, complete\n{_fenced(transaction)}"
    return "\n".join([TOP, examples, KEYS, keys, EDITOR])


def parts(made: Node) -> Iterator[tuple[tuple[str, ...], Node]]:
    """The YAML's parts in order, each with its place: the whole, `()`, then whatever holds keys of its own."""

    def below(place: tuple[str, ...], node: Node) -> Iterator[tuple[tuple[str, ...], Node]]:
        yield place, node
        for key, value in node["properties"].items():
            if (name := _part_of(value)) is not None:
                yield from below((*place, key), made["$defs"][name])

    return below((), made)


def _part_of(node: Node) -> str | None:
    """The definition that a key, or each item of its list, refers to."""
    inner = node.get("items", node)
    found = next((each for each in (inner, *inner.get("anyOf", ())) if "$ref" in each), None)
    return None if found is None else str(found["$ref"].rsplit("/", 1)[-1])


def _fenced(text: str) -> str:
    return f"```yaml\n{text.rstrip()}\n```\n"


def _section(place: tuple[str, ...], node: Node, made: Node, shown: Sequence[Any]) -> str:
    """A part's heading, its sentence and the table of its keys."""
    title = f"### `{'.'.join(place)}`" if place else "### The dataset"
    rows = [_row((*place, key), value, key in node.get("required", ()), made, shown)
            for key, value in node["properties"].items()]  # fmt: skip
    head = "| key | value | default | meaning | example |\n|---|---|---|---|---|\n"
    return f"{title}\n{node['description']}\n\n{head}{''.join(rows)}"


def _row(place: tuple[str, ...], node: Node, required: bool, made: Node, shown: Sequence[Any]) -> str:
    part = _part_of(node)
    meaning = node.get("description") or _clause(made["$defs"][part]["description"])
    default = "**required**" if required else _default(node)
    example = "" if part else _example(place, node, shown)
    cells = (f"`{place[-1]}`", _value(node, place), default, meaning.replace("*", r"\*"), example)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n"


def _clause(text: str) -> str:
    """The first sentence of a description, as the meanings of keys are written: small, without a stop."""
    line = text.splitlines()[0].rstrip(".")
    return line[0].lower() + line[1:]


def _value(node: Node, place: tuple[str, ...] = ()) -> str:
    """What may stand there, in words."""
    if "anyOf" in node:
        return " or ".join(_value(each, place) for each in node["anyOf"] if each.get("type") != "null")
    if "enum" in node:
        return " or ".join(", ".join(f"`{value}`" for value in part) for part in (node["enum"][:-1], node["enum"][-1:]))
    if "$ref" in node:
        return f"[its keys](#{'.'.join(place).replace('.', '')})"
    if "pattern" in node:
        return PATTERNS[node["pattern"]]
    return _by_type(node, place)


def _by_type(node: Node, place: tuple[str, ...]) -> str:
    if node["type"] == "array":
        many = _between(node, "minItems", "maxItems")
        return f"list{many and ' of ' + many}; each: {_value(node['items'], place)}"
    if node["type"] == "object":
        return f"names, each with a {_value(node['additionalProperties'])}"
    if isinstance(node["type"], list):
        return "name or glob"
    named = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}
    bounds = _between(node, "minimum", "maximum")
    return named[node["type"]] + (bounds and f", {bounds}")


def _between(node: Node, low: str, high: str) -> str:
    """The bounds that the keys `low` and `high` of the schema hold, such as `1 to 256`; empty without any."""
    if low in node and high in node:
        return f"{node[low]:,.9g} to {node[high]:,.9g}"
    words = {low: "at least", "exclusiveMinimum": "above", high: "at most", "exclusiveMaximum": "below"}
    return ", ".join(f"{word} {node[key]:,.9g}" for key, word in words.items() if key in node)


def _default(node: Node) -> str:
    value = node.get("default")
    return NOTHING if value in (None, "") or isinstance(value, dict) else f"`{_flow(value)}`"


def _example(place: tuple[str, ...], node: Node, shown: Sequence[Any]) -> str:
    """The key as the first of the YAMLs has it that does, else as the model's own example."""
    values = [value for text in shown for value in _found(text, place)] or node.get("examples", [])
    return f"`{place[-1]}: {_flow(values[0])}`" if values else NOTHING


def _found(shown: Any, place: Sequence[str]) -> list[Any]:
    """What stands in a YAML at a place, in any item of the lists on the way."""
    if not place:
        return [shown]
    items = shown if isinstance(shown, list) else [shown]
    return [value for item in items if place[0] in item for value in _found(item[place[0]], place[1:])]


def _flow(value: Any) -> str:
    """A value as YAML has it on one line; in quotes where a sign in it means something to YAML."""
    if isinstance(value, str) and re.search(r"[*:{]", value):
        return json.dumps(value, ensure_ascii=False)
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()


def written() -> dict[Path, str]:
    """The files that are made from the model, with what they hold now."""
    made = schema()
    examples = [file.read_text(encoding="utf-8") for file in EXAMPLES]
    return {PAGE: page(made, *examples), SCHEMA: json.dumps(made, indent=1, ensure_ascii=False) + "\n"}


if __name__ == "__main__":
    for file, content in written().items():
        file.write_text(content, encoding="utf-8")
