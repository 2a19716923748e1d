"""One side of `benchmarks.peers`, in its own environment: `python peers_sides.py SIDE JOB CLIPS.json`.

Decisions: each library loads, resamples, computes features, makes batches and trains as its documentation says, with
the network of `peers_network`, one process and one thread. A few clips are processed before the clock starts, so that
imports on first use do not count. Libraries are imported in the functions of their side, because an environment has
only one of them.
"""

import contextlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

BATCH = 16
Clips = list[dict[str, Any]]
Job = Callable[[Clips], Any]


def laennec(job: str) -> Job:
    """model.encode with annotations beside recordings; LaennecTrainer over a table."""
    from laennec import LaennecFeatureExtractor, LaennecForAudioClassification
    from peers_network import FFT, HOP, LABELS, MELS, WINDOW, Encoder  # type: ignore[import-not-found,unused-ignore]

    extractor = LaennecFeatureExtractor(
        "ast", length="natural", num_mel_bins=MELS, window_samples=WINDOW, hop_samples=HOP, fft_samples=FFT
    )
    model = LaennecForAudioClassification.from_encoder(Encoder(), list(LABELS), features=extractor)

    def embed(clips: Clips) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            lines: dict[str, list[str]] = {}
            for clip in clips:
                line = f"{clip['start_s']}\t{clip['end_s']}\t{clip['crackle']}\t{clip['wheeze']}\n"
                lines.setdefault(clip["path"], []).append(line)
            for path, text in lines.items():
                Path(folder, f"{Path(path).stem}.txt").write_text("".join(text))
            return model.encode(list(lines), annotation=folder, extractor=extractor)

    def train(clips: Clips) -> Any:
        import datasets

        from laennec import LaennecTrainer, LaennecTrainingArguments

        table = datasets.Dataset.from_list([{**clip, "recording_path": clip["path"]} for clip in clips])
        with tempfile.TemporaryDirectory() as folder:
            args = LaennecTrainingArguments(
                folder, num_train_epochs=1, per_device_train_batch_size=BATCH, use_cpu=True, save_strategy="no",
                report_to="none", disable_tqdm=True,
            )  # fmt: skip
            trainer = LaennecTrainer(model, args, train_dataset=table, processing_class=extractor)
            return trainer.train().global_step

    return embed if job == "embed" else train


def opensoundscape(job: str) -> Job:
    """CNN with a mel TorchSpectrogramPreprocessor; embed() and train()."""
    _without_compiled_operators()
    import pandas as pd

    CNN = import_module("opensoundscape").CNN
    preprocessors = import_module("opensoundscape.preprocess.preprocessors")
    from peers_network import FFT, HOP, LABELS, MELS, RATE, WINDOW, Network

    model = CNN(
        Network(), classes=list(LABELS), sample_duration=2.0, sample_rate=RATE,
        preprocessor_cls=preprocessors.TorchSpectrogramPreprocessor,
        n_mels=MELS, spec_nfft=FFT, spec_window_length=WINDOW, spec_hop_length=HOP,
    )  # fmt: skip
    model.device = "cpu"

    def table(clips: Clips) -> Any:
        index = [(clip["path"], clip["start_s"], clip["end_s"]) for clip in clips]
        names = ["file", "start_time", "end_time"]
        labels = [[clip[label] for label in LABELS] for clip in clips]
        return pd.DataFrame(labels, pd.MultiIndex.from_tuples(index, names=names), list(LABELS))

    def embed(clips: Clips) -> Any:
        return model.embed(table(clips)[[]], batch_size=BATCH, progress_bar=False)

    def train(clips: Clips) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            model.train(
                table(clips), steps=-(-len(clips) // BATCH), batch_size=BATCH, save_path=folder, progress_bar=False,
                invalid_samples_log=None, reload_best_at_end=False, bypass_augmentations=True, raise_errors=True,
            )  # fmt: skip

    return embed if job == "embed" else train


def speechbrain(job: str) -> Job:
    """DynamicItemDataset, Resample and Fbank; a Brain for training."""
    import torch

    from peers_network import FFT, LABELS, MELS, RATE, Network

    Brain: Any = import_module("speechbrain").Brain
    read_audio = import_module("speechbrain.dataio.dataio").read_audio
    DynamicItemDataset = import_module("speechbrain.dataio.dataset").DynamicItemDataset
    Resample = import_module("speechbrain.augment.time_domain").Resample
    Fbank = import_module("speechbrain.lobes.features").Fbank
    network, fbank = Network(), Fbank(n_mels=MELS, n_fft=FFT, sample_rate=RATE)
    resamplers: dict[int, Any] = {}

    def load(wav: dict[str, Any], rate: int) -> Any:
        signal = read_audio(wav)
        if rate not in resamplers:
            resamplers[rate] = Resample(orig_freq=rate, new_freq=RATE)
        return resamplers[rate](signal[None])[0]

    def dataset(clips: Clips) -> Any:
        items = {}
        for number, clip in enumerate(clips):
            rate = clip["rate"]
            span = {"start": round(clip["start_s"] * rate), "stop": round(clip["end_s"] * rate)}
            labels = [float(clip[label]) for label in LABELS]
            items[f"clip {number}"] = {"wav": {"file": clip["path"], **span}, "rate": rate, "flags": labels}
        made = DynamicItemDataset(items)
        made.add_dynamic_item(load, takes=["wav", "rate"], provides="signal")
        made.add_dynamic_item(torch.tensor, takes="flags", provides="labels")
        made.set_output_keys(["id", "signal", "labels"])
        return made

    class Clip(Brain):
        def compute_forward(self, batch: Any, stage: Any) -> Any:
            return self.modules.network(fbank(batch.signal.data))

        def compute_objectives(self, predictions: Any, batch: Any, stage: Any) -> Any:
            return torch.nn.functional.binary_cross_entropy_with_logits(predictions, batch.labels.data)

    def embed(clips: Clips) -> Any:
        make_dataloader = import_module("speechbrain.dataio.dataloader").make_dataloader
        network.eval()
        with torch.no_grad():
            batches = make_dataloader(dataset(clips), batch_size=BATCH)
            return torch.cat([network.embed(fbank(batch.signal.data)) for batch in batches])

    def train(clips: Clips) -> Any:
        brain = Clip({"network": network}, torch.optim.AdamW, run_opts={"device": "cpu"})
        loader = {"batch_size": BATCH, "shuffle": True}
        brain.fit(range(1), dataset(clips), train_loader_kwargs=loader, progressbar=False)

    return embed if job == "embed" else train


# autrainer imports a model by its module name from the folder of the program
_AUTRAINER_MODEL = """
from autrainer.models import AbstractModel
from peers_network import Network

class Model(AbstractModel):
    def __init__(self, output_dim, transfer=None):
        super().__init__(output_dim, transfer)
        self.network = Network()

    def embeddings(self, features):
        return self.network.embed(features[:, 0])

    def forward(self, features):
        return self.network(features[:, 0])
"""


def autrainer(job: str) -> Job:
    """BaseMLClassificationDataset over files, PannMel, ModularTaskTrainer; Inference.embed_directory."""
    _without_compiled_operators()
    import pandas as pd
    import soundfile

    from peers_network import FFT, HOP, LABELS, MELS, RATE

    OmegaConf = import_module("omegaconf").OmegaConf
    ModularTaskTrainer = import_module("autrainer.training").ModularTaskTrainer
    Inference = import_module("autrainer.serving").Inference
    Path("autrainer_model.py").write_text(_AUTRAINER_MODEL)
    sys.path.append(str(Path.cwd()))
    mel = {"window_size": FFT, "hop_size": HOP, "sample_rate": RATE, "fmin": 50, "fmax": RATE // 2, "mel_bins": MELS}
    panns = {"autrainer.transforms.PannMel": mel | {"ref": 1.0, "amin": 1e-10, "top_db": None}}
    metric = "autrainer.metrics.MLF1Macro"
    plots = {
        "figsize": [10, 5], "latex": False, "filetypes": ["png"], "pickle": False, "context": "notebook",
        "palette": "colorblind", "replace_none": False, "add_titles": True, "add_xlabels": True, "add_ylabels": True,
        "rcParams": {},
    }  # fmt: skip

    def files(clips: Clips, folder: Path) -> list[list[Any]]:
        (folder / "default").mkdir(parents=True)
        rows = []
        for number, clip in enumerate(clips):
            start, stop = round(clip["start_s"] * clip["rate"]), round(clip["end_s"] * clip["rate"])
            soundfile.write(folder / "default" / f"{number}.wav", *soundfile.read(clip["path"], start=start, stop=stop))
            rows.append([f"{number}.wav", *(clip[label] for label in LABELS)])
        return rows

    def trainer(clips: Clips, folder: Path) -> Any:
        table = pd.DataFrame(files(clips, folder / "data"), columns=["file", *LABELS])
        for part, rows in {"train": table, "dev": table[:BATCH], "test": table[:BATCH]}.items():
            rows.to_csv(folder / "data" / f"{part}.csv", index=False)
        dataset = {
            "id": "clips", "_target_": "autrainer.datasets.BaseMLClassificationDataset", "path": str(folder / "data"),
            "features_subdir": "default", "index_column": "file", "target_column": list(LABELS), "file_type": "wav",
            "file_handler": {"autrainer.datasets.utils.AudioFileHandler": {"target_sample_rate": RATE}},
            "criterion": "autrainer.criterions.BCEWithLogitsLoss", "metrics": [metric], "tracking_metric": metric,
            "transform": {"type": "raw", "base": ["autrainer.transforms.StereoToMono", panns]},
        }  # fmt: skip
        config = {
            "dataset": dataset,
            "model": {"id": "model", "_target_": "autrainer_model.Model", "transform": {"type": "raw"}},
            "optimizer": {"id": "AdamW", "_target_": "torch.optim.AdamW"}, "scheduler": {"id": "None"},
            "augmentation": None, "seed": 0, "batch_size": BATCH, "inference_batch_size": BATCH,
            "learning_rate": 1e-3, "iterations": 1, "training_type": "epoch", "eval_frequency": 1, "save_frequency": 1,
            "device": "cpu", "reproducible": False, "progress_bar": False, "continue_training": False,
            "save_train_outputs": False, "save_dev_outputs": False, "save_test_outputs": False, "plotting": plots,
        }  # fmt: skip
        (folder / "run").mkdir()
        return ModularTaskTrainer(OmegaConf.create(config), str(folder / "run"))

    def embed(clips: Clips) -> Any:
        if not Path("model").is_dir():
            made = trainer(clips, Path("model"))
            made._thread_manager.join()
        with tempfile.TemporaryDirectory() as folder:
            files(clips, Path(folder, "data"))
            inference = Inference("model/run", device="cpu", sample_rate=RATE)
            return inference.embed_directory(str(Path(folder, "data", "default")), "wav")

    def train(clips: Clips) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            trainer(clips, Path(folder)).train()

    return embed if job == "embed" else train


def _without_compiled_operators() -> None:
    """Allow imports of torchvision although its compiled part for CUDA does not load with the CPU build of torch."""
    import torch

    for name, what in {"nms": "scores, float iou_threshold", "qnms": "scores, float iou_threshold"}.items():
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", f"(Tensor dets, Tensor {what}) -> Tensor")


SIDES = {side.__name__: side for side in (laennec, opensoundscape, speechbrain, autrainer)}


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main() -> None:
    """Run one job of one side; print CPU seconds of the job and before it, and the peak memory of the process."""
    side, job, file = sys.argv[1:]
    import torch

    torch.set_num_threads(1)
    given = json.loads(Path(file).read_text())
    with contextlib.redirect_stdout(sys.stderr):
        run = SIDES[side](job)
        run(given["first"])
        before = _cpu_s()
        run(given["clips"])
        took = _cpu_s() - before
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    print(json.dumps({"cpu_s": took, "before_s": before, "peak_mb": peak}))


if __name__ == "__main__":
    main()
