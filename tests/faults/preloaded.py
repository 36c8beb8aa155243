"""What the server of `harness` imports before it forks: all that a night imports in its steps, and some of it warm.

Nothing here may start a thread that a fork would lose: no table is read, no network is made.
"""

import os

os.environ |= {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A night of a few machines is over sooner without threads that wait for one another.
    **dict.fromkeys(("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1"),
}

import io

import matplotlib.figure

import pipeline.figures
import pipeline.rendering
import pipeline.train

# What finds its fonts and compiles its templates at the first use.
matplotlib.figure.Figure().subplots().figure.savefig(io.BytesIO())
pipeline.rendering.environment().get_template("report.html.jinja")
