"""The reference of the YAML: it is what the model gives, whole, and the schema for editors judges as the model does."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel, ValidationError

from pipeline import config, reference
from pipeline.config import Dataset, parse_clock, parse_duration, parse_when, read_dataset

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "datasets").glob("*.yaml"))
TEXT = reference.PAGE.read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \| (.*) \|$", re.MULTILINE)
BLOCK = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def documented() -> dict[str, tuple[str, ...]]:
    """Every key of the page by its full place, such as `calendar.entries.start`, with the other cells of its row."""
    found = {}
    for section in re.split(r"^### ", TEXT, flags=re.MULTILINE)[1:]:
        place = re.match(r"`([\w.]+)`\n", section)
        for key, *cells in ROW.findall(section):
            found[f"{place[1]}.{key}" if place else key] = tuple(cells)
    return found


def keys_in(value: Any, place: str = "") -> set[str]:
    """The places of all keys of a YAML, but for the names of groups, which are the user's."""
    if isinstance(value, list):
        return {key for item in value for key in keys_in(item, place)}
    if not isinstance(value, dict) or place == "model.scope":
        return set()
    below = {f"{place}.{key}".lstrip("."): item for key, item in value.items()}
    return set(below) | {key for name, item in below.items() for key in keys_in(item, name)}


def accepts(data: Any) -> tuple[bool, bool]:
    """Whether the schema, and whether the model, take a YAML's content."""
    schema = jsonschema.Draft202012Validator(reference.schema()).is_valid(json.loads(json.dumps(data, default=str)))
    try:
        Dataset(**{"name": "demo", **data})
    except ValidationError:
        return schema, False
    return schema, True


@pytest.mark.parametrize("file", [reference.PAGE, reference.SCHEMA], ids=lambda file: file.name)
def test_the_files_are_what_the_model_gives(file: Path) -> None:
    """Whoever changes a key, a bound or a description makes them anew."""
    assert file.read_text(encoding="utf-8") == reference.written()[file], "run: make reference"


def test_every_key_of_the_model_is_there_with_a_meaning() -> None:
    """In the section of its part, however deep."""

    def keys_of(model: type[BaseModel], place: str) -> Iterator[str]:
        for key, field in model.model_fields.items():
            yield place + key
            for part in re.findall(r"pipeline\.config\.(\w+)", str(field.annotation)):
                yield from keys_of(getattr(config, part), f"{place}{key}.")

    assert set(documented()) == set(keys_of(Dataset, "")) - {"file"}
    assert all(len(meaning) > 10 for _, _, meaning, _ in documented().values())


@pytest.mark.parametrize("file", [*SHIPPED, *reference.EXAMPLES], ids=lambda file: file.stem)
def test_shipped_yamls_and_examples_load_and_hold_documented_keys(file: Path) -> None:
    """By the model and by the schema."""
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert read_dataset(file).name == file.stem
    assert accepts(data) == (True, True)
    assert keys_in(data) <= set(documented())


def test_the_examples_show_every_key_but_other_ways_to_say_the_same() -> None:
    """The two together; a threshold is stated in one way at a time."""
    shown = {key for file in reference.EXAMPLES for key in keys_in(yaml.safe_load(file.read_text(encoding="utf-8")))}
    assert set(documented()) - shown == {"threshold.quantile", "threshold.score"}


def test_the_shortest_yaml_of_the_page_works() -> None:
    """It holds what is required and no more: without any of its keys it is refused."""
    data = yaml.safe_load(BLOCK.findall(TEXT)[0])
    assert accepts(data) == (True, True)
    for key in data:
        assert not accepts({name: value for name, value in data.items() if name != key})[1]
    required = {key for key, cells in documented().items() if cells[1] == "**required**" and "." not in key}
    assert required == set(data) - {"cadence"}


def test_every_example_of_a_row_is_a_value_that_the_key_takes() -> None:
    """As the schema of its part has it."""
    whole = reference.schema()
    parts = dict(reference.parts(whole))
    for place, (*_, example) in documented().items():
        if example:
            written = yaml.safe_load(example.strip("`"))
            part = {**whole, **parts[tuple(place.split(".")[:-1])], "required": []}
            jsonschema.validate(json.loads(json.dumps(written, default=str)), part)


def test_the_ways_of_writing_are_as_told() -> None:
    """What the page gives as durations, times of day, days and schedules is read as such."""

    def shown(heading: str) -> list[str]:
        section = TEXT.split(f"### {heading}\n")[1].split("\n#")[0]
        return [text.strip('"') for text in re.findall(r'`("?\d[^`]*)`', section)]

    assert [parse_duration(text) for text in shown("Durations")]
    assert [parse_clock(text) for text in shown("Times of day")]
    assert [parse_when(text) for text in shown("Days and moments")]
    base = yaml.safe_load(BLOCK.findall(TEXT)[0])
    assert all(accepts({**base, "schedule": text}) == (True, True) for text in shown("Schedules"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "wells"}, True),
        ({"nam": "wells"}, False),
        ({"cadence": "five minutes"}, False),
        ({"cadence": "1.5h"}, True),
        ({"window": {"steps": 0}}, False),
        ({"schedule": "30 2 * * *", "deadline": "06:00"}, True),
        ({"schedule": "* 2 * * *"}, False),
        ({"schedule": "30 2 * * *", "deadline": "24:00"}, False),
        ({"model": {"scope": "entity"}}, True),
        ({"model": {"scope": "each"}}, False),
        ({"model": {"scope": {"deep": [7, "well-2*"]}}}, True),
        ({"calendar": {"entries": [{"start": "2026-12-24", "reason": "x", "entities": [7]}]}}, True),
        ({"calendar": {"entries": [{"start": "24.12.2026", "reason": "x"}]}}, False),
        ({"features": []}, False),
        ({"notify": {"most": 0}}, False),
    ],
)
def test_the_schema_judges_as_the_model_does(changes: dict[str, Any], expected: bool) -> None:
    """Keys, types, patterns and bounds; what is valid is never underlined."""
    base = yaml.safe_load(BLOCK.findall(TEXT)[0])
    assert accepts({**base, **changes}) == (expected, expected)


def test_the_shipped_yamls_name_the_schema() -> None:
    """By a path that leads there."""
    for file in SHIPPED:
        hint = re.match(r"# yaml-language-server: \$schema=(\S+)\n", file.read_text(encoding="utf-8"))
        assert hint
        assert (file.parent / hint[1]).resolve() == reference.SCHEMA
