"""Whatever is posted to the incidents page: never a 500, and nothing is written without a verdict that counts."""

import json
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.review import LONGEST_NOTE, VERDICTS, WITHDRAWN, history
from tests.figures import long, recorded
from tests.pipeline.test_web import OURS, House, address, house_in, ids

CASES = 1000 if long() else 25
FUZZ = settings(max_examples=CASES, deadline=None, derandomize=not long(), database=None,
                suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
TEXT = st.one_of(
    st.text(max_size=40),
    st.sampled_from([*VERDICTS, WITHDRAWN, "", "Confirmed", "confirmed ", "\x00", "\ud800", "=1+1", "x" * 2001]),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3), max_leaves=8,
)  # fmt: skip
PARTS = st.one_of(TEXT, st.sampled_from(["..", "%2e%2e", "2026-03-25", "9999-12-31", "0001-01-01", "pumps"]))
ASKED = ["dataset", "first", "last", "entity", "kind", "state", "sort", "page", "least", "said"]
posted = {"POSTs": 0, "refused": 0, "recorded": 0, "said before": 0}
_figures = recorded(
    "security-page",
    "Requests of any content to the incidents page; one that is no verdict recorded nothing.",
    lambda: posted,
)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return house_in(tmp_path_factory.mktemp("house"))


def count(house: House, incident: str) -> int:
    return len(history(house.ws, incident))


def check(answer: Any, before: int, after: int, counts: bool) -> None:
    """A request that counts is recorded once, or stands there already; any other is not, and is told so."""
    posted["POSTs"] += 1
    posted["recorded" if after > before else "said before" if counts else "refused"] += 1
    assert answer.status_code < 500, answer.text
    assert "Traceback" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
    assert after - before <= int(counts), (answer.status_code, answer.text)
    assert counts or answer.status_code >= 400


def encoded(form: dict[str, str]) -> bytes:
    return urlencode(form, errors="surrogatepass").encode()


@FUZZ
@given(verdict=TEXT, note=TEXT, back=TEXT, more=st.dictionaries(st.text(max_size=9), TEXT, max_size=2))
def test_a_form_is_a_verdict_or_refused(house: House, verdict: str, note: str, back: str, more: dict[str, str]) -> None:
    """By the server, whatever the browser has let pass."""
    incident = ids(house.ws)["pump-1"]
    before = count(house, incident)
    form = {**more, "verdict": verdict, "note": note, "back": back}
    answer = house.client().post(
        f"/nightsift{address(house, 'pump-1', '/verdict')}", content=encoded(form), headers=OURS
    )
    assert answer.status_code in (303, 400)
    after = count(house, incident)
    check(answer, before, after, answer.status_code == 303)
    assert answer.status_code == 400 or verdict in (*VERDICTS, WITHDRAWN)
    assert answer.status_code == 400 or len(note) <= LONGEST_NOTE
    if answer.status_code == 303:
        assert answer.headers["location"].startswith("/nightsift/incidents")


@FUZZ
@given(body=st.binary(max_size=200))
def test_bytes_are_no_verdict(house: House, body: bytes) -> None:
    """Of a form or of a script."""
    incident = ids(house.ws)["pump-1"]
    for path in (address(house, "pump-1", "/verdict"), "/api/verdicts"):
        before = count(house, incident)
        answer = house.client().post(f"/nightsift{path}", content=body, headers=OURS)
        check(answer, before, count(house, incident), counts=False)


@FUZZ
@given(sent=JSON | st.fixed_dictionaries({"dataset": TEXT | st.just("pumps"), "verdicts": JSON})
       | st.fixed_dictionaries({"dataset": st.just("pumps"), "verdicts": st.lists(
           st.dictionaries(st.sampled_from(["incident", "verdict", "note", "more"]), JSON), max_size=3)}))  # fmt: skip
def test_json_is_verdicts_or_refused(house: House, sent: Any) -> None:
    """All of them or none: no incident is called so, so none is ever recorded."""
    incident = ids(house.ws)["pump-1"]
    before = count(house, incident)
    answer = house.client().post("/nightsift/api/verdicts", content=json.dumps(sent), headers=OURS)
    empty = isinstance(sent, dict) and sent.get("dataset") == "pumps" and sent.get("verdicts") == []
    posted["POSTs"] += 1
    posted["refused"] += answer.status_code >= 400
    assert answer.status_code < 500, answer.text
    assert answer.status_code >= 400 or empty
    assert count(house, incident) == before


@FUZZ
@given(parts=st.lists(PARTS, min_size=1, max_size=4), query=st.dictionaries(st.sampled_from(ASKED), TEXT, max_size=3))
def test_no_address_leads_out_or_breaks(house: House, parts: list[str], query: dict[str, str]) -> None:
    """Of a dataset, day or incident that is none; and no query breaks a page."""
    below = "/".join(quote(part, safe="", errors="surrogatepass") for part in parts)
    asked = urlencode(query, errors="surrogatepass")
    for path in ("incidents", f"incidents/{below}", f"reports/{below}", f"api/{below}"):
        answer = house.client().get(f"/nightsift/{path}?{asked}")
        assert answer.status_code < 500, (path, answer.text)
        assert str(house.ws.home.root) not in answer.text


def test_each_answer_has_the_headers_that_protect_it(house: House) -> None:
    """Pages, scripts' answers, refusals and what is not there, alike."""
    for path in ("/incidents", address(house, "pump-1"), "/api/incidents", "/nothing", "/reports/pumps/2026-03-25"):
        headers = house.get(path).headers
        policy = headers["content-security-policy"]
        for word in ("default-src 'none'", "frame-ancestors 'self'", "base-uri 'none'", "form-action "):
            assert word in policy, (path, policy)
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
