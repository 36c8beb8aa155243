"""Airflow's scheduler with the heavy libraries imported first: `python -m pipeline.warm_scheduler < /dev/null`.

The LocalExecutor runs each task in a fork of the scheduler, so what is imported here once is there in every task at
once; without this every task that validates, trains or scores spends 6 to 20 seconds of a core on imports. Only
libraries that start no threads on import stand here (a fork does not carry threads over), hence not Polars; and no
module of our own, so that tasks always run the code as it is on disk.
"""

import importlib
import sys

LIBRARIES = ("great_expectations", "scipy.stats", "matplotlib.figure", "tensorflow", "keras", "mlflow")
WORKER = (
    "airflow.sdk.execution_time.task_runner",
    "airflow.sdk.execution_time.supervisor",
    "airflow.dag_processing.dagbag",
)


def main() -> None:
    """Import the libraries, wait for the end of standard input, run `airflow scheduler` with this process's arguments.

    The wait lets whoever starts it make the database and Airflow's own settings meanwhile.
    """
    for library in LIBRARIES:
        importlib.import_module(library)
    sys.stdin.read()
    for module in WORKER:
        importlib.import_module(module)
    from airflow.__main__ import main as airflow

    sys.argv = ["airflow", "scheduler", *sys.argv[1:]]
    airflow()


if __name__ == "__main__":
    main()
