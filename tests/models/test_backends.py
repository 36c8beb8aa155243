"""The layers and the autoencoder run on JAX and on Torch too; TensorFlow is the backend of the ordinary tests."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]

# Trains a step with hidden cells and missing values, then predicts; TensorFlow may not be imported on the way.
AUTOENCODER = """
import sys
sys.modules["tensorflow"] = None
import numpy as np
from models.autoencoder import AutoencoderConfig, build_autoencoder, expect, fit
rng = np.random.default_rng(0)
values = rng.normal(size=(6, 3, 4, 2)).astype("float32")
mask = rng.random((6, 3, 4)) < 0.8
observed = (rng.random(values.shape) < 0.9) & mask[..., None]
values[~observed] = np.nan
model = build_autoencoder(AutoencoderConfig(steps=3, rows=4, channels=2, filters=(4,)))
losses = fit(model, values, observed, mask, epochs=2, batch=4)["loss"]
expected = expect(model, values, observed, mask)
assert np.isfinite(losses).all() and losses[1] != losses[0], losses
assert expected.shape == values.shape and np.isfinite(expected).all() and expected[mask].any(), expected
assert not expected[~mask].any(), expected
print("trained and predicted")
"""


def run(backend: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python on the backend, from the root of the project."""
    assert importlib.util.find_spec(backend), f"{backend} is not installed: run the tests with `make test`."
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {"KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": ""}
    env |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # most of JAX's time here goes into compiling
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200, check=False
    )


@pytest.mark.timeout(1260)
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_every_law_of_the_layer_holds_on_the_backend(backend, tmp_path):
    """All tests of the layers pass there, and none is skipped."""
    report = tmp_path / "report.xml"
    options = ("-p", "no:cacheprovider", f"--junitxml={report}")
    done = run(backend, "-m", "pytest", "tests/models/test_layers.py", *options)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    [suite] = ElementTree.parse(report).getroot()
    assert int(suite.attrib["tests"]) > 10
    assert suite.attrib["skipped"] == "0", done.stdout


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_autoencoder_trains_and_predicts_on_the_backend(backend):
    done = run(backend, "-c", AUTOENCODER)
    assert done.returncode == 0, done.stdout + done.stderr[-5_000:]
    assert done.stdout.endswith("trained and predicted\n")
