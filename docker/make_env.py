"""Makes .env, the secrets and settings that docker-compose.yml reads; needs nothing but Python.

What stands there stays: a second run adds what a newer version asks for, and changes nothing.
"""

import base64
import os
import re
import secrets
import sys
from pathlib import Path


def fernet_key() -> str:
    """A key for Airflow's encryption of connections: 32 bytes in URL-safe base64."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def password() -> str:
    """24 random bytes in hexadecimal digits, which need no quoting in an address."""
    return secrets.token_hex(24)


SECRETS = {
    "AIRFLOW_ADMIN_PASSWORD": ("Airflow's user `admin`", password),
    "MLFLOW_ADMIN_PASSWORD": ("MLflow's user `admin`", password),
    "AIRFLOW_FERNET_KEY": ("encrypts the connections and variables in Airflow's database", fernet_key),
    "AIRFLOW_JWT_SECRET": ("signs the tokens of users and of tasks", password),
    "AIRFLOW_SECRET_KEY": ("signs what Airflow's services ask of one another", password),
    "MLFLOW_SECRET_KEY": ("protects MLflow's forms", password),
    "POSTGRES_PASSWORD": ("PostgreSQL's superuser", password),
    "AIRFLOW_DB_PASSWORD": ("Airflow's role in PostgreSQL", password),
    "MLFLOW_DB_PASSWORD": ("MLflow's role in PostgreSQL", password),
    "REDIS_PASSWORD": ("the queue of tasks", password),
    "OBJECTSTORE_ACCESS_KEY": ("the object store's user, for the profile objectstore", password),
    "OBJECTSTORE_SECRET_KEY": ("and its key", password),
}
SETTINGS = """\
# Who works off the queue `gpu`: cpu or gpu. Add `,objectstore` to keep the lake in the object store below.
COMPOSE_PROFILES=cpu

# NIGHTSIFT_BIND=127.0.0.1            the address on which the pages of Airflow and MLflow are served
# AIRFLOW_URL=http://localhost:8080   how browsers reach Airflow
# MLFLOW_HOSTS=mlflow:*,localhost:*,127.0.0.1:*   names under which MLflow answers; keep mlflow:*
# WORKER_CONCURRENCY=4                tasks at once on the default worker
# GPU_SLOTS=1                         tasks at once on all GPU workers together, when the pool is made

# NIGHTSIFT_SOURCES=/srv/readings,…     what the YAMLs may read: folders, addresses, variables; see docs/operations.md

# NIGHTSIFT_LAKE=s3://nightsift/lake
# AWS_ENDPOINT_URL=http://objectstore:8333
# AWS_ALLOW_HTTP=true
# AWS_REGION=us-east-1
# AWS_ACCESS_KEY_ID=${OBJECTSTORE_ACCESS_KEY}
# AWS_SECRET_ACCESS_KEY=${OBJECTSTORE_SECRET_KEY}
"""


def missing(text: str) -> list[str]:
    """The names of the secrets that `text`, the content of an .env file, does not set."""
    return [name for name in SECRETS if not re.search(rf"^{name}=\S", text, re.MULTILINE)]


def lines(names: list[str]) -> str:
    """A comment and a line with a new random value for each secret."""
    return "".join(f"# {SECRETS[name][0]}\n{name}={SECRETS[name][1]()}\n" for name in names)


def write(file: Path) -> str:
    """Make `file`, or add to it what is missing; it is its owner's alone to read. Returns what was done."""
    if not file.exists():
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(f"{lines(list(SECRETS))}\n{SETTINGS}")  # settings may name a secret: those come first
        return f"{file} is made; keep a copy where your other secrets are"
    text = file.read_text()
    added = missing(text)
    file.chmod(0o600)
    with file.open("a") as stream:
        stream.write(("\n" if text and text[-1] != "\n" else "") + lines(added) if added else "")
    return f"{file} was there and is kept" + (f"; added: {', '.join(added)}" if added else "")


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
