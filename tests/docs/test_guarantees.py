"""The page of promises is what its parts give, and every test that it names is there."""

import ast
import json

import pytest
import yaml

from tests.guarantees import FIGURES, PAGE, PROMISES, ROOT, page

GIVEN = yaml.safe_load(PROMISES.read_text())
COUNTED = json.loads(FIGURES.read_text())


def test_the_page_is_made_of_the_promises_and_the_figures():
    """`make chaos` writes it; who changes a promise by hand runs `python -m tests.guarantees var/chaos`."""
    assert PAGE.read_text() == page(GIVEN, COUNTED)


@pytest.mark.parametrize("test", sorted({test for promise in GIVEN for test in promise["tests"]}))
def test_a_test_that_the_page_names_is_there(test):
    file, _, name = test.partition("::")
    functions = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if hasattr(node, "name")}
    assert not name or name in functions


# What must have been counted, and the least that must have been tried, of each figure that has it.
NOTHING = ("losses", "rows lost", "tracebacks", "hangs", "secrets found", "tables_that_differ", "days_seen_half")
LEAST = {
    ("kills", "kills"): 200, ("fuzz", "cases"): 5000, ("load", "rows_in"): 1e8, ("backfill", "nights"): 365,
    ("memory", "memory_limits"): 3, ("datasets", "datasets"): 1000,
}  # fmt: skip


def test_figures_are_of_the_long_version():
    """Every figure of a promise is there, and names the command that anybody can run."""
    assert set(COUNTED) == {name for promise in GIVEN for name in promise["figures"]}
    assert {told["command"] for name, told in COUNTED.items() if name != "load"} <= {"make chaos"}
    for (name, word), least in LEAST.items():
        assert COUNTED[name]["figures"][word] >= least
    assert COUNTED["load"]["figures"]["bound"] == "kept"


@pytest.mark.parametrize("name", sorted(COUNTED))
def test_nothing_was_lost(name):
    """Every figure but those of what is only measured says so, in its own words."""
    found = [COUNTED[name]["figures"][word] for word in NOTHING if word in COUNTED[name]["figures"]]
    assert set(found) <= {0}
    assert found or name in ("load", "datasets", "determinism-sensor", "determinism-transaction", "security-page")
