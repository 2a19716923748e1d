"""A model card says what the records say, asks for the rest, and stays text whatever the records hold."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from huggingface_hub import ModelCard

from laennec.cli.main import main
from laennec.errors import InputError
from laennec.evaluation.summary import figure_text
from laennec.hub.card import (
    card_settings,
    check_publishable,
    checklist,
    questions,
    render_card,
    section_anchors,
    write_card,
)
from laennec.hub.card_metadata import is_hub_id
from laennec.hub.evidence import citations_of, without_machine_paths
from laennec.rendering import escaped, plain
from laennec.training.recipe import LICENCES, CardSettings
from markdown_page import Page
from runs import one_line

pytestmark = pytest.mark.usefixtures("unpainted")

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "model_cards" / "records" / "sprsound_add_mobilenet"
ANSWERS = {
    "licence": "mit",
    "authors": "A. Author",
    "contact": "a@example.org",
    "intended_use": "research",
    "users": "researchers",
    "health_inequalities": "not studied",
    "ethics": "none needed",
    "funding": "none",
    "conflicts": "none",
    "registration": "none",
    "patient_involvement": "none",
    "next_steps": "other patients",
}


def unscored(run, to):
    """A copy of a run as training left it."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("evaluation-*", "export-*"))
    (to / "run.json").write_text(json.dumps(read(to / "run.json") | {"evaluations": []}))
    return to


@pytest.fixture
def run(tiny_run, tmp_path):
    return unscored(tiny_run, tmp_path / "run")


@pytest.fixture(scope="module")
def scored(tiny_run, tmp_path_factory):
    """The tiny run, scored once on its test split."""
    copy = unscored(tiny_run, tmp_path_factory.mktemp("scored") / "run")
    assert main(["evaluate", str(copy)]) == 0
    return copy


def read(path):
    return json.loads(Path(path).read_text())


def head_and_body(text):
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def sections(body):
    """Titles of the sections with their text."""
    parts = re.split(r"^## (.+)$", body, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_a_card_holds_the_numbers_of_the_evaluation_beside_it(scored):
    card = render_card(scored)
    head, body = head_and_body(card.text)
    metrics, record = read(scored / "evaluation-test" / "metrics.json"), read(scored / "run.json")
    results = sections(body)["Results"]
    shown = ["icbhi.Score", "icbhi.Sp", "icbhi.Se", "any_abnormal.Score", "crackle.roc_auc", "wheeze.average_precision"]
    for name in shown:
        value, bounds = metrics["values"][name], metrics["intervals"][name]
        interval = "not defined" if bounds is None else " to ".join(figure_text(name, b) for b in bounds)
        assert f"| {figure_text(name, value)} | {interval} |" in results, name
    for definition in metrics["definitions"].values():
        assert escaped(definition) in results
    for row in metrics["confusion"]["matrix"]:
        assert f"| {' | '.join(map(str, row))} |" in results
    for floor in metrics["floors"]:
        assert floor["name"] in results
        if "skipped" not in floor:
            assert (
                escaped(figure_text("icbhi.Score", floor["values"]["icbhi.Score"], floor["intervals"]["icbhi.Score"]))
                in results
            )
    length = next(floor for floor in metrics["floors"] if floor["name"] == "event length")
    assert escaped(f"{length['advantage']['value']:+.1f}") in results
    counts = metrics["counts"]
    assert f"{counts['cycles']} cycles of {counts['patients']} patients" in results
    for grouping, rows in metrics["subgroups"].items():
        for row in rows:
            few = " †" * (5 <= row["patients"] < 20)
            shown = rf"\| {re.escape(escaped(row['value']))}(: .*)? \| {row['cycles']:,} \| {row['patients']}{few} \|"
            assert re.search(shown, sections(body)["Subgroups"]), grouping
    value = figure_text("icbhi.Score", metrics["values"]["icbhi.Score"], metrics["intervals"]["icbhi.Score"])
    assert escaped(f"ICBHI Score {value}") in sections(body)["Summary"]  # of a split that shares no patient
    data = sections(body)["Data"]
    assert record["corpus"]["fingerprint"][:16] in data and "patient-60-20-20" in data
    assert record["corpus"]["provenance"]["split_fingerprint"][:16] in data
    assert f"{record['cycles']['train']} cycles of {record['patients']['train']} patients" in data
    indexed = {m["name"]: m for r in head["model-index"][0]["results"] for m in r["metrics"]}
    assert indexed["ICBHI Score"]["value"] == pytest.approx(metrics["values"]["icbhi.Score"], abs=1e-4)
    if metrics["intervals"]["crackle.roc_auc"]:
        assert indexed["crackle AUROC"]["args"]["interval_95"] == pytest.approx(
            metrics["intervals"]["crackle.roc_auc"], abs=1e-4
        )


def test_calibration_and_errors_are_those_of_the_predictions(scored):
    body = head_and_body(render_card(scored).text)[1]
    fitted, metrics = read(scored / "run.json")["operating_points"], read(scored / "evaluation-test" / "metrics.json")
    text = sections(body)["Calibration and thresholds"]
    assert "Threshold rule: youden" in text and "Fitted on validation" in text
    for name in ("crackle", "wheeze"):
        assert f"{fitted['threshold_probabilities'][name]:.3f} | {fitted['ece_before'][name]:.3f} |" in text
        assert f"{fitted['brier_before'][name]:.3f} | {fitted['brier_after'][name]:.3f} |" in text
        c = metrics["calibration"]
        cells = [c["ece_before"][name], c["ece"][name], c["brier_before"][name], c["brier"][name]]
        assert f"| `{name}` | {' | '.join(f'{v:.3f}' for v in cells)} |" in text
    table_ = pd.read_parquet(scored / "evaluation-test" / "predictions.parquet").set_index("cycle_id")
    rows = re.findall(r"\| (\S.*?) \((\w+)\) \| `([^`]+)` \|", sections(body)["Worst errors"])
    assert rows
    for kind, label, cycle in rows:
        called = table_.loc[cycle, f"logit_{label}"] > metrics["thresholds"][label]
        assert (kind, bool(table_.loc[cycle, label]), called) in (("false alarm", False, True), ("missed", True, False))


def test_a_card_of_an_unscored_run_says_so_and_cannot_be_published(run, tmp_path):
    (tmp_path / "out").mkdir()
    write_card(run, tmp_path / "out", license="mit")
    head, body = head_and_body((tmp_path / "out" / "README.md").read_text())
    assert "model-index" not in head and "not scored on a test split" in body
    assert {"Results", "Subgroups", "Worst errors"}.isdisjoint(sections(body))
    with pytest.raises(InputError, match=r"record\.evaluation"):
        check_publishable(tmp_path / "out")


@pytest.mark.parametrize("source", ["tiny", "published"])
def test_no_section_is_empty_and_every_link_within_the_card_leads_somewhere(scored, source):
    body = head_and_body(render_card(scored if source == "tiny" else RECORD).text)[1]
    found = sections(body)
    anchors = {re.sub(r"\W+", "-", title.lower()) for title in found}
    assert anchors == set(section_anchors())
    for title, text in found.items():
        assert len(plain(text)) > 60, title
    assert set(re.findall(r"\]\(#([\w-]+)\)", body)) <= anchors
    assert re.findall(r".*\b(?:None|nan|Undefined|not recorded)\b(?!\.).*", body) == []
    assert "{{" not in body and "{%" not in body


def test_the_hubs_own_classes_read_the_head(scored, tmp_path):
    write_card(scored, tmp_path, repo="someone/lungs", license="mit")
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.license == "mit" and data.pipeline_tag == "audio-classification" and data.model_name == "lungs"
    assert {r.metric_type for r in data.eval_results} == {"icbhi_score", "roc_auc"}
    assert {(r.dataset_name, r.dataset_split) for r in data.eval_results} == {("synthetic", "test")}
    assert len({r.dataset_args["split_fingerprint"] for r in data.eval_results}) == 1


def test_a_split_that_shares_its_patients_is_no_headline():
    head, body = head_and_body(render_card(RECORD).text)
    summary = sections(body)["Summary"]
    scores = [one["result"]["metrics"]["values"]["icbhi.Score"] for one in read(RECORD / "run.json")["evaluations"]]
    assert "no headline" in summary and len(scores) == 2 and not any(f"{score:.1f}" in summary for score in scores)
    assert "shares 116 patients with train, 40 patients with validation" in summary
    assert "no estimate for new patients" in sections(body)["Limitations"]
    used = "was used to choose the epoch and the thresholds"
    why = {"test_intra": "shares 116 patients with train", "validation": used}
    results = head["model-index"][0]["results"]
    assert {r["dataset"]["split"] for r in results} == set(why)
    assert all(why[r["dataset"]["split"]] in m["name"] for r in results for m in r["metrics"])
    assert "40638274, " not in body  # whose patients they are is not for the card


def test_export_includes_the_card_and_its_python_lines_predict_a_recording(scored, small_corpus, capsys):
    assert main(["export", str(scored), "--out", str(scored.parent / "out")]) == 0
    out = scored.parent / "out"
    assert "verified by loading it" in capsys.readouterr().out
    text = (out / "README.md").read_text()
    write_card(scored, out, repo=str(out))
    lines = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S).group(1)
    recording = str(sorted(small_corpus.glob("*.wav"))[0])
    exec(lines.replace("recording.wav", recording), {})
    rows = capsys.readouterr().out.strip().splitlines()
    assert rows and "crackle_probability" in rows[0]
    assert main(["export", str(scored), "--out", str(out)]) == 0  # an export with a card is replaced like any other
    assert (out / "README.md").read_text() == text
    assert [p for p in out.iterdir() if p.name.endswith(".part")] == []


def test_a_head_alone_names_its_base(frozen_run, tmp_path):
    assert main(["export", str(frozen_run), "--format", "head", "--out", str(tmp_path / "head")]) == 0
    text = (tmp_path / "head" / "README.md").read_text()
    assert "These files contain the head only. Its encoder, `mn04_as_mAP_432.pt`" in text
    assert str(tmp_path) not in text and "/weights/" not in text
    assert "MIT (EfficientAT" in text and "base_model" not in head_and_body(text)[0]


def answered(run, tmp_path, **more):
    file = tmp_path / "answers.yaml"
    file.write_text(yaml.safe_dump(ANSWERS | more))
    return main(["card", str(run), "--answers", str(file), "--out", str(tmp_path / "card" / "README.md")])


def test_answers_of_a_file_are_kept_in_the_record_and_make_a_card_ready(scored, tmp_path, capsys):
    run = shutil.copytree(scored, tmp_path / "run")
    assert main(["card", str(run)]) == 0
    assert "open: card.funding" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"card\.licence .*card\.contact .*card\.funding .*--answers FILE"):
        check_publishable(run)
    assert main(["card", str(run), "--check"]) == 2
    one_line(capsys, "card.licence", "card.ethics")
    assert answered(run, tmp_path) == 0
    assert "open:" not in capsys.readouterr().out
    check_publishable(tmp_path / "card")
    assert read(run / "run.json")["card"] == ANSWERS
    assert main(["card", str(run), "--check"]) == 0
    export = tmp_path / "export"
    assert main(["export", str(run), "--out", str(export)]) == 0  # later cards know the answers too
    check_publishable(export)
    text = (export / "README.md").read_text()
    assert "Not answered" not in text and "**open**" not in text and "a&#64;example.org" in text


def test_answers_stand_in_a_recipe_too(tiny_recipe):
    recipe = tiny_recipe | {"card": ANSWERS}
    run = read(RECORD / "run.json")
    assert card_settings({"config": recipe}).funding == "none"
    assert card_settings({"config": recipe, "card": {"funding": "a grant"}}).funding == "a grant"
    assert card_settings(run | {"card": {}}, {"licence": "mit"}).licence == "mit"


@pytest.mark.parametrize("key", ["licence", "funding", "users"])
def test_every_answer_of_the_author_is_needed(scored, tmp_path, key):
    run = shutil.copytree(scored, tmp_path / "run")
    record = read(run / "run.json")
    record["card"] = {k: v for k, v in ANSWERS.items() if k != key}
    (run / "run.json").write_text(json.dumps(record))
    (tmp_path / "out").mkdir()
    write_card(run, tmp_path / "out")
    with pytest.raises(InputError, match=rf"card\.{key} \(") as error:
        check_publishable(tmp_path / "out")
    assert str(error.value).count("card.") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("fundin: none", "'card.fundin'; did you mean 'card.funding'"),
        ("licence: GPL", "card.licence is 'GPL'"),
        ("licence: other", "licence_name"),
        ("licence_link: javascript:alert(1)", "https address"),
        ("base_model: weights.pt", "Hub id"),
        ("funding: ''", "funding: it is empty"),
        ("funding: [1, 2]", "must be a valid string"),
        ("- licence", "mapping of keys"),
        ("a: b: c", "not valid YAML"),
        ("", "mapping of keys"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_wrong_card_answers_are_one_line_and_change_nothing(run, tmp_path, capsys, content, said):
    file = tmp_path / "answers.yaml"
    file.write_text(content)
    before = (run / "run.json").read_bytes()
    assert main(["card", str(run), "--answers", str(file)]) == 2
    one_line(capsys, file, said)
    assert (run / "run.json").read_bytes() == before and not (run / "README.md").exists()


def test_what_is_no_run_or_no_card_is_one_line(run, scored, tmp_path, capsys):
    assert main(["card", str(tmp_path / "nowhere")]) == 2
    one_line(capsys, "nowhere", "run.json")
    with pytest.raises(InputError, match="no readable model card"):
        check_publishable(tmp_path)
    for text, said in (
        ("no head", "YAML"),
        ("---\n- a list\n---\n", "YAML"),
        ("---\n{:\n---\n", "YAML"),
        ("---\nmodel-index:\n- {name: m, results: [{task: {type: t}}]}\n---\n", "YAML"),
        ("---\nlicense: my own\n---\n", "license 'my own' is not a licence id"),
    ):
        (tmp_path / "README.md").write_text(text)
        with pytest.raises(InputError, match=said):
            check_publishable(tmp_path)
    torn = shutil.copytree(scored, tmp_path / "torn")
    record = read(torn / "run.json")
    for broken in (1, {"evaluated": {}}, {"metrics": [], "evaluated": 3}):
        record["evaluations"][-1]["result"] = broken
        (torn / "run.json").write_text(json.dumps(record))
        assert main(["card", str(torn)]) == 2
        one_line(capsys, torn / "run.json", "evaluate it again")
    (torn / "run.json").write_text(json.dumps(record | {"evaluations": [3]}))
    assert main(["card", str(torn)]) == 2
    one_line(capsys, torn / "run.json", "evaluations")


def test_an_evaluation_is_no_run_and_is_left_as_it_is(scored, tmp_path, capsys):
    folder = shutil.copytree(scored / "evaluation-test", tmp_path / "evaluation-test")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (tmp_path / "answers.yaml").write_text("licence: mit\n")
    for more in ([], ["--answers", str(tmp_path / "answers.yaml")], ["--out", str(tmp_path / "README.md")]):
        assert main(["card", str(folder), *more]) == 2
        one_line(capsys, folder, "an evaluation; give the folder of the run")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "README.md").exists()


def test_a_split_without_a_fingerprint_has_none_in_the_head(scored, tmp_path):
    record = read(scored / "run.json")
    for one in record["evaluations"]:
        one["result"]["evaluated"]["corpus"]["provenance"] |= {"split_fingerprint": None, "protocol": None}
    (tmp_path / "run.json").write_text(json.dumps(record))
    text = render_card(tmp_path).text
    assert "None" not in text.split("---\n")[1] and "corpus_fingerprint" in text


def test_a_head_without_a_licence_is_refused_even_without_marks(scored, tmp_path):
    (tmp_path / "README.md").write_text("---\ntags: [laennec]\n---\nwritten by hand\n")
    with pytest.raises(InputError, match=r"card\.licence"):
        check_publishable(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: mit\ntags: [laennec]\n---\nwritten by hand\n")
    check_publishable(tmp_path)


def test_a_card_after_new_thresholds_shows_no_old_scores(scored, tmp_path, monkeypatch):
    monkeypatch.setattr("laennec.evaluation.evaluate.write_report", lambda *_: None)
    run = shutil.copytree(scored, tmp_path / "run")
    assert main(["calibrate", str(run), "--calibration", "platt", "--threshold-rule", "none"]) == 0
    card = render_card(run)
    head, body = head_and_body(card.text)
    assert "model-index" not in head and "record.evaluation" in card.unanswered
    assert "score it again" in sections(body)["Limitations"] and "had been scored" in sections(body)["Limitations"]
    text = sections(body)["Calibration and thresholds"]
    assert "Platt" in text and "Threshold rule: none, probability 0.5" in text
    assert "platt1999" in body and "guo2017" not in body
    assert main(["evaluate", str(run)]) == 0
    body = head_and_body(render_card(run).text)[1]
    assert "Results" in sections(body) and "was scored 2 times" in sections(body)["Limitations"]


def test_a_split_scored_twice_is_shown_once_and_scored_elsewhere_not_at_all(scored, tmp_path, monkeypatch):
    monkeypatch.setattr("laennec.evaluation.evaluate.write_report", lambda *_: None)
    run = shutil.copytree(scored, tmp_path / "run")
    roundabout = str(tmp_path / "run" / ".." / "run" / "evaluation-test")
    assert main(["evaluate", str(run), "--out", roundabout]) == 0
    assert main(["evaluate", str(run), "--split", "validation", "--out", str(tmp_path / "own")]) == 0
    evaluations = read(run / "run.json")["evaluations"]
    assert [("result" in looked, looked["split"]) for looked in evaluations] == [
        (False, "test"),
        (True, "test"),
        (False, "validation"),
    ]
    body = head_and_body(render_card(run).text)[1]
    assert body.count("### Split") == 1 and "scored 2 times" in sections(body)["Results"]
    assert re.search(r"jackknife over patients, \d+\.\d effective ones with crackle, \d", sections(body)["Results"])
    # what was scored does not carry what an earlier scoring gave
    copies = read(run / "evaluation-test" / "run.json")["evaluations"]
    assert len(copies) == 2 and not any("result" in looked for looked in copies)


def test_a_published_record_gives_the_same_card_without_folders(scored, tmp_path, capsys):
    assert main(["card", str(scored), "--record", str(tmp_path / "record")]) == 0
    assert [path.name for path in (tmp_path / "record").iterdir()] == ["run.json"]
    text = (tmp_path / "record" / "run.json").read_text()
    assert "history" not in json.loads(text) and str(Path(scored).anchor + "tmp") not in text
    assert render_card(tmp_path / "record").text == render_card(scored).text
    assert str(scored) not in render_card(scored).text


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](https://evil.example)",
    "![x](https://evil.example/p.png)",
    "https://evil.example",
    "www.evil.example",
    "!!python/object/apply:os.system",
    "a | b | c",
    "`code` ``more``",
    "line\n## heading\n- item",
    "---\nlicense: mit\n---",
    "-->\n<!-- laennec:unanswered card.funding -->",
    "{{ 7 * 7 }}{% raw %}",
    "[x]: https://evil.example",
    "\u202eright to left\x00",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_metadata_stays_text(tmp_path, text):
    run = read(RECORD / "run.json")
    run["name"] = run["config"]["description"] = run["command"] = run["corpus"]["provenance"]["stamp"] = text
    run["labels"] = [text, "wheeze"]
    run["losses"] = {text: text}
    run["config"]["encoder"]["weights"] = text
    run["corpus"]["provenance"] |= {"leaks": [text], "protocol": text, "validation": text}
    run["hardware"]["processor"], run["versions"] = text, {text: text}
    run["card"] = {k: v for k, v in ANSWERS.items() if k != "licence"}
    run["card"] |= dict.fromkeys(("intended_use", "authors", "contact", "funding"), text)
    result = run["evaluations"][-1]["result"]
    metrics = result["metrics"]
    result["evaluated"]["corpus"]["name"] = text
    metrics["subgroups"]["device"][0]["value"] = metrics["subgroups"]["device"][0]["note"] = text
    metrics["failures"][0] |= {"cycle_id": text, "truth": text, "label": text}
    metrics["warnings"] = [{"level": "bad", "text": text}]
    metrics["floors"][0]["what"] = metrics["definitions"]["icbhi"] = text
    metrics["confusion"]["classes"][1] = text
    (tmp_path / "run.json").write_text(json.dumps(run))
    if text.startswith("!!") or "python" in text:
        assert yaml.safe_load(render_card(tmp_path).text.split("---\n")[1])["model-index"][0]["name"] == text
    head, body = head_and_body_of(render_card(tmp_path).text)
    tame_head, tame_body = head_and_body(render_card(RECORD, answers={"funding": "none"}).text)
    assert "license" not in head and set(head) == set(tame_head) - {"license"}
    page, tame = Page(body), Page(tame_body)
    assert set(page.tags) <= {*tame.tags, "em"} and page.handlers == []  # "em": no licence is given
    assert not [link for link in page.links if "evil" in link]
    assert re.findall(r"^## .+$", body, re.M) == re.findall(r"^## .+$", tame_body, re.M)
    for line in body.splitlines():
        if line.startswith("<!-- laennec:unanswered"):
            assert line == "<!-- laennec:unanswered card.licence -->"
    assert "49" not in page.text.split("\n")[0]


def test_a_corpus_without_metadata_leaves_nothing_open_that_nobody_can_answer(tmp_path):
    run = read(RECORD / "run.json")
    for scored in run["evaluations"]:
        if scored.get("result"):
            scored["result"]["metrics"] |= {"subgroups": {}, "failures": []}
    (tmp_path / "run.json").write_text(json.dumps(run))
    card = render_card(tmp_path)
    assert card.unanswered == render_card(RECORD).unanswered
    assert "| 23b | performance in groups | not possible: the corpus records no device" in card.text
    assert "| error analysis | no prediction was wrong |" in card.text and "## Subgroups" not in card.text


def head_and_body_of(text):
    """By the Hub's own reading of where the head ends."""
    data = ModelCard(text)
    return data.data.to_dict(), data.text


def test_folders_of_a_machine_are_cut_and_nothing_else():
    command = "laennec train recipes/a/b.yaml --corpus.data_dir /home/me/data/sprsound --out=/tmp/x/ --rate 1/2"
    cut = "laennec train recipes/a/b.yaml --corpus.data_dir .../sprsound --out=.../x --rate 1/2"
    nested = {"a": [command, 3], "url": "https://a.example/b", "home": "~/secret/run", "w": "C:\\Users\\me\\run"}
    shown = without_machine_paths(nested)
    assert shown["a"] == [cut, 3] and shown["url"] == nested["url"]
    assert "secret" not in shown["home"] and "Users" not in shown["w"]
    assert without_machine_paths("(Sp + Se) / 2 of and/or") == "(Sp + Se) / 2 of and/or"
    assert without_machine_paths("train --data-dir '/home/my name/a b' x") == "train --data-dir '.../a b' x"
    assert without_machine_paths("/home/my name/a b") == ".../a b" and without_machine_paths("data/a") == "data/a"


def test_citations_are_those_of_what_was_used():
    run = read(RECORD / "run.json")
    text = "\n".join(citations_of(run))
    for key in ("zhang2022sprsound", "schmid2023efficient", "gemmeke2017", "almudevar2024add", "park2019", "guo2017"):
        assert text.count("{" + key) == 1
    assert not re.search("khosla|platt|song2021|mixup|rocha2019|radford", text)
    run["config"]["augment"]["mix"] = {"method": "mixup", "labels": "lungmix"}
    run["config"]["augment"]["spec"] = None
    run["config"]["loss"] |= {"task": "focal", "auxiliary": {"mine": {"loss": "supcon"}}}
    run["config"]["encoder"] |= {"type": "whisper", "trainable": "lora"}
    run["operating_points"]["calibration"] = "platt"
    run["pretraining"] = {"corpus": "sprsound"}
    text = "\n".join(citations_of(run))
    for name in ("mixup", "lungmix", "focal", "khosla", "radford", "hu2022lora", "platt1999", "soni2022"):
        assert name in text, name
    assert not re.search("almudevar|park2019|schmid|guo2017", text)
    assert all(entry.count("{") == entry.count("}") and entry.startswith("@") for entry in citations_of(run))


def test_the_checklist_is_whole_and_asks_only_for_what_there_is():
    content = checklist()
    tripod = [row["item"] for row in content["items"] if row["guideline"] == "TRIPOD+AI"]
    assert {int(re.match(r"\d+", item).group()) for item in tripod} == set(range(1, 28))
    assert len(set(tripod)) == len(tripod) and {g["name"]: g["items"] for g in content["guidelines"]} == {
        "TRIPOD+AI": 27,
        "STARD-AI": 40,
    }
    stard = [row for row in content["items"] if row["guideline"] == "STARD-AI"]
    assert len(stard) >= 40 and not any(re.search(r"\d", row["item"]) for row in stard)  # by heading, not by number
    anchors, keys = set(section_anchors()), set(questions())
    assert {row["section"] for row in content["items"]} <= anchors
    needed = {key for row in content["items"] for key in row["needs"]}
    assert needed <= keys
    fields = {f"card.{name}" for name in vars(CardSettings())}
    assert {key for key in keys if key.startswith("card.")} <= fields
    optional = {"card.licence_name", "card.licence_link", "card.base_model", "card.dataset", "card.out_of_scope"}
    assert fields - keys == optional


def test_results_for_the_hubs_leaderboards_need_data_on_the_hub(scored, tmp_path):
    run = shutil.copytree(scored, tmp_path / "run")
    assert render_card(run).eval_results == {}
    record = read(run / "run.json")
    record["card"] = {"dataset": "someone/lungs"}
    (run / "run.json").write_text(json.dumps(record))
    (tmp_path / "out").mkdir()
    write_card(run, tmp_path / "out")
    from huggingface_hub import parse_eval_result_entries

    [file] = (tmp_path / "out" / ".eval_results").iterdir()
    [entry] = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    value = read(run / "evaluation-test" / "metrics.json")["values"]["icbhi.Score"]
    assert entry.dataset_id == "someone/lungs" and entry.value == pytest.approx(value, abs=1e-4)
    assert entry.task_id == "test_icbhi_score"
    del record["card"]
    (run / "run.json").write_text(json.dumps(record))
    write_card(run, tmp_path / "out")  # results that hold no longer go
    assert list((tmp_path / "out" / ".eval_results").iterdir()) == []


def test_only_hub_ids_are_given_as_a_base():
    assert is_hub_id("openai/whisper-base") and is_hub_id("MIT/ast-finetuned-audioset-10-10-0.4593")
    assert not any(map(is_hub_id, ("weights/mn04_as_mAP_432.pt", "mn04", "runs/a/encoder", None, "a/b.pt")))


def test_licences_are_checked_where_they_are_given(scored, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"apache-2\.0"):
        write_card(scored, tmp_path / "out", license="apache")
    assert list((tmp_path / "out").iterdir()) == []
    for licence in LICENCES:
        CardSettings(licence=licence, licence_name="Own" if licence == "other" else None)
