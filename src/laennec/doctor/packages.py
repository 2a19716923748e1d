"""Every stage, doctor: versions against the tested set, and what is optional.

Decisions: the tested set travels with the package (`tested.txt`, written from the lock file by `make lock`), so the
comparison needs no network and no checkout. Another version than the tested one is a note, one outside what the package
asks for, or one that cannot be imported, is a PROBLEM: only those are known to be wrong.
"""

import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
from pathlib import Path

from laennec.doctor.finding import Finding, Verdict, finding, note, ok, problem

_ROOM = "Packages"
_EXTRAS = {
    "app": "the page on which a model answers sounds (laennec app)",
    "onnx": "laennec export --format onnx",
    "track": "reports of training to tensorboard or trackio",
    "search": "searches for settings with optuna",
}
# where a package is imported by another name than it is installed by
_MODULES = {"scikit-learn": "sklearn", "pyyaml": "yaml"}
_INSTALL = "pip install -c constraints.txt 'laennec{extra}'"


def tested() -> dict[str, str]:
    """The versions that the tests ran with: package name to version."""
    lines = (Path(__file__).parent / "tested.txt").read_text().splitlines()
    pairs = (line.partition("==") for line in lines)
    return {name: version for name, _, version in pairs}


def examine() -> list[Finding]:
    """Compare what is installed with what is asked for and with what was tested."""
    again = "install laennec again into a new environment"
    found = [finding(_ROOM, "python", _python, again)]
    required, optional = _asked_for()
    same = []
    for name, specifier in required.items():
        one = finding(_ROOM, name, lambda name=name, specifier=specifier: _package(name, specifier), again)  # type: ignore[misc]
        if one.state == "ok":
            same.append(one.found)
        else:
            found.append(one)
    if same:
        whole = f"the tested versions of {len(same)} of the {len(required)} that are needed: {', '.join(same)}"
        found.append(Finding(_ROOM, "as tested", "ok", whole))
    found += [
        finding(_ROOM, f"[{extra}]", lambda extra=extra, names=names: _extra(extra, names), again)  # type: ignore[misc]
        for extra, names in optional.items()
    ]
    return [*found, finding(_ROOM, "torchaudio", _torchaudio, "pip uninstall torchaudio"), *_torchcodec()]


def _python() -> Verdict:
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    try:
        wanted = importlib.metadata.metadata("laennec")["Requires-Python"] or ""
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        wanted = ""
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        return problem(f"{version}, and laennec needs {wanted}", "make the environment with another Python")
    return ok(version)


def _asked_for() -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """(needed packages, extras' packages): name to version specifier, of the installed laennec."""
    from packaging.requirements import Requirement

    needed: dict[str, str] = {}
    extras: dict[str, dict[str, str]] = {extra: {} for extra in _EXTRAS}
    try:
        lines = importlib.metadata.requires("laennec") or []
    except importlib.metadata.PackageNotFoundError:  # run from its sources: only the tested versions are known
        lines = list(tested())
    for line in lines:
        wish = Requirement(line)
        if wish.marker is None:
            needed[wish.name] = str(wish.specifier)
        for extra in _EXTRAS:
            if wish.marker is not None and wish.marker.evaluate({"extra": extra}):
                extras[extra][wish.name] = str(wish.specifier)
    return needed, extras


def _package(name: str, specifier: str, extra: str = "") -> Verdict:
    from packaging.specifiers import SpecifierSet
    from packaging.utils import canonicalize_name
    from packaging.version import Version

    install = _INSTALL.format(extra=extra)
    try:
        version = Version(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return problem("not installed", install)
    if not SpecifierSet(specifier).contains(Version(version.public), prereleases=True):
        return problem(f"{version}, and laennec needs {specifier}", install)
    try:
        importlib.import_module(_MODULES.get(canonicalize_name(name), name))
    except Exception as error:
        said = " ".join(str(error).split())[:120]
        again = f"pip install --force-reinstall '{name}=={version.public}'"
        return problem(f"{version} is installed and cannot be imported ({said})", again)
    wanted = tested().get(canonicalize_name(name))
    if wanted is None or Version(wanted).public == version.public:
        return ok(f"{name} {version}")
    way = "newer" if version > Version(wanted) else "older"
    major = ", another major version" if version.major != Version(wanted).major else ""
    return note(
        f"{version} is {way} than the tested {wanted}{major}", f"should something break: pip install '{name}=={wanted}'"
    )


def _extra(extra: str, names: dict[str, str]) -> Verdict:
    verdicts = {name: _package(name, specifier, f"[{extra}]") for name, specifier in names.items()}
    absent = [name for name, verdict in verdicts.items() if verdict[1] == "not installed"]
    use, install = _EXTRAS[extra], _INSTALL.format(extra=f"[{extra}]")
    if absent:
        return note(f"{', '.join(absent)} not installed: {use}", f"only where you want that: {install}")
    for name, (state, said, remedy) in verdicts.items():
        if state != "ok":  # what is optional is never a PROBLEM
            return note(f"{name}: {said}", remedy)
    return ok(", ".join(said for _, said, _ in verdicts.values()))


def _torchaudio() -> Verdict:
    if importlib.util.find_spec("torchaudio") is None:
        return ok("not installed, and not needed")
    try:
        importlib.import_module("torchaudio")
    except (OSError, ImportError, RuntimeError) as error:
        said = " ".join(str(error).split())[:120]
        why = f"installed, and cannot be loaded ({said}): transformers' own AST front end cannot either"
        return note(why, "laennec does not need it: pip uninstall torchaudio")
    return ok(f"{importlib.metadata.version('torchaudio')} loads; laennec does not need it")


def _torchcodec() -> list[Finding]:
    def check() -> Verdict:
        if importlib.util.find_spec("torchcodec") is None:
            return ok("not installed, and not needed: laennec decodes with soundfile")
        try:
            importlib.import_module("torchcodec.decoders")
        except (OSError, ImportError, RuntimeError) as error:
            said = " ".join(str(error).split())[:120]
            why = f"installed, and cannot be loaded ({said})"
            return note(why, "laennec does not need it; for Audio columns of datasets install ffmpeg's libraries")
        return ok(f"{importlib.metadata.version('torchcodec')} loads")

    ffmpeg = shutil.which("ffmpeg")
    return [
        finding(_ROOM, "torchcodec", check, "laennec does not need it: pip uninstall torchcodec"),
        finding(_ROOM, "ffmpeg", lambda: ok(ffmpeg or "not installed, and not needed"), ""),
    ]
