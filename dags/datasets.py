"""Makes YAMLs that cannot be read visible: each shows as an import error of this file in Airflow.

The other DAG files leave such a dataset out, so that one wrong YAML takes no other down; this file holds
no DAG and fails to import for as long as there is a wrong one.
"""

from pipeline.errors import ConfigError
from pipeline.wiring import read_datasets

if wrong := read_datasets()[1]:
    raise ConfigError("\n".join(map(str, wrong)))
