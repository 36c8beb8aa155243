"""Reads one DAG file as Airflow's DAG processor does and prints what it took; run as a process of its own."""

import json
import sys
import time

from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization


def main() -> None:
    """Read the file that is the only argument; the last line of the output is JSON."""
    times = [(time.process_time(), time.monotonic())]
    bag = DagBag(sys.argv[1])
    times.append((time.process_time(), time.monotonic()))
    written = sum(len(json.dumps(DagSerialization.serialize_dag(dag), default=str)) for dag in bag.dags.values())
    times.append((time.process_time(), time.monotonic()))
    (begun, start), (read, end), (serialized, _) = times
    print(json.dumps({
        "dags": len(bag.dags), "errors": len(bag.import_errors), "seconds": end - start,
        "processor_seconds": read - begun, "serialize_processor_seconds": serialized - read, "bytes": written,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
