"""Coverage-guided fuzzing of everything that reads text: a result or a typed error, no hang, little memory.

    python tests/soak/fuzz.py --minutes 10 --out docs/results/reliability.json

Needs atheris (the extra `soak`). The readers of `readers.py` run in four groups, each for so many minutes, one after
the other. An input is a fault of its reader if the outcome is not a result or an `InputError` of one line, if it takes
longer than 5 s, or if the process needs more than 1 GB; it is written to `--found`, once for each place in the code.
Half of the inputs are mutated byte by byte, half by replacing a part of their structure.
"""

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rows import parser_of, put

LIMIT_S, LIMIT_MB, LONGEST = 5, 1000, 4096
WAIT_S = 60  # wall time, for a process that sleeps; LIMIT_S is CPU time, because machines may be busy
WORDS = (
    "nan", "inf", "-inf", "1e400", "-1", "0", "99999999999999999999", "0x10", "1_0", "\u00bd", "\u0663", "\u2028",
    "\u0000", "\\ud800", "\ufeff", "null", "true", "~", "[", "{", "\"", "\t", ";", ",", "\r", "\\\t1\t2", "&a", "*a",
    "<<: *a", "!!python/name:os.system", "!!binary aGk=", "!!timestamp 2001-99-99", "? [a]", "---", "%YAML 9",
    "2001-01-01", "1:2:3", "crackle", "wheeze", "both", "Begin Time (s)", "config", "values", "thresholds",
)  # fmt: skip
STRANGE: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 1e308, 10**30, float("nan"), float("inf"), "", "x", "\ud800", "a\nb", "nan", [], [[]], {},
    {"": 0}, {"x": {"y": [1]}}, [None], "y" * 300, ["a", 1],
)  # fmt: skip


def broken(value: Any, draw: random.Random) -> Any:
    """A copy of a structure with one value replaced."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        how = draw.random()
        if how < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if how < 0.2:
            return {**value, draw.choice(("", "x", "ä", key + "s", "0")): draw.choice(STRANGE)}
        return {**value, key: broken(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.85:
        at = draw.randrange(len(value))
        return [*value[:at], *([] if draw.random() < 0.1 else [broken(value[at], draw)]), *value[at + 1 :]]
    return draw.choice(STRANGE)


def restructured(content: bytes, form: str, draw: random.Random) -> bytes | None:
    """A file of the same format with one to three values of its structure replaced; None if it has no structure."""
    import yaml

    try:
        lines = content.decode().splitlines() if form == "jsonl" else [content.decode()]
        at = draw.randrange(len(lines))
        value = yaml.safe_load(lines[at]) if form == "yaml" else json.loads(lines[at])
        for _ in range(draw.choice((1, 1, 2, 3))):
            value = broken(value, draw)
        lines[at] = json.dumps(value, ensure_ascii=draw.random() < 0.5)
        return "\n".join([*lines, *([""] if form == "jsonl" else [])]).encode(errors="replace")
    except Exception:  # invalid files are mutated byte by byte
        return None


def work(group: str, found: Path, flags: list[str]) -> None:
    """Fuzz one group in this process, until libFuzzer's flags end it."""
    import logging
    import warnings

    import atheris

    warnings.simplefilter("ignore")
    logging.disable()
    with atheris.instrument_imports(include=["laennec"]):
        from readers import GROUPS, fault_of

        for reader in GROUPS[group]:  # do all imports before time is measured
            with tempfile.TemporaryDirectory() as folder:
                fault_of(reader, Path(folder), reader.seeds[0])
    readers = GROUPS[group]
    scratch = Path(tempfile.mkdtemp())
    places = [scratch / str(number) for number in range(len(readers))]
    for place in places:
        place.mkdir()

    def one(data: bytes) -> None:
        if not data:
            return
        number = data[0] % len(readers)
        reader, content = readers[number], data[1:]
        begun = time.process_time()
        fault = fault_of(reader, places[number], content)
        if (seconds := time.process_time() - begun) > LIMIT_S:
            (found / f"{group}-timeout-{hashlib.sha256(data).hexdigest()[:8]}").write_bytes(content)
            print(f"found: {reader.name}: {seconds:.1f} s", flush=True)
        if fault is None:
            return
        where = hashlib.sha256(re.sub(r"[0-9]+(?!\S*:)", "", fault.split(": ")[0]).encode()).hexdigest()[:8]
        path = found / f"{reader.name.replace(' ', '-')}-{where}"
        if not path.exists():
            path.write_bytes(content)
            path.with_suffix(".txt").write_text(f"{reader.name}: {fault}\n")
            print(f"found: {reader.name}: {fault}", flush=True)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        form = readers[data[0] % len(readers)].form if data else "text"
        if form != "text" and draw.random() < 0.5:
            made = restructured(data[1:], form, draw)
            if made is not None and len(made) < most:
                return data[:1] + made
        return atheris.Mutate(data, most)

    atheris.Setup([sys.argv[0], *flags], one, custom_mutator=mutate)
    atheris.Fuzz()


def fuzz(group: str, seconds: float, found: Path, seed: int) -> dict[str, int]:
    """Fuzz a group for so many seconds; restart after an input that ended the process."""
    from readers import GROUPS

    # in memory where possible, because atomic writes call fsync
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        corpus = Path(scratch) / "corpus"
        corpus.mkdir()
        for number, reader in enumerate(GROUPS[group]):
            for place, content in enumerate(reader.seeds):
                (corpus / f"{number}-{place}").write_bytes(bytes([number]) + content)
        words = Path(scratch) / "words"
        escaped = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in WORDS)
        words.write_text("".join(f'"{word}"\n' for word in escaped))
        inputs = peak = 0
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 1:
            flags = [
                f"-max_total_time={int(left)}", f"-timeout={WAIT_S}", f"-rss_limit_mb={LIMIT_MB}", f"-seed={seed + 1}",
                f"-max_len={LONGEST}", f"-dict={words}", f"-artifact_prefix={found}/{group}-", "-print_final_stats=1",
                "-verbosity=1", str(corpus),
            ]  # fmt: skip
            process = subprocess.run(
                [sys.executable, str(Path(__file__).resolve()), "--work", group, "--found", str(found), *flags],
                capture_output=True, text=True, errors="replace",
                env={**os.environ, "TMPDIR": scratch},
            )  # fmt: skip
            said = process.stderr + process.stdout
            numbers = dict(re.findall(r"stat::(\w+):\s+(\d+)", said))
            inputs += int(numbers.get("number_of_executed_units", 0))
            peak = max(peak, int(numbers.get("peak_rss_mb", 0)))
            seed += 1
            if process.returncode:
                tail = [line for line in said.splitlines() if line.strip()][-25:]
                print(f"{group}: stopped with {process.returncode}", *tail, sep="\n  ", flush=True)
                if not numbers and time.monotonic() > until - seconds + 5 and "Traceback" in said and not inputs:
                    raise SystemExit(f"{group}: the fuzzer does not run")
    print(f"{group}: {inputs} inputs, at most {peak} MB", flush=True)
    return {"inputs": inputs, "peak": peak}


def main() -> None:
    """Fuzz every group and write the rows."""
    if "--work" in sys.argv:
        at = sys.argv.index("--work")
        _, group, _, found, *flags = sys.argv[at:]
        work(group, Path(found), flags)
        return
    from readers import GROUPS

    parser: argparse.ArgumentParser = parser_of(__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="for each group")
    parser.add_argument("--groups", default=",".join(GROUPS), help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--found", type=Path, help="folder for the inputs that count against a reader")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = options.found or Path(scratch)
        found.mkdir(parents=True, exist_ok=True)
        held = True
        for group in options.groups.split(","):
            held &= soak(group, found / group, options)
    raise SystemExit(0 if held else 1)


def soak(group: str, found: Path, options: argparse.Namespace) -> bool:
    """Fuzz a group and write its row; return whether the promise holds."""
    from readers import GROUPS

    found.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    seen = fuzz(group, 60 * options.minutes, found, options.seed)
    names = [path.name for path in found.iterdir()]
    hangs = sum("-timeout-" in name for name in names)
    others = sum(name.endswith(".txt") or bool(re.match(r"[a-z]+-(crash|oom|leak)-", name)) for name in names)
    held = others == hangs == 0 and 0 < seen["peak"] <= LIMIT_MB and seen["inputs"] > 0
    put(
        options.out,
        f"fuzz {group}",
        f"coverage-guided fuzz of {', '.join(reader.name for reader in GROUPS[group])}: a result or a typed error of "
        f"one line, within {LIMIT_S} s and {LIMIT_MB} MB",
        {
            "minutes": options.minutes, "inputs": seen["inputs"], "other errors": others,
            f"longer than {LIMIT_S} s": hangs, "peak MB": seen["peak"],
        },
        held,
        begun,
    )  # fmt: skip
    return held


if __name__ == "__main__":
    main()
