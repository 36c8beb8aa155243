"""docker-compose.yml, the image and .env: what holds for a deployment before anything is started."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from cryptography.fernet import Fernet
from dotenv import dotenv_values

from pipeline.parts import scratch
from pipeline.workspace import Workspace

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "NIGHTSIFT_" in service["image"]}
REQUIRED = set(re.findall(r"\$\{(\w+):\?run make env first\}", TEXT))


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docker" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_env(file: Path) -> str:
    command = [sys.executable, ROOT / "docker/make_env.py", file]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def values(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def queue_workers(profiles: set[str], queue: str) -> list[str]:
    """The services that run with `profiles` and work off `queue`."""
    return [
        name
        for name, service in SERVICES.items()
        if "--queues" in (command := service.get("command", []))
        and command[command.index("--queues") + 1] == queue
        and (not service.get("profiles") or profiles & set(service["profiles"]))
    ]


def test_the_file_follows_the_compose_specification() -> None:
    """No key is misspelt or misplaced."""
    schema = get_builtin_schema("vendor.compose-spec")
    jsonschema.validators.validator_for(schema)(schema).validate(COMPOSE)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validators.validator_for(schema)(schema).validate(
            {"services": {"worker": {"image": "a", "helthcheck": {}}}}
        )


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_watched_and_restarted(name: str) -> None:
    """Each service has a health check and is restarted; the one that ends by itself is only restarted if it failed."""
    service = SERVICES[name]
    if name == "init":
        assert service["restart"] == "on-failure"
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert service["logging"]["options"]["max-size"], "logs must not fill the disk"


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_has_a_version(name: str) -> None:
    """An image is named with a version, never `latest`."""
    image = re.sub(r"\$\{\w+:-(.*)\}", r"\1", SERVICES[name]["image"])
    assert re.fullmatch(r"[\w./-]+:\d[\w.-]*", image), image


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_the_loopback_address(name: str) -> None:
    """Who reaches a page from another machine has said so with NIGHTSIFT_BIND; databases are never published."""
    ports = SERVICES[name].get("ports", [])
    assert all(port.startswith("${NIGHTSIFT_BIND:-127.0.0.1}:") for port in ports)
    assert bool(ports) == (name in ("api-server", "mlflow"))


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_stands_in_the_file(name: str) -> None:
    """Passwords and keys, and addresses that hold one, come from .env, and the service does not start without."""
    environment: dict[str, str | None] = SERVICES[name].get("environment", {})
    for key, value in environment.items():
        secret = re.search(r"PASSWORD$|SECRET|_KEY", key) or (value and "@" in value)
        # AWS_…: and a key without a value is what the shell or .env has.
        if secret and value is not None:
            assert "${" in value, key
            assert re.findall(r"\$\{(\w+):\?run make env first\}", value), key
    assert not re.search(r"[0-9a-f]{16}", json.dumps(SERVICES[name]))


@pytest.mark.parametrize("name", OURS)
def test_our_services_cannot_gain_rights(name: str) -> None:
    """Our services run as the image's user, without capabilities; code and what a user writes are read-only."""
    service = OURS[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert {entry.partition(":")[0] for entry in service["tmpfs"]} == {"/tmp", "/opt/airflow"}
    assert not {"user", "privileged", "cap_add"} & set(service)
    host = [volume for volume in service["volumes"] if volume.startswith(".")]
    assert all(volume.endswith(":ro") for volume in host)


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_can_gain_rights_or_reach_the_machine(name: str) -> None:
    """None is privileged, shares a name space with the machine, or has Docker's socket."""
    service = SERVICES[name]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"} & set(service)
    assert "docker.sock" not in json.dumps(service)


@pytest.mark.parametrize("name", [name for name in OURS if name != "mlflow"])
def test_yamls_may_read_what_is_theirs(name: str) -> None:
    """Neither Airflow's database nor its password file, unless an operator adds it."""
    given = SERVICES[name]["environment"]
    folders = re.sub(r"\$\{NIGHTSIFT_SOURCES:-(.*)\}", r"\1", given["NIGHTSIFT_SOURCES"]).split(",")
    assert folders == ["/var/lib/nightsift/source", "/var/lib/nightsift/labels", "/var/lib/nightsift/calendars",
                       "/opt/nightsift/datasets", "/opt/nightsift/expectations", "s3://", "gs://", "az://"]  # fmt: skip
    assert not {*folders} & {*given}


@pytest.mark.parametrize("name", [name for name in OURS if name.startswith("worker")])
def test_a_large_days_parts_are_written_to_a_disk(
    name: str, make_workspace: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the lake is an object store: /tmp is memory, the state folder a volume."""
    (home,) = re.findall(r"NIGHTSIFT_HOME=(\S+)", (ROOT / "docker/Dockerfile").read_text())
    monkeypatch.setenv("NIGHTSIFT_LAKE", "s3://bucket/lake")
    ws = make_workspace()
    with scratch(ws, "validate-2024-01-02") as folder:
        place = home / folder.relative_to(ws.home.root)
    assert any(place.is_relative_to(volume.split(":")[1]) for volume in SERVICES[name]["volumes"])
    assert not any(place.is_relative_to(entry.partition(":")[0]) for entry in SERVICES[name]["tmpfs"])


def test_all_that_the_image_lets_its_user_write_is_a_volume_or_passes() -> None:
    """So that a file system that cannot be written stops no service."""
    text = (ROOT / "docker/Dockerfile").read_text()
    (made,) = re.findall(r"install -d -o nightsift -g 0 -m 775 (.*)", text)
    for service in OURS.values():
        kept = {volume.split(":")[1] for volume in service["volumes"]}
        kept |= {entry.partition(":")[0] for entry in service["tmpfs"]}
        other = {"/var/lib/nightsift", "/var/lib/mlflow"} - kept
        assert set(made.split()) - kept == other
        assert len(other) == 1, "MLflow keeps artifacts, Airflow's services keep state"


def test_the_image_runs_as_a_user_who_owns_no_code() -> None:
    """The last USER of the Dockerfile is not root, and what is copied is root's."""
    lines = (ROOT / "docker/Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER 50000:0"
    assert not any("--chown" in line for line in lines)
    assert all(":" in line or "$" in line or line.split()[1].islower() for line in lines if line.startswith("FROM "))
    bases = [line.split()[1] for line in lines if line.startswith("FROM ") and ":" in line]
    assert bases == ["python:3.11-slim-bookworm"]


def test_secrets_reach_neither_git_nor_the_image() -> None:
    """.env and tasks.env are ignored by git, and the image is built from named files only."""
    assert {".env", "tasks.env"} <= set((ROOT / ".gitignore").read_text().split())
    allowed = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] not in "#"]
    assert allowed[0] == "*"
    assert not any("env" in line for line in allowed)


@pytest.mark.parametrize(("profile", "worker"), [("cpu", "worker-cpu"), ("gpu", "worker-gpu")])
def test_each_queue_has_one_worker(profile: str, worker: str) -> None:
    """With either profile just one service works off the queue `gpu`, a task at a time; `default` has its own."""
    assert queue_workers({profile}, "gpu") == [worker]
    assert queue_workers({profile}, "default") == ["worker"]
    assert SERVICES[worker]["command"][-2:] == ["--concurrency", "1"]


def test_only_the_gpu_profile_asks_for_a_device() -> None:
    """A machine without a GPU starts everything but the GPU worker."""
    asking = [name for name, service in SERVICES.items() if "devices" in json.dumps(service.get("deploy", {}))]
    assert asking == ["worker-gpu"]
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]


def test_make_env_gives_all_that_compose_requires(tmp_path: Path) -> None:
    """Every variable that compose insists on is there, random, unequal to the others and readable by its owner only."""
    file = tmp_path / ".env"
    assert "is made" in make_env(file)
    env = values(file)
    assert REQUIRED
    assert set(env) >= REQUIRED
    hidden = [value for name, value in env.items() if name != "COMPOSE_PROFILES"]
    assert len(set(hidden)) == len(hidden)
    assert all(len(value) >= 44 for value in hidden)
    assert Fernet(env["AIRFLOW_FERNET_KEY"].encode())
    assert file.stat().st_mode & 0o777 == 0o600
    assert queue_workers({env["COMPOSE_PROFILES"]}, "gpu")
    make_env(tmp_path / "other")
    assert not {*hidden} & set(values(tmp_path / "other").values())


def test_make_env_changes_nothing_that_is_there(tmp_path: Path) -> None:
    """A second run leaves the file as it is; where a secret is missing, just that one is added."""
    file = tmp_path / ".env"
    make_env(file)
    before = file.read_text()
    assert "was there and is kept" in make_env(file)
    assert file.read_text() == before
    file.write_text(re.sub(r"(?m)^REDIS_PASSWORD=.*\n", "", before))
    assert "added: REDIS_PASSWORD" in make_env(file)
    left, now = values(file), dict(line.split("=", 1) for line in before.splitlines() if re.match(r"[A-Z_]+=", line))
    assert left.keys() == now.keys()
    assert {name for name in now if left[name] != now[name]} == {"REDIS_PASSWORD"}


def test_make_env_adds_lines_of_their_own(tmp_path: Path) -> None:
    """A file whose last line was never ended keeps that line as it is."""
    file = tmp_path / ".env"
    file.write_text("AIRFLOW_PORT=8088")
    make_env(file)
    assert values(file)["AIRFLOW_PORT"] == "8088"
    assert set(values(file)) >= REQUIRED


def test_the_object_stores_lines_have_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncommented, the lines for the lake in the object store have its user and key, which stand above them."""
    file = tmp_path / ".env"
    make_env(file)
    for name in REQUIRED:
        monkeypatch.delenv(name, raising=False)
    file.write_text(re.sub(r"(?m)^# (?=AWS_|NIGHTSIFT_LAKE)", "", file.read_text()))
    env = dotenv_values(file)
    assert env["AWS_ACCESS_KEY_ID"] == env["OBJECTSTORE_ACCESS_KEY"] != ""
    assert env["AWS_SECRET_ACCESS_KEY"] == env["OBJECTSTORE_SECRET_KEY"] != ""
    assert env["NIGHTSIFT_LAKE"] == "s3://nightsift/lake"


def test_a_worker_without_its_queue_is_told_in_a_line() -> None:
    """A health check never ends in a traceback: what Celery raises where the broker is away is a sentence too."""
    env = {**os.environ, "AIRFLOW__CELERY__BROKER_URL": "redis://127.0.0.1:9/0"}
    command = [sys.executable, ROOT / "docker/health.py", "worker"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("worker does not answer: ")
    assert done.stderr.count("\n") == 1


def test_services_outlast_a_database_that_starts_later(tmp_path: Path) -> None:
    """The entry point waits for each address of NIGHTSIFT_WAIT_FOR, and then becomes its command."""
    with socket.socket() as later:
        later.bind(("127.0.0.1", 0))
        port = later.getsockname()[1]
        env = {**os.environ, "NIGHTSIFT_WAIT_FOR": f"127.0.0.1:{port}", "AIRFLOW_HOME": str(tmp_path)}
        command = [ROOT / "docker/entrypoint.sh", "bash", "-c", "echo $$ started"]
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
            time.sleep(1.5)
            assert process.poll() is None
            later.listen()
            assert process.communicate(timeout=60)[0] == f"{process.pid} started\n"


def test_airflows_password_is_the_one_of_the_environment(tmp_path: Path) -> None:
    """The entry point writes the password file, for the service's user alone; without a password it writes none."""
    file = tmp_path / "passwords.json"
    for password in ("", "a1b2"):
        env = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "AIRFLOW_ADMIN_PASSWORD": password}
        subprocess.run([ROOT / "docker/entrypoint.sh", "true"], env=env, check=True)
        assert file.exists() == bool(password)
    assert json.loads(file.read_text()) == {"admin": "a1b2"}
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("status", "works"), [("healthy", True), ("unhealthy", False), (None, False)])
def test_a_service_without_an_address_is_judged_by_its_heartbeat(
    monkeypatch: pytest.MonkeyPatch, status: str | None, works: bool
) -> None:
    """The health check of the DAG processor is what Airflow says of its heartbeat."""

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"dag_processor": {"status": status}}).encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        health = script("health")
        monkeypatch.setattr(health, "API", f"http://127.0.0.1:{server.server_port}/")
        assert health.healthy("dag-processor") is works
        server.shutdown()


def test_the_override_for_several_machines_fits() -> None:
    """What docs/operations.md tells to write is valid, and names services and volumes that there are."""
    [text] = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/operations.md").read_text(), re.DOTALL)
    override = yaml.safe_load(text)
    schema = get_builtin_schema("vendor.compose-spec")
    jsonschema.validators.validator_for(schema)(schema).validate(override)
    assert override["services"].keys() <= SERVICES.keys()
    assert override["volumes"].keys() <= COMPOSE["volumes"].keys()


def test_it_is_written_down_how_each_secret_is_rotated() -> None:
    """The table of docs/operations.md has a row for every secret that make env makes."""
    table = (ROOT / "docs/operations.md").read_text().split("## Rotating secrets")[1]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"\w{5,}", row)} == set(script("make_env").SECRETS)
