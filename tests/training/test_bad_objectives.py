"""Metadata that real recordings lack, through the command line."""

import logging
import shutil

import yaml

from laennec.cli.main import main


def test_cycles_without_metadata_are_named_and_dropped_or_kept_as_asked(shared_data, tmp_path, capsys, caplog):
    """Real ICBHI recordings: patient 223 has neither age nor sex in the published table."""
    folder = tmp_path / "database"
    folder.mkdir()
    for stem in sorted({p.stem for p in (shared_data / "icbhi2017_subset").glob("*.flac")})[::3]:
        for path in (shared_data / "icbhi2017_subset").glob(f"{stem}.*"):
            (folder / path.name).symlink_to(path)
    corpus = {
        "name": "icbhi2017", "data_dir": str(folder), "protocol": "patient-60-20-20", "allow_missing": True,
        "tables_dir": str(unknown_ages(shared_data / "icbhi2017_tables", tmp_path / "tables")),
    }  # fmt: skip
    recipe = {
        "name": "bad",
        "corpus": corpus,
        "features": {"preset": "song2021", "length": "natural"},
        "encoder": {"type": "cnn", "config": {"channels": [4, 8]}},
        "train": {"epochs": 1, "max_steps": 1, "batch_size": 8, "selection_metric": "loss"},
        "sampler": {"name": "metadata_matched", "columns": ["age_band", "sex"]},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with caplog.at_level(logging.WARNING):
        assert main(["train", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "run")]) == 0
    said = next(record.getMessage() for record in caplog.records if "age_band" in record.getMessage())
    assert "unknown for" in said and "#0" in said and "own_group keeps them" in said
    capsys.readouterr()


def unknown_ages(tables, copy):
    """The published tables with every third patient's age and sex taken away."""
    shutil.copytree(tables, copy)
    for path in copy.rglob("*emographic*"):
        lines = path.read_text().splitlines()
        changed = [
            " ".join([line.split()[0], "NA", "NA", *line.split()[3:]]) if place % 3 == 0 and line.split() else line
            for place, line in enumerate(lines)
        ]
        path.write_text("\n".join(changed) + "\n")
    return copy
