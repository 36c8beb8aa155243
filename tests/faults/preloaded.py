"""What the server of `harness` imports before it forks: all that a night imports in its steps, and some of it warm.

Nothing here may start a thread that a fork would lose: no table is read, no network is made.
"""

import importlib
import io
import os

os.environ |= {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "CUDA_VISIBLE_DEVICES": "-1",  # templates and nights are a CPU's, to the last bit, on a machine with a GPU as well
    # A night of a few machines is over sooner without threads that wait for one another.
    **dict.fromkeys(("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1"),
}
for name in (
    "great_expectations",
    "great_expectations.render.renderer.page_renderer",
    "great_expectations.render.view.view",
    "matplotlib.figure",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "tensorflow",
    "models.autoencoder",
    "models.detector",
    "pipeline.figures",
    "pipeline.rendering",
    "pipeline.train",
    "tests.faults.stage",
):
    importlib.import_module(name)

# What finds its fonts and compiles its templates at the first use.
importlib.import_module("matplotlib.figure").Figure().subplots().figure.savefig(io.BytesIO())
importlib.import_module("pipeline.rendering").environment().get_template("report.html.jinja")
