"""A Trainer whose checkpoints are whole, and that goes on from them bit for bit.

Decisions: transformers writes a checkpoint, we put it in its place; weights are written under the names they have
here, and a checkpoint that does not fill the model is refused, where transformers would go on with a warning.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from laennec.errors import InputError
from laennec.files import atomic_write
from laennec.training.checkpoints import WRITING, last_whole, rotate, seal, what_is_wrong
from laennec.training.record import read_record, write_record
from laennec.training.stopping import SaveAndStop, on_request

_SUMS = "sums.json"


class ResumableTrainer(Trainer):
    """transformers' Trainer with checkpoints that are either whole or not there."""

    _writing: Path | None = None
    _saved = False

    def train_on(self, save_steps: int | None = None) -> None:
        """Train, or go on from the last whole checkpoint in the folder of the arguments; SIGTERM leaves another one.

        Args:
            save_steps: A checkpoint after so many steps, beside the one an epoch; None for no others.

        Raises:
            InputError: The checkpoint was written by another number of processes.
            Terminated: By SIGTERM, once the checkpoint is written.
        """
        folder = Path(str(self.args.output_dir))
        with self.args.main_process_first(desc="checkpoints"):
            last = last_whole(folder, self.args.world_size) if folder.is_dir() else None
        if last is not None:
            self._restore_sums(read_record(last / _SUMS))
        with on_request() as request:
            self.add_callback(SaveAndStop(request, save_steps))
            self.train(resume_from_checkpoint=None if last is None else str(last))

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._writing is None else str(self._writing)

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        """Have transformers write a checkpoint aside, and put it in its place when it is whole."""
        folder = Path(str(self.args.output_dir))
        name = f"checkpoint-{self.state.global_step}"
        if self._saved and not folder.is_dir():
            # made anew it would hold a part of a run, on a disk that is not the run's
            raise InputError(
                f"{folder}: is gone: it was moved or removed meanwhile, or its disk or network share was lost; put it "
                "back and run the same command again"
            )
        self._writing = folder / WRITING
        try:
            super()._save_checkpoint(model, trial)
            if self.state.best_global_step:
                self.state.best_model_checkpoint = str(folder / f"checkpoint-{self.state.best_global_step}")
            self.accelerator.wait_for_everyone()  # each process has written its random state
            if self.args.should_save:
                self.state.save_to_json(str(self._writing / name / TRAINER_STATE_NAME))
                write_record(self._writing / name / _SUMS, self._sums())
                seal(self._writing / name, folder / name, {"processes": self.args.world_size})
                self._writing.rmdir()
                rotate(folder, self.args.save_total_limit, self.state.best_model_checkpoint)
                self._saved = True
        finally:
            self._writing = None
        self.accelerator.wait_for_everyone()

    def _sums(self) -> dict[str, Any]:
        """What was added up since the last log, so that an epoch that is gone on with logs the same means."""
        return {}

    def _restore_sums(self, sums: dict[str, Any]) -> None:
        """Go on adding up."""

    def _load_best_model(self) -> None:
        """The best epoch's weights, if they are what was written.

        Raises:
            InputError: They are not.
        """
        # by its name: the run's folder may have been moved since
        best = Path(str(self.args.output_dir)) / Path(str(self.state.best_model_checkpoint)).name
        self.state.best_model_checkpoint = str(best)
        if wrong := what_is_wrong(best):
            raise InputError(f"{best}: the best epoch's checkpoint is damaged ({wrong}); run the same command again")
        super()._load_best_model()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write a checkpoint's weights under the names they have here, without an encoder that is_frozen.

        `save_pretrained` writes some under those of older releases of transformers (AST's do), and `load_state_dict`,
        by which a Trainer takes a checkpoint back, would pass over them with a warning.
        """
        if not self.args.should_save:
            return
        model: Any = self.accelerator.unwrap_model(self.model)
        state = model.state_dict() if state_dict is None else state_dict
        kept = {k: v.contiguous() for k, v in state.items() if not model.is_frozen(k)}
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / SAFE_WEIGHTS_NAME, "wb") as file:
            file.write(save(kept, metadata={"format": "pt"}))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint that does not fill the model; transformers would go on with a warning."""
        model: Any = self.accelerator.unwrap_model(self.model)
        missing = [key for key in load_result.missing_keys if not model.is_frozen(key)]
        if missing or load_result.unexpected_keys:
            what = f"{missing[0]} is missing" if missing else f"{load_result.unexpected_keys[0]} is unknown"
            raise InputError(
                f"{self.args.output_dir}: a checkpoint does not fit the model ({what}); start anew with --overwrite"
            )
