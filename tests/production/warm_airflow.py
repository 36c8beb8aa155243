"""Runs commands, each in a fork of this one process, which has imported the heavy libraries before.

Reads a line of JSON for each, `{"module": "airflow.__main__", "arguments": [...], "log": FILE, "env": {...}}`, and
answers with the process id. Every command gets a session of its own, and is told to end when this process does. So a
worker that replaces one that was killed is there at once, and the libraries are imported once for all of them.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
import traceback

from pipeline.warm_scheduler import LIBRARIES, WORKER

COMMANDS = ("airflow.__main__", "airflow.providers.celery.executors.celery_executor", "airflow.api_fastapi.app",
            "airflow.jobs.scheduler_job_runner", "airflow.dag_processing.manager")  # fmt: skip


def main() -> None:
    """Import, say so, then start what is asked for until the end of standard input."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries write their warnings to standard output
    for module in (*LIBRARIES, *WORKER, *COMMANDS):
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries those that have ended
    print("ready", file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            run(**asked)
        print(child, file=answers)


def run(module: str, arguments: list[str], log: str, env: dict[str, str]) -> None:
    """In the fork: run the `main` of the module with these arguments, and end."""
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for stream, file in ((0, nothing), (1, out), (2, out)):
        os.dup2(file, stream)
    os.environ.update(env)
    sys.argv = [module, *arguments]
    try:
        importlib.import_module(module).main()
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
