"""What is taken out of a text as a secret, and what is left as it is."""

from pathlib import Path

import pytest

from pipeline.config import SHOWN, load_dataset
from pipeline.errors import LONGEST, ConfigError, one_line
from pipeline.redaction import secrets, without_secrets
from tests.conftest import SENSOR


@pytest.mark.parametrize(
    ("name", "value", "text", "told"),
    [
        ("HOOK_TOKEN", "slack://A/B/C", "cannot send to slack://A/B/C", "cannot send to ***"),
        ("DATABASE", "postgresql://u@h/db?password=hunter2secret", "no login with hunter2secret", "no login with ***"),
        ("DATABASE", "postgresql://u@h/db?a=b&sslpassword=p%21ssword", "no login: p!ssword", "no login: ***"),
        ("DATABASE", "postgresql://air:p@ssw0rd/x@pg/db", "no login of air:p@ssw0rd/x@pg", "no login of air:***@pg"),
        ("HOOKS", "json://a:planted1@h,json://b:planted2@h/?to=x@y", "planted1, planted2", "***, ***"),
        ("DATABASE", "postgresql://air:hunter2@pg/db", "q=hunter2&x, q%3Dhunter2%26x", "q=***&x, q%3D***%26x"),
        ("API_KEY", "planted-key+4711", "Bearer_planted-key+4711x", "Bearer_***x"),
        ("OTHER", "", "http://h/x?token=abc&day=1 and ?password=def", "http://h/x?token=***&day=1 and ?password=***"),
    ],
)  # fmt: skip
def test_a_secret_is_hidden(monkeypatch: pytest.MonkeyPatch, name: str, value: str, text: str, told: str) -> None:
    """Whatever form its variable has: an address as a whole, a parameter, a password with signs of an address."""
    monkeypatch.setenv(name, value)
    assert without_secrets(text) == told


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("DATABASE", "postgresql://airflow:airflow@pg/airflow", "run: airflow db migrate"),
        ("USE_TOKEN", "False", "shown: False, deep: false"),
        ("DATABASE", "postgresql://u:readings@pg/db", "misreadings, readings_2024"),
        ("DATABASE", "postgresql://u:12345@pg/db", "4712345 rows"),
    ],
)
def test_what_is_no_secret_is_left(monkeypatch: pytest.MonkeyPatch, name: str, value: str, text: str) -> None:
    """Neither a switch, nor a name of a user, nor a part of a longer word."""
    monkeypatch.setenv(name, value)
    assert without_secrets(text) == text


@pytest.mark.parametrize("before", range(LONGEST - 20, LONGEST))
def test_a_message_that_is_cut_within_a_secret_shows_no_part_of_it(
    monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """Of an address in the message, and of what the environment holds."""
    monkeypatch.setenv("API_KEY", "planted-key+4711")
    for said in ("http://ann:hunter2@host/api", "planted-key+4711"):
        told = one_line(ValueError("x" * before + " " + said))
        assert not {"ann", "hun", "pla"} & {told.strip("x ")[n : n + 3] for n in range(20)}, told


def test_a_value_cut_within_a_secret_shows_no_part_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As it stands in the YAML of a dataset where something else should."""
    monkeypatch.setenv("API_KEY", "planted-key+4711")
    (tmp_path / "demo.yaml").write_text(SENSOR + f"history: {'x' * (SHOWN - 9)} planted-key+4711\n")
    with pytest.raises(ConfigError, match=r"demo\.yaml: history: .* \(given: 'x+ \W*…?\)$"):
        load_dataset("demo", tmp_path)


@pytest.mark.parametrize("secret", ["two  blanks in it", "-----BEGIN-----\nplanted\n-----END-----"])
def test_a_secret_of_several_lines_or_blanks_is_known_though_the_message_is_put_on_one_line(
    monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv("PRIVATE_KEY", secret)
    assert one_line(ValueError(f"no key:\n{secret}\nat all")) == "no key: ***: at all"


def test_what_a_library_says_has_no_names_of_classes_no_colours_and_no_lines() -> None:
    said = "sqlalchemy.exc.OperationalError: \x1b[31mKernel error\x1b[0m:\n  ↳ footer\nValueError: gone"
    assert one_line(ValueError(said)) == "Kernel error: footer: gone"


def test_airflow_is_told_to_mask_no_common_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would mask it in each log of a task."""
    monkeypatch.setenv("DATABASE", "postgresql://airflow:airflow@pg/airflow")
    monkeypatch.setenv("USE_TOKEN", "true")
    assert not {"airflow", "true"} & {*secrets()}
