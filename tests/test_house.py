"""The layers of the package: which modules may import which, and how long a file may be."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "laennec"
# the lowest layer: modules that any subpackage may import
FOUNDATION = (
    "errors", "extension", "files", "progress", "rendering", "untrusted", "memory", "cache", "model_settings",
    "terminal", "processes", "sections",
)  # fmt: skip
LAYERS = dict.fromkeys(FOUNDATION, 0) | {
    "audio": 1, "corpora": 2, "encoders": 2, "losses": 2, "head": 3, "configuration": 3, "modeling": 4,
    "ensemble": 5, "packed_model": 5, "training": 6, "evaluation": 6, "hub": 7, "inference": 7, "study": 8,
    "benchmark": 8, "review": 8, "explore": 8, "cli": 9,
}  # fmt: skip
# imports of a higher layer within functions: (importing module, imported module) -> reason
UPWARD = {
    ("modeling", "laennec.inference.embed"): "`model.encode` is a shortcut to what `laennec embed` does",
    ("modeling", "laennec.hub.push"): "`model.push_to_hub` is transformers' name for what `laennec push` does",
    ("modeling", "laennec.inference.pipeline"): "`pipeline` of transformers must know the model when it is imported",
    ("training.embeddings", "laennec.inference.backends"): "encoder.backend: onnx embeds as prediction does",
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def subpackage(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(nodes):
    """The modules of the package, without its name, that these statements import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"laennec.{a.name}" for a in node.names] if node.module == "laennec" else [node.module or ""]
        else:
            continue
        yield from (n for n in names if n.startswith("laennec.") and subpackage_of(n) in LAYERS)


def subpackage_of(name):
    return name.split(".")[1]


def imported_subpackages(path):
    """The subpackages that a module imports at its top level."""
    return {subpackage_of(name) for name in imported_modules(ast.parse(path.read_text()).body)}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_lower_layers(path):
    own = subpackage(path)
    if own in ("__init__", "__main__"):
        return
    for other in imported_subpackages(path) - {own}:
        # subpackages of one layer may import each other in the lowest layer and above the model, without cycles
        same = LAYERS[other] == LAYERS[own] and not 0 < LAYERS[own] < 5
        assert LAYERS[other] < LAYERS[own] or same, f"{own} imports {other}"


def test_imports_of_higher_layers_within_functions_have_a_stated_reason():
    found = set()
    for path in MODULES:
        own, module = subpackage(path), ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for name in imported_modules(ast.walk(ast.parse(path.read_text()))):
            other = subpackage_of(name)
            if LAYERS[other] > LAYERS.get(own, 9):
                found.add((module, name))
    assert found == UPWARD.keys()


def test_metrics_and_tables_of_evaluation_need_no_model():
    """Only modules that use a run, a model or recordings import more than audio and corpora."""
    of_runs = {
        "evaluate.py", "scored_data.py", "sprsound_tasks.py", "window_scores.py",
        "calibration/recalibrate.py", "report/write.py", "comparison/runs.py", "comparison/evaluations.py",
    }  # fmt: skip
    home = PACKAGE / "evaluation"
    for path in home.rglob("*.py"):
        if path.relative_to(home).as_posix() not in of_runs:
            assert set(imported_subpackages(path)) <= {*FOUNDATION, "audio", "corpora", "evaluation"}, path.name


def test_no_folder_has_too_many_modules():
    of_commands = {PACKAGE / "cli", PACKAGE}  # cli has one module per command; the root has the model and FOUNDATION
    for folder in {path.parent for path in MODULES} - of_commands:
        assert len(list(folder.glob("*.py"))) <= 16, folder.name


def test_imports_have_no_cycle():
    """Imports at the top of modules form no cycle."""
    names = {".".join(("laennec", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in MODULES}
    names = {name: path for name, path in names.items() if not name.endswith("__init__")}
    graph = {}
    for name, path in names.items():
        found = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        graph[name] = (found & set(names)) - {name}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_has_a_docstring_and_stays_short(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert text.count("\n") < 470


def test_nothing_in_the_package_unpickles_or_trusts_remote_code():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            function = ast.unparse(node.func)
            settings = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert function not in ("pickle.load", "pickle.loads", "joblib.load", "np.lib.format.read_array"), path
            assert function != "torch.load" or settings.get("weights_only") == "True", path
            assert function != "np.load" or settings.get("allow_pickle", "False") == "False", path
            assert "trust_remote_code" not in settings or settings["trust_remote_code"] == "False", path


def test_slow_txt_names_existing_tests():
    lines = (ROOT / "tests" / "slow.txt").read_text().splitlines()
    names = [line for line in lines if line and not line.startswith("#")]
    for name in names:
        path, _, function = name.partition("::")
        assert f"def {function.split('[')[0].split('::')[-1]}(" in (ROOT / path).read_text(), name
    assert names == sorted(set(names))
