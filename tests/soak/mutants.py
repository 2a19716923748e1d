"""Mutation testing: do the tests detect mistakes in losses, metrics, samplers and splits?

    python tests/soak/mutants.py [--each 60] [--groups losses,metrics] [--out docs/results/reliability.json]

Each mutant is one small mistake in one module: a changed comparison, operator, constant or condition, or a removed
call. The tests of the module run in a fork of a process that has imported torch already. A mutant is killed if a test
fails or does not end. Mutants that survive must be listed in survivors.json with the reason: "equivalent" if no test
could see a difference, or "accepted". A random sample of each group is tried (--seed).
"""

import ast
import copy
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rows import keep, parser_of

ROOT = Path(__file__).resolve().parents[2]
SURVIVORS = Path(__file__).with_name("survivors.json")
LEAST = 0.85
EVERY_LOSS = "tests/losses/test_every_loss.py"
GROUPS: dict[str, dict[str, list[str]]] = {
    "losses": {
        f"losses/{name}.py": [f"tests/losses/test_{test}.py" for test in tests] + [EVERY_LOSS]
        for name, tests in {
            "add": ["add"], "tuplet": ["tuplet"], "supcon": ["supcon"], "opl": ["opl"], "focal": ["focal"],
            "patch_mix": ["patch_mix"], "patient": ["patient"], "clustering": ["clustering"], "device": ["device"],
            "base": ["add", "opl", "supcon"], "blocks": ["add", "supcon"], "combine": ["combine"],
        }.items()
    },
    "metrics": {
        "evaluation/metrics.py": ["tests/evaluation/test_metrics.py", "tests/evaluation/test_evaluate_metric.py"],
        "evaluation/calibration/probabilities.py": ["tests/evaluation/test_calibration.py"],
        "evaluation/intervals.py": ["tests/evaluation/test_intervals.py"],
    },
    "samplers": {
        "training/samplers.py": ["tests/training/test_samplers.py", "tests/training/test_sharding.py"],
        "training/coverage.py": ["tests/training/test_guards.py", "tests/training/test_sharding.py"],
        "training/pretraining/pairs.py": ["tests/training/pretraining/test_pretraining_pairs.py"],
    },
    "splits": {
        "corpora/splits.py": ["tests/corpora/test_splits.py", "tests/invariants/test_leak_guard.py"],
        "corpora/leaks.py": ["tests/corpora/test_splits.py", "tests/invariants/test_leak_guard.py"],
        "corpora/copies.py": [
            "tests/corpora/test_copies.py", "tests/corpora/test_check.py", "tests/invariants/test_leak_guard.py",
            "tests/training/pretraining/test_pretraining_dataset.py",
        ],
    },
}  # fmt: skip
_COMPARE: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_BINARY: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        module: Path below src/laennec.
        place: Number of the node in the syntax tree.
        turn: Number of the mistake among those of this node.
        label: Function, old and new code, and a number if several mutants would have the same label.
    """

    module: str
    place: int
    turn: int
    label: str

    @property
    def name(self) -> str:
        """Key in survivors.json; independent of line numbers."""
        return f"{self.module}: {self.label}"


def mistakes(node: ast.AST) -> Iterator[ast.AST]:
    """All changed forms of a node."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARE:
        yield ast.Compare(node.left, [_COMPARE[type(node.ops[0])]()], node.comparators)
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        yield ast.BinOp(node.left, _BINARY[type(node.op)](), node.right)
    if isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield node.operand
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1 if isinstance(node.value, int) or not node.value else node.value * 2)
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        changed = copy.copy(node)
        changed.test = ast.UnaryOp(ast.Not(), node.test)
        yield changed
    if isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield ast.Pass()
    if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield ast.Return(ast.Constant(None))


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _left_alone(node: ast.AST, parent: ast.AST) -> bool:
    """Whether a node is not mutated: types, error messages, assertions, decorators."""
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
        return True
    if isinstance(parent, ast.FunctionDef | ast.ClassDef) and node in parent.decorator_list:
        return True
    if isinstance(parent, ast.FunctionDef) and node is parent.returns:
        return True
    if isinstance(parent, ast.arg | ast.AnnAssign) and node is parent.annotation:
        return True
    return isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name) and parent.func.id == "cast"


def places(tree: ast.AST) -> Iterator[tuple[int, ast.AST, ast.AST, str]]:
    """(number, node, parent, function) of every node that may be mutated, in a fixed order."""
    number = 0
    stack: list[tuple[ast.AST, ast.AST, str]] = [
        (child, tree, "") for child in reversed(list(ast.iter_child_nodes(tree)))
    ]
    while stack:
        node, parent, function = stack.pop()
        if _left_alone(node, parent):
            continue
        yield number, node, parent, function
        number += 1
        inner = function
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            inner = f"{function}.{node.name}".lstrip(".")
        stack += [(child, node, inner) for child in reversed(list(ast.iter_child_nodes(node)))]


def mutants_of(module: str) -> list[Mutant]:
    """All mutants of a module."""
    tree = ast.parse((ROOT / "src" / "laennec" / module).read_text())
    found: list[Mutant] = []
    seen: dict[str, int] = {}
    for number, node, _, function in places(tree):
        for turn, other in enumerate(mistakes(node)):
            words = f"{function or 'module'}: {_said(node)} -> {_said(other)}"
            seen[words] = seen.get(words, 0) + 1
            label = words if seen[words] == 1 else f"{words} #{seen[words]}"
            found.append(Mutant(module, number, turn, label))
    return found


def _said(node: ast.AST) -> str:
    text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(node)))
    if isinstance(node, ast.If | ast.While):
        text = text.splitlines()[0]
    return " ".join(text.split())[:100]


def mutated(mutant: Mutant) -> ast.Module:
    """The syntax tree of the module with the mistake."""
    tree = ast.parse((ROOT / "src" / "laennec" / mutant.module).read_text())
    for number, node, parent, _ in places(tree):
        if number == mutant.place:
            other = list(mistakes(node))[mutant.turn]
            for name, value in ast.iter_fields(parent):
                if value is node:
                    setattr(parent, name, other)
                elif isinstance(value, list) and any(each is node for each in value):
                    setattr(parent, name, [other if each is node else each for each in value])
            return ast.fix_missing_locations(tree)
    raise ValueError(mutant)


class _Mistaken:
    """Import hook that loads one module with its mistake."""

    def __init__(self, module: str, tree: ast.Module) -> None:
        self.name, self.tree = "laennec." + module.removesuffix(".py").replace("/", "."), tree
        self.path = str(ROOT / "src" / "laennec" / module)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        from importlib.machinery import ModuleSpec

        if name != self.name:
            return None
        spec = ModuleSpec(name, self, origin=self.path)  # type: ignore[arg-type]
        spec.has_location = True
        return spec

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        exec(compile(self.tree, self.path, "exec"), module.__dict__)


def passes(tests: list[str], mutant: Mutant | None, seconds: float) -> bool:
    """Whether the tests pass in a forked process; a timeout counts as a failure."""
    pid = os.fork()
    if not pid:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
        signal.alarm(int(20 * seconds))  # wall time, for a process that waits
        code = 1
        try:
            if mutant is not None:
                sys.meta_path.insert(0, _Mistaken(mutant.module, mutated(mutant)))  # type: ignore[arg-type]
            import pytest

            words = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *tests]
            code = int(pytest.main(words))
        finally:
            os._exit(code != 0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def judged(name: str, survivors: dict[str, str]) -> str:
    """The reason given for a survivor, or ""."""
    return survivors.get(name, "")


def examine(group: str, each: int, draw: random.Random, survivors: dict[str, str]) -> dict[str, Any]:
    """Draw mutants of a group and test which survive."""
    modules = {m: [t for t in tests if (ROOT / t).exists()] for m, tests in GROUPS[group].items()}
    every = [mutant for module in modules for mutant in mutants_of(module)]
    chosen = sorted(draw.sample(every, min(each, len(every))), key=lambda m: (m.module, m.place, m.turn))
    limits: dict[str, float] = {}
    alive: list[str] = []
    for number, mutant in enumerate(chosen):
        tests = modules[mutant.module]
        if mutant.module not in limits:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            if not passes(tests, None, 600):
                raise SystemExit(f"{mutant.module}: its tests fail without any mistake")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            limits[mutant.module] = 20 + 3 * (after.ru_utime - before.ru_utime)
        since = time.perf_counter()
        lives = passes(tests, mutant, limits[mutant.module])
        said = "LIVES" if lives else "killed"
        print(
            f"{group} {number + 1}/{len(chosen)} {time.perf_counter() - since:.0f} s {said}: {mutant.name}", flush=True
        )
        alive += [mutant.name] if lives else []
    equivalent = sum(judged(name, survivors).startswith("equivalent") for name in alive)
    return {
        "all": len(every), "tried": len(chosen), "killed": len(chosen) - len(alive), "equivalent": equivalent,
        "score": (len(chosen) - len(alive)) / max(1, len(chosen) - equivalent),
        "alive": alive,
    }  # fmt: skip


def main() -> None:
    """Examine the groups and write the row."""
    parser = parser_of(__doc__ or "")
    parser.add_argument("--each", type=int, default=60, help="mutants of each group (default: %(default)s)")
    parser.add_argument("--groups", default=",".join(GROUPS))
    options = parser.parse_args()
    os.chdir(ROOT)
    # import libraries once before forking, but nothing of laennec: a fork must import the mutant alone
    for name in ("datasets", "hypothesis", "numpy", "pandas", "pytest", "scipy.stats", "sklearn.metrics", "soundfile",
                 "torch", "transformers", "transformers.trainer"):  # fmt: skip
        __import__(name)
    survivors = json.loads(SURVIVORS.read_text()) if SURVIVORS.exists() else {}
    draw, figures, unjudged, worst = random.Random(options.seed), {}, [], 1.0
    for group in options.groups.split(","):
        found = examine(group, options.each, draw, survivors)
        figures[group] = (
            f"{100 * found['score']:.0f} % ({found['killed']} killed, {found['equivalent']} equivalent, "
            f"{len(found['alive']) - found['equivalent']} accepted, of {found['tried']} drawn from {found['all']})"
        )
        worst = min(worst, found["score"])
        unjudged += [name for name in found["alive"] if not judged(name, survivors)]
    for name in unjudged:
        print(f"no judgement: {name}")
    promise = (
        f"mutation testing: at least {100 * LEAST:.0f} % of mutants of losses, metrics, samplers, splits are found"
    )
    keep(options.out, "mutants", promise, figures, worst >= LEAST and not unjudged)


if __name__ == "__main__":
    main()
