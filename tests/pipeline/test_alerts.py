"""What a service is sent and receives, and the message that a run has failed: what Airflow's callbacks make of it."""

import email
import email.policy
import socketserver
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.alerts import Target, compose, keep_error, send, tell_failure
from pipeline.config import Route
from pipeline.errors import ConfigError, DeadlineMissedError, GateRefusedError, NightsiftError
from pipeline.message import Block, Message
from tests.conftest import SENSOR
from tests.pipeline.test_message import LINK, NASTY, message
from tests.pipeline.test_notify import SECRET, Server


class Instance(SimpleNamespace):
    """A task instance of Airflow, as far as a callback needs it."""

    task_id, map_index, log_url = "validate", -1, "http://airflow/dags/demo_nightly/runs/r/tasks/validate"

    def xcom_push(self, key: str, value: Any) -> None:
        self.kept = {key: value}

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int) -> Any:
        assert (task_ids, map_indexes) == (self.task_id, self.map_index)
        return self.kept[key]


def fail(error: BaseException | None, folder: Path, ti: Instance | None = None, reason: str = "task_failure") -> None:
    """What Airflow does of a run whose task ended with `error`, or was killed."""
    (folder / "demo.yaml").write_text(SENSOR + "notify: {urls_env: [OPS]}\n")
    ti = ti or Instance()
    keep_error({"ti": ti, "exception": error} if error else {"ti": ti})
    tell_failure("demo", folder, {"dag": SimpleNamespace(dag_id="demo_nightly"), "run_id": "r", "ti": ti,
                                  "reason": reason})  # fmt: skip


@pytest.mark.parametrize(
    ("error", "index", "reason", "first"),
    [
        (GateRefusedError("demo 2026-03-05: refused"), -1, "task_failure",
         "The task validate failed: demo 2026-03-05: refused"),
        (ValueError("no such column"), 3, "task_failure", "The task validate[3] failed: ValueError: no such column"),
        (OSError("postgresql://ann:hunter2secret@db/x is gone"), -1, "task_failure",
         "The task validate failed: OSError: postgresql://***@db/x is gone"),
        (None, -1, "task_failure", "The task validate failed."),
        (None, -1, "timed_out", "The run took too long and was ended; the task validate was not done."),
    ],
)  # fmt: skip
def test_a_failed_run_is_told_with_task_error_and_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, index: int, reason: str, first: str
) -> None:
    """One of our errors is its sentence; a killed process leaves none; no password of an address is told."""
    server = Server()
    monkeypatch.setenv("OPS", server.url)
    fail(error, tmp_path, Instance(map_index=index), reason)
    server.stop()
    (message,) = server.received
    lines = message["message"].splitlines()
    assert message["title"] == "demo: demo_nightly failed"
    assert lines[0] == first
    assert lines[-2:] == ["Run: r", f"Log: {Instance.log_url}"]
    assert ("It left no error" in message["message"]) == (error is None and reason != "timed_out")
    assert SECRET not in message["message"]


def test_what_was_told_already_is_not_told_as_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missed deadline fails its task after its own message."""
    server = Server()
    monkeypatch.setenv("OPS", server.url)
    fail(DeadlineMissedError("demo 2026-03-05 is not done"), tmp_path)
    server.stop()
    assert server.received == []


def test_a_run_without_a_task_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow names none where none of the run's tasks is in the DAG any more."""
    server = Server()
    monkeypatch.setenv("OPS", server.url)
    (tmp_path / "demo.yaml").write_text(SENSOR + "notify: {urls_env: [OPS]}\n")
    tell_failure("demo", tmp_path, {"dag": SimpleNamespace(dag_id="demo_train"), "run_id": "r", "reason": "x"})
    server.stop()
    assert server.received[0]["message"].splitlines()[0] == "It failed."


def test_a_target_that_fails_is_named_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the DAG processor's log says what to mend; nothing of the address is in it."""
    monkeypatch.setenv("OPS", f"nosuchservice://{SECRET}")
    with pytest.raises(NightsiftError, match="OPS: not a URL that Apprise knows") as error:
        fail(ValueError("x"), tmp_path)
    assert SECRET not in str(error.value)
    monkeypatch.delenv("OPS")
    with pytest.raises(ConfigError, match="names OPS, but this environment variable is not set"):
        fail(ValueError("x"), tmp_path)


def test_without_who_is_told_everything_a_failure_goes_to_the_routes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no severity; where somebody is told everything, the routes hear nothing of it."""
    server = Server()
    monkeypatch.setenv("OPS", server.url)
    context = {"dag": SimpleNamespace(dag_id="demo_train"), "run_id": "r", "reason": "x"}
    routes = "notify: {routes: [{urls_env: [OPS], severity: 5, kinds: [anomaly]}]"
    for text in (f"{routes}}}\n", f"{routes}, urls_env: [TEAM]}}\n"):
        monkeypatch.setenv("TEAM", server.url.replace("/hook", "/team"))
        (tmp_path / "demo.yaml").write_text(SENSOR + text)
        tell_failure("demo", tmp_path, context)
    server.stop()
    assert [path.split("/")[1] for path in server.paths] == ["hook", "team"]


# --- what arrives


class Mailbox(socketserver.ThreadingTCPServer):
    """An SMTP server on 127.0.0.1 that keeps what it is sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Delivery)
        self.received: list[EmailMessage] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class Delivery(socketserver.StreamRequestHandler):
    """One conversation, as far as RFC 5321 has a sender need it."""

    server: Mailbox

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        for line in self.rfile:
            if line.strip().upper() == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                raw = b"".join(iter(self.rfile.readline, b".\r\n"))
                self.server.received.append(email.message_from_bytes(raw, policy=email.policy.default))  # type: ignore[arg-type]
            self.wfile.write(b"250 fine\r\n")


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    one = Mailbox()
    yield one
    one.stop()


def target(url: str) -> Target:
    return Target("OPS", url, Route(urls_env=["OPS"]))


def test_a_mail_has_a_page_and_its_text_with_the_data_escaped(mailbox: Mailbox) -> None:
    """What arrives by SMTP: the title as subject, HTML as it was made, and plain text that says the same."""
    sent = message(NASTY)
    address = f"mailto://127.0.0.1:{mailbox.server_address[1]}?from=night@example.com&to=ann@example.com"
    assert send(target(address), sent) == ""
    (mail,) = mailbox.received
    html, text = (mail.get_body((kind,)).get_content() for kind in ("html", "plain"))  # type: ignore[union-attr]
    assert mail["subject"] == sent.title
    assert ("html", html.replace("\r\n", "\n").strip()) == compose(target(address), sent)[:2]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert f"{NASTY}: from 18:21 to 21:32 UTC" in text.replace("\N{ZERO WIDTH SPACE}", "")
    assert "12.4 × the threshold" in text
    assert LINK in text


def test_a_chat_is_sent_markdown_with_the_data_escaped() -> None:
    """What a Mattermost server receives: one text with the title, in which nothing from the data is a mark."""
    server = Server()
    assert send(target(f"mmost://127.0.0.1:{server.http.server_port}/{'a' * 26}"), message(NASTY)) == ""
    server.stop()
    (received,) = server.received
    assert received["text"].startswith("pumps: 3 incidents")
    assert "**\\<script>alert(1)\\</script> \\[x\\](javascript:alert(1)) \\*a\\* " in received["text"]
    assert "- [Open the incident](https://airflow.example/" in received["text"]


def test_a_service_of_ones_own_is_sent_plain_text() -> None:
    """JSON with title and message, as they stand; another form where the URL asks for it."""
    server = Server()
    for url in (server.url, f"{server.url}?format=markdown"):
        assert send(target(url), message(NASTY)) == ""
    server.stop()
    plain, marked = (received["message"] for received in server.received)
    assert plain.startswith(f"{NASTY}: from 18:21 to 21:32 UTC\n  12.4 × the threshold\n")
    assert marked.startswith("**\\<script>")


@pytest.mark.parametrize(
    ("url", "form"),
    [
        ("mailto://127.0.0.1?from=a@b.de&to=c@d.de", "html"),
        ("mailto://127.0.0.1?from=a@b.de&to=c@d.de&format=text", "text"),
        ("slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ", "markdown"),
        ("tgram://123456789:abcdefg_hijklmnop/12315544", "markdown"),
        ("discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js", "markdown"),
        ("mmost://127.0.0.1/token", "markdown"),
        ("ntfy://topic", "text"),
        ("json://127.0.0.1", "text"),
        ("json://127.0.0.1?format=html", "html"),
        ("nosuchservice://x", "text"),
        ("", "text"),
    ],
)
def test_each_service_is_sent_what_it_shows(url: str, form: str) -> None:
    """HTML for mail, Markdown for chats, also those that Apprise takes for plain text, and text for the rest."""
    assert compose(target(url), message("pump-1"))[0] == form


@pytest.mark.parametrize("url", ["discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js", "mmost://127.0.0.1/token"])
def test_a_message_is_no_longer_than_the_service_takes(url: str) -> None:
    """Title included; how many are left out stands in it."""
    many = message(*(f"pump-{n:04}" for n in range(300)))
    _, body, _ = compose(target(url), many)
    limit = {"discord": 2000, "mmost": 4000}[url.partition(":")[0]]
    assert limit - 400 < len(many.title) + len(body) < limit
    kept = body.count("12.4 × the threshold")
    assert f"and {2 * (300 - kept)} more of {300 - kept} entities, for which this message has no room" in body


def test_of_one_that_cannot_be_shortened_every_part_is_sent() -> None:
    """A block longer than all that the service takes comes in several messages, not cut off."""
    server = Server()
    words = [f"word{n}" for n in range(2000)]
    long = Message("t", (Block("pump-1", "x"),), (" ".join(words),))
    assert send(target(f"mmost://127.0.0.1:{server.http.server_port}/{'a' * 26}"), long) == ""
    server.stop()
    assert len(server.received) > 1
    assert " ".join(received["text"] for received in server.received).split()[-2000:] == words
