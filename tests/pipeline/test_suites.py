"""Suites: what an analyst writes is read right, or refused with a sentence that helps."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from pipeline.config import Dataset, load_dataset
from pipeline.errors import ConfigError
from pipeline.suites import default_suite_text, expectation_types, load_suite, parse_suite, suite_digest, to_gx

ROOT = Path(__file__).parents[2]


def payments(**changes: object) -> Dataset:
    return Dataset(
        **{
            "name": "payments",
            "kind": "transaction",
            "source": {"path": "payments.csv"},
            "entity": "card",
            "event_time": "time",
            "event_id": "payment",
            "zone": "Europe/Berlin",
            "features": [
                {"name": "amount", "column": "Betrag", "unit": "EUR", "min": 0, "max": 1000.5},
                {"name": "category", "type": "categorical"},
            ],
            **changes,
        }
    )


def parse(*entries: str, head: str = "") -> object:
    text = head + "expectations:\n" + "".join(f"- {entry}\n" for entry in entries)
    return parse_suite(text, "expectations/payments.yaml", payments())


@pytest.mark.parametrize("name", ["pumps", "cards"])
def test_the_shipped_suites_and_their_defaults_load(name: str) -> None:
    """Both shipped datasets have a suite that can be read, and so has each without one."""
    dataset = load_dataset(name, ROOT / "datasets")
    assert load_suite(dataset).expectations
    assert load_suite(dataset.model_copy(update={"suite": None})).expectations


def test_the_default_suite_guards_keys_ranges_and_presence() -> None:
    """Without a suite: keys must be there, declared ranges stop the night, a feature without any value is reported."""
    suite = load_suite(payments())
    found = [(e.type, e.arguments["column"], e.severity, e.mostly, e.row_level) for e in suite.expectations]
    assert found == [
        ("expect_column_values_to_not_be_null", "entity", "critical", 1.0, True),
        ("expect_column_values_to_not_be_null", "event_time", "critical", 1.0, True),
        ("expect_column_values_to_be_between", "amount", "critical", 0.9, True),
        ("expect_column_proportion_of_non_null_values_to_be_between", "amount", "warning", 1.0, False),
    ]
    assert suite.expectations[2].arguments == {"column": "amount", "min_value": 0, "max_value": 1000.5, "mostly": 0.9}
    assert suite.readable == 0.9


def test_a_suite_file_is_found_relative_to_the_dataset(tmp_path: Path) -> None:
    """`suite:` is a path relative to the dataset's YAML."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "suite.yaml").write_text(default_suite_text(payments()), encoding="utf-8")
    dataset = payments(suite="../suite.yaml", file=tmp_path / "datasets" / "payments.yaml")
    assert load_suite(dataset).expectations[0].place == f"{tmp_path / 'suite.yaml'}, entry 1"


def test_a_missing_suite_file_is_named(tmp_path: Path) -> None:
    """A suite that is not there is a sentence with its path and the YAML that names it."""
    dataset = payments(suite="nowhere.yaml", file=tmp_path / "payments.yaml")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read .*payments\.yaml names it"):
        load_suite(dataset)


BETWEEN = "{type: expect_column_values_to_be_between, column: amount"
BAD = [
    ("{type: expect_column_values_to_be_betwen, column: amount}", "mean expect_column_values_to_be_between or"),
    ("{column: amount}", "entry 1: type: is missing"),
    ("{type: [1]}", "type: [1] is no expectation"),
    ("{type: unexpected_rows_expectation, unexpected_rows_query: x}", "is no expectation that can be used here"),
    ("3", "entry 1 must be keys and values", "not 3"),
    (BETWEEN + ", min_value: 1, severity: fatal}", "severity: 'fatal'", "critical, warning, info"),
    (BETWEEN + ", min_value: 1, severity: warnin}", "severity: 'warnin'", "did you mean warning?"),
    (BETWEEN + ", minimum_value: 1}", "argument: 'minimum_value' is not known; did you mean min_value"),
    (BETWEEN + ", min_value: 1, row_condition: 'a'}", "argument: 'row_condition'"),
    (BETWEEN + "}", "give min_value:, max_value: or both"),
    (BETWEEN + ", min_value: low}", "min_value: 'low' is not a number"),
    (BETWEEN + ", min_value: true}", "min_value: True is not a number"),
    (BETWEEN + ", min_value: 2024-01-31}", "is not a number"),
    (BETWEEN + ", min_value: 1, mostly: 90}", "mostly: 90 is greater than the maximum of 1"),
    (BETWEEN + ", min_value: 1, mostly: most}", "mostly: 'most' is not a number"),
    (BETWEEN + ", min_value: 1, strict_min: 3}", "strict_min: 3 is not true or false"),
    ("{type: expect_column_values_to_be_between, column: event_time, min_value: 3}", "is not a date or a time"),
    ("{type: expect_column_values_to_not_be_null}", "column: is missing"),
    ("{type: expect_column_values_to_not_be_null, column: amont}", "column: 'amont'", "did you mean amount?"),
    ("{type: expect_column_values_to_not_be_null, column: Betrag}", "'Betrag' is what the source calls amount"),
    ("{type: expect_column_values_to_not_be_null, column: 3}", "column: 3 is not text"),
    ("{type: expect_compound_columns_to_be_unique, column_list: [entity, amont]}", "column_list: 'amont'"),
    ("{type: expect_column_values_to_be_in_set, column: category, value_set: a}", "'a' is not a list of text"),
    ("{type: expect_column_values_to_match_regex, column: category, regex: '('}", "'(' is not a regular expression"),
    # Which pandas would leave to a matcher that may take for ever.
    ("{type: expect_column_values_to_match_regex, column: category, regex: '(?=a)b'}", "look-around", "possible"),
    ("{type: expect_column_values_to_match_regex, column: category, regex: '(a)\\1'}", "back references"),
    ("{type: expect_column_values_to_match_regex_list, column: category, regex_list: ['(']}", "not a regular"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "words"), [(entry, words) for entry, *words in BAD], ids=[entry for entry, *_ in BAD]
)
def test_a_wrong_entry_is_refused_with_file_entry_and_cause(entry: str, words: list[str]) -> None:
    """The message names the file, the entry, what was wrong, and what is near or allowed."""
    with pytest.raises(ConfigError) as caught:
        parse(entry)
    for word in ["expectations/payments.yaml", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("expectations: [", "is not valid YAML"),
        ("- a", "must hold the key expectations"),
        ("", "must hold the key expectations"),
        ("expectations: []", "expectations"),
        ("expectation: []", "key: 'expectation' is not known; did you mean expectations?"),
        ("readable: 2\nexpectations: [{type: expect_column_to_exist, column: entity}]", "readable"),
        ("!!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused(text: str, words: str) -> None:
    """What is no suite at all is refused as a sentence, and a YAML tag runs no code."""
    with pytest.raises(ConfigError) as caught:
        parse_suite(text, "suite.yaml", payments())
    assert "suite.yaml" in str(caught.value)
    assert words in str(caught.value)


def test_the_second_entry_is_called_the_second() -> None:
    """Entries are counted from one, as a person counts."""
    with pytest.raises(ConfigError, match="entry 2"):
        parse("{type: expect_column_to_exist, column: entity}", "{type: expect_column_to_exist, column: nothing}")


def test_times_are_read_in_the_dataset_s_zone() -> None:
    """A naive time in a suite is a time in the zone of the dataset."""
    suite = parse("{type: expect_column_values_to_be_between, column: event_time, min_value: 2024-07-01 12:00:00}")
    assert suite.expectations[0].arguments["min_value"] == datetime(2024, 7, 1, 10, tzinfo=UTC)


def test_the_digest_is_of_what_decides(tmp_path: Path) -> None:
    """Comments change no digest; a severity, a bound or the order of entries do."""
    file = tmp_path / "suite.yaml"
    dataset = payments(suite="suite.yaml", file=tmp_path / "payments.yaml")

    def digest(text: str) -> str:
        file.write_text(text, encoding="utf-8")
        return suite_digest(dataset)

    text = default_suite_text(dataset)
    first = digest(text)
    assert digest(text + "# a remark\n") == first
    assert digest(text.replace("severity: warning", "severity: info")) != first
    assert digest(text.replace("max_value: 1000.5", "max_value: 1000")) != first


def test_great_expectations_gets_every_entry() -> None:
    """Type, arguments and severity arrive, and each expectation knows its place in the suite."""
    suite = parse(
        "{type: expect_column_values_to_be_between, column: amount, max_value: 5, mostly: 0.995, severity: info}",
        "{type: expect_table_row_count_to_be_between, min_value: 1, severity: warning}",
    )
    first, second = sorted(to_gx(suite).expectations, key=lambda e: e.meta["position"])
    assert (first.expectation_type, first.mostly, first.severity.value) == (suite.expectations[0].type, 0.995, "info")
    assert (second.min_value, second.severity.value) == (1, "warning")


def test_reading_a_suite_imports_no_heavy_library() -> None:
    """A command that only reads suites does not wait for Great Expectations."""
    code = (
        "import sys; from pipeline.config import load_dataset; from pipeline.suites import load_suite;"
        f"load_suite(load_dataset('cards', {str(ROOT / 'datasets')!r}));"
        "print([name for name in ('great_expectations', 'pandas', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_default_text_explains_itself() -> None:
    """The default suite is YAML with a comment for each word that an analyst meets in it."""
    text = default_suite_text(payments())
    assert set(yaml.safe_load(text)) == {"readable", "expectations"}
    for word in ("severity", "critical", "warning", "info", "mostly", "readable", "EUR"):
        assert any(word in line for line in text.splitlines() if line.lstrip().startswith("#"))


def test_types_that_run_queries_are_not_offered() -> None:
    """Expectations that execute SQL, or need another table, are no part of a suite."""
    offered = set(expectation_types())
    assert len(offered) > 40
    assert not {name for name in offered if "query" in name or "other_table" in name or "like_pattern" in name}
