"""A folder that serves the page anywhere, and as a Space of the Hub when it is pushed there.

Decisions: the folder holds everything that is ours (the model in full and this package's source), because a Space
can install nothing that is in no package index; what is others' is pinned to the versions that are installed here. The
page inside is that of `laennec app`, so there is one page.
"""

import importlib.metadata
import shutil
from pathlib import Path

import laennec
from laennec.evaluation.evaluate import load_model
from laennec.files import atomic_folder, atomic_write, refuse_other_files
from laennec.inference.answer import template
from laennec.inference.model_facts import model_facts

# what the page imports, directly; their own needs come with them
REQUIRED = (
    "accelerate", "datasets", "gradio", "huggingface_hub", "jinja2", "matplotlib", "numpy", "pandas", "peft", "pillow",
    "pyarrow", "pyyaml", "rich", "safetensors", "scipy", "soundfile", "soxr", "torch", "tqdm", "transformers",
    "uvicorn", "fastapi",
)  # fmt: skip
_WRITTEN = ("README.md", "app.py", "requirements.txt", "model", "laennec")
_NO_SOURCE = ("__pycache__", "*.pyc", "*.pyi")


def write_space(run: str | Path, out: str | Path | None = None, base: str | None = None) -> Path:
    """Write a Space: README.md with its settings, app.py, requirements.txt, the model and the package.

    Args:
        run: The run's folder.
        out: Where to; None: `export-space` in the run's folder. A Space that was written before is replaced.
        base: Where the base of a head-only run lies now.

    Returns:
        The folder.

    Raises:
        InputError: No such run, or a folder that holds something else or cannot be written to.
    """
    from laennec.hub.export import export_run
    from laennec.inference.app import WARNING

    out = Path(out) if out is not None else Path(run) / "export-space"
    refuse_other_files(out, _WRITTEN, "choose another --out")
    facts = model_facts(load_model(run, base)[0], run)
    versions = {name: _version(name) for name in REQUIRED}
    with atomic_folder(out) as folder:
        export_run(run, folder / "model", "full", base)
        shutil.copytree(Path(laennec.__file__).parent, folder / "laennec", ignore=shutil.ignore_patterns(*_NO_SOURCE))
        texts = {
            "README.md": template("space_readme.md").render(facts=facts, gradio=versions["gradio"], warning=WARNING),
            "app.py": template("space_app.py.txt").render(name=facts.name),
            "requirements.txt": "".join(f"{name}=={version}\n" for name, version in versions.items()),
        }
        for name, text in texts.items():
            with atomic_write(folder / name) as file:
                file.write(text)
    return out


def _version(name: str) -> str:
    """The installed version, without what names a build for one machine."""
    return importlib.metadata.version(name).split("+")[0]
