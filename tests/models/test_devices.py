"""What a network runs on changes nothing that it says: two devices as one, and mixed precision nearly as float32."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models import devices
from models.autoencoder import AutoencoderConfig, build_autoencoder, expect, fit
from models.devices import Devices, find_devices

# Logical devices can be made before TensorFlow is used only, so in a process of their own. Gradients are made large
# enough to be clipped, and the last batch is short, so that the devices' shares of it differ.
TWO = """
import json, sys
from contextlib import nullcontext
import numpy as np
import tensorflow as tf
from models import devices
from models.autoencoder import AutoencoderConfig, build_autoencoder, expect, fit

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
rng = np.random.default_rng(0)
values = 4 * rng.normal(size=(27, 2, 3, 2)).astype(np.float32)
mask = rng.random((27, 2, 3)) < 0.9
observed = (rng.random(values.shape) < 0.9) & mask[..., None]
config = AutoencoderConfig(steps=2, rows=3, channels=2, filters=(4,), latent=2, loss="squared")

def learn(scope):
    with scope:
        model = build_autoencoder(config, seed=1)
    history = fit(model, values, observed, mask, validation=(values[:9], observed[:9], mask[:9]), epochs=2, batch=8)
    flat = np.concatenate([weight.ravel() for weight in model.get_weights()])
    return devices.replicas(model), flat, expect(model, values, observed, mask, batch=4), history

one = learn(nullcontext())
two = learn(tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"]).scope())
flat = [float(np.abs(a - b).max()) for a, b in zip(one[1:3], two[1:3])]
losses = [float(np.abs(np.subtract(one[3][name], two[3][name])).max()) for name in one[3]]
print(json.dumps({"replicas": [one[0], two[0]], "weights": flat[0], "expected": flat[1], "losses": max(losses)}))
"""


def test_two_devices_learn_and_expect_what_one_does() -> None:
    """Weights, losses and expected values agree to float32's rounding, with a short last batch and clipping."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", TWO], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["replicas"] == [1, 2]
    assert max(found["weights"], found["expected"], found["losses"]) < 1e-5, found


@pytest.mark.parametrize("kind", ["convlstm1d", "conv1d", "lstm"])
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_expects_nearly_the_same(kind: str, precision: str) -> None:
    """With the weights of float32, expected values are float32, and off by less than 2 % of their spread (RMS)."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(16, 4, 4, 3)).astype(np.float32)
    mask = rng.random((16, 4, 4)) < 0.9
    observed = np.repeat(mask[..., None], 3, axis=-1)
    shape: dict[str, Any] = {"steps": 4, "rows": 4, "channels": 3, "filters": (8,), "kind": kind}
    exact, mixed = (build_autoencoder(AutoencoderConfig(**shape, precision=p), 1) for p in ("float32", precision))
    assert all(weight.dtype == np.float32 for weight in mixed.get_weights())
    mixed.set_weights(exact.get_weights())
    wanted, found = (expect(model, values, observed, mask) for model in (exact, mixed))
    assert found.dtype == np.float32
    assert 0 < (found - wanted).std() < 0.02 * wanted.std()


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_learns(precision: str) -> None:
    """Training goes on from epoch to epoch and ends at the loss of float32, within 2 %."""
    rng = np.random.default_rng(0)
    wave = np.sin(np.arange(64 * 16) / 3).reshape(64, 4, 4, 1).astype(np.float32)
    values = wave + 0.05 * rng.normal(size=wave.shape).astype(np.float32)
    ends = {}
    for each in ("float32", precision):
        model = build_autoencoder(AutoencoderConfig(steps=4, rows=4, channels=1, filters=(4,), precision=each), 1)
        history = fit(model, values, np.ones_like(values, bool), np.ones((64, 4, 4), bool), epochs=4, batch=16)
        ends[each] = history["loss"][-1]
        assert history["loss"][-1] < history["loss"][0]
    assert ends[precision] == pytest.approx(ends["float32"], rel=0.02)


@pytest.fixture
def fake_gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two GPUs that TensorFlow is made to believe in; what is asked of them, in order."""
    import tensorflow as tf

    asked: list[str] = []
    gpus = [SimpleNamespace(name=f"/physical_device:GPU:{n}") for n in range(2)]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus if kind == "GPU" else [])
    monkeypatch.setattr(
        tf.config.experimental, "set_memory_growth", lambda gpu, on: asked.append(f"{gpu.name} grows {on}")
    )
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda _: {"device_name": "Tesla"})
    find_devices.cache_clear()
    yield asked
    find_devices.cache_clear()


def test_memory_grows_on_every_gpu(fake_gpus: list[str]) -> None:
    """Each GPU is told to take memory as it needs it, once, before anything is built; a person reads what there is."""
    assert str(find_devices()) == "2 × Tesla"
    find_devices()
    assert fake_gpus == ["/physical_device:GPU:0 grows True", "/physical_device:GPU:1 grows True"]


def test_a_gpu_in_use_is_left_as_it_is(
    fake_gpus: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where TensorFlow was used before, memory cannot grow any more: that is a warning, not a failed task."""
    import tensorflow as tf

    def refuse(gpu: Any, on: bool) -> None:
        raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", refuse)
    with caplog.at_level(logging.WARNING):
        assert len(find_devices().gpus) == 2
    assert "GPU:1: its memory is taken all at once" in caplog.text


def test_all_gpus_share_the_batches(fake_gpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With several GPUs a network is built under a strategy over all of them; with one, or none, under none."""
    built = []
    strategy = SimpleNamespace(scope=lambda: built.append("mirrored") or devices.nullcontext())
    monkeypatch.setattr(devices, "_mirrored", lambda: strategy)
    with devices.scope():
        assert built == ["mirrored"]
    for few in (Devices(("Tesla",)), Devices(())):
        monkeypatch.setattr(devices, "find_devices", lambda few=few: few)
        with devices.scope():
            assert built == ["mirrored"]
    assert str(Devices(())) == "cpu"
