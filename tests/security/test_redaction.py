"""What is taken out of a text as a secret, and what is left as it is."""

import pytest

from pipeline.redaction import secrets, without_secrets


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


def test_airflow_is_told_to_mask_no_common_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would mask it in each log of a task."""
    monkeypatch.setenv("DATABASE", "postgresql://airflow:airflow@pg/airflow")
    monkeypatch.setenv("USE_TOKEN", "true")
    assert not {"airflow", "true"} & {*secrets()}
