"""What our code never does, read from the code itself; and the lock, from which nothing comes but what was checked."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.rendering import environment

ROOT = Path(__file__).parents[2]
OURS = [file for folder in ("pipeline", "models", "dags", "plugins", "docker", "benchmarks")
        for file in sorted((ROOT / folder).rglob("*.py"))]  # fmt: skip
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {
    "eval", "exec", "os.system", "os.popen", "torch.load", "pandas.read_pickle", "pd.read_pickle", "yaml.load",
    "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "keras.models.load_model", "keras.saving.load_model",
    "keras.config.enable_unsafe_deserialization", "mlflow.pyfunc.load_model",
}  # fmt: skip
ARGUMENTS = {"allow_pickle": True, "safe_mode": False, "shell": True, "trust_remote_code": True, "autoescape": False}


def forbidden(text: str) -> Iterator[str]:
    """What a Python text does that could run what stands in data."""
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in PICKLES)
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), {each.arg: each.value for each in node.keywords}
        if called in CALLS or called.endswith((".read_pickle", ".to_pickle")):
            yield f"{node.lineno}: {called}"
        if called in ("np.load", "numpy.load") and ast.unparse(given.get("allow_pickle", node)) != "False":
            yield f"{node.lineno}: {called} without allow_pickle=False"
        for name, value in ARGUMENTS.items():
            if isinstance(found := given.get(name), ast.Constant) and found.value is value:
                yield f"{node.lineno}: {called}({name}={value})"


def test_our_code_runs_nothing_that_stands_in_data() -> None:
    """No pickle, no loader of YAML or Keras that runs code, no eval, no shell, no page without escaping."""
    found = [f"{file.relative_to(ROOT)}:{what}" for file in OURS for what in forbidden(file.read_text())]
    assert len(OURS) > 50
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from cloudpickle import loads", "import joblib.numpy_pickle", "import yaml\nyaml.load(x, y)",
        "np.load(file)", "np.load(file, allow_pickle=True)", "eval('1')", "os.system(x)", "run(x, shell=True)",
        "keras.models.load_model(x)", "load(x, safe_mode=False)", "frame.read_pickle(x)", "torch.load(x)",
    ],
)  # fmt: skip
def test_what_is_forbidden_would_be_found(text: str) -> None:
    """Each of them, wherever it stands."""
    assert list(forbidden(f"def f(x, y):\n    {text.replace(chr(10), chr(10) + '    ')}"))


def test_templates_escape_all_but_words_of_their_own() -> None:
    """What is passed on as it is, is a literal in the template."""
    assert environment().autoescape is True
    texts = [file.read_text() for file in (ROOT / "pipeline" / "templates").glob("*.jinja")]
    assert sum(len(re.findall(r"'[^']*' \| safe", text)) for text in texts) > 0
    assert [text for text in texts if "safe" in re.sub(r"'[^']*' \| safe|unsafe-inline", "", text)] == []


def test_each_package_of_the_locks_has_a_version_and_hashes() -> None:
    """No address, no range, no archive of another origin; and no index is named that others could not reach."""
    for lock in sorted(ROOT.glob("requirements*.lock")):
        text = re.sub(r"\\\n\s*", "", lock.read_text())
        lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        assert len(lines) > 10
        assert [
            line
            for line in lines
            if not re.match(r"[\w.-]+(\[[\w,-]+\])?==[\w.!+]+ .*--hash=sha256:[0-9a-f]{64}", line)
        ] == []
        assert not re.search(r"://|^-|--index|--find-links| @ ", text, re.MULTILINE)
