"""The section `corpus` of a recipe: one corpus, or a list of several that are trained on together.

Decisions: several corpora are kept as one section whose `corpora` are the sections of each, so that code that names the
corpus of a run ("sprsound+icbhi2017") reads one section. A setting beside the list is refused, because each corpus has
its own; only the seed of the split is common.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictInt, model_validator

from laennec.training.recipe.settings import Settings


class CorpusSettings(Settings):
    """What to train on and how it is split; one corpus, or several of them."""

    name: str = Field(
        default="synthetic",
        description="icbhi2017, sprsound, physionet2016, folder, hub, synthetic, or package.module:Name of your "
        "own corpus",
    )
    data_dir: str | None = Field(
        default=None, description="folder, zip, or an exported corpus: its folder or hf://datasets/OWNER/NAME"
    )
    protocol: str | None = Field(default=None, description="how patients are split; left out: the corpus' own")
    fold: StrictInt = Field(default=0, ge=0, description="test fold, where the protocol has folds")
    validation_fraction: float = Field(
        default=0.2, gt=0, lt=1, description="share of the training patients for validation"
    )
    validation_fold: StrictInt | Literal["all"] | None = Field(
        default=None,
        description="which of the 1 / validation_fraction folds of training patients is validation, instead of a "
        "draw; all: none of them, as in an ensemble of folds",
    )
    split_seed: StrictInt = Field(
        default=0, description="seed of the split alone, so that runs of several seeds share it"
    )
    tables_dir: str | None = Field(
        default=None, description="folder of split and patient tables, if not beside the recordings"
    )
    allow_missing: StrictBool = Field(default=False, description="accept a published corpus that lacks recordings")
    level: str | None = Field(
        default=None,
        description="what a row is: event or recording (icbhi2017, folder), event or record (sprsound), recording "
        "or window (physionet2016)",
    )
    label_fraction: float = Field(
        default=1.0, gt=0, le=1, description="share of the training cycles whose labels are used"
    )
    label_draw: StrictInt = Field(default=0, ge=0, description="number of the random draw of that share")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the corpus, such as repo or window_s")
    corpora: list["CorpusSettings"] = Field(
        default_factory=list,
        description="several corpora, trained on together; `corpus: [{name: ...}, {name: ...}]` is short for it, and "
        "--corpus.NAME.fold sets one of them",
    )

    @property
    def each(self) -> list["CorpusSettings"]:
        """The settings of each corpus."""
        return self.corpora or [self]

    @model_validator(mode="after")
    def _several(self) -> "CorpusSettings":
        if nameless := [one.data_dir for one in self.each if one.data_dir and "name" not in one.model_fields_set]:
            raise ValueError(f"no name for the corpus in {nameless[0]}; give corpus.name, such as folder or icbhi2017")
        if not self.corpora:
            return self
        names, own = [one.name for one in self.corpora], {"name", "split_seed", "corpora"}
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{twice} is listed twice; list each corpus once, and put own recordings into one folder")
        for key in type(self).model_fields.keys() - own:
            if getattr(self, key) != type(self).model_fields[key].get_default(call_default_factory=True):
                raise ValueError(f"corpus.{key} is for one corpus, and there are several; set corpus.{names[0]}.{key}")
        if any(one.corpora or one.label_fraction < 1 for one in self.corpora):
            raise ValueError("a corpus of a list cannot have label_fraction or corpora; leave them out")
        if len(seeds := {one.split_seed for one in self.corpora}) > 1:
            raise ValueError(f"split_seed is {' and '.join(map(str, sorted(seeds)))}; give all corpora the same")
        self.name, self.split_seed = "+".join(names), seeds.pop()
        return self


def _listed(given: Any) -> Any:
    if given == []:
        raise ValueError("the list names no corpus; give one with its name")
    return {"corpora": given} if isinstance(given, list) else given


# a list of corpora stands for the settings of several
Corpora = Annotated[
    CorpusSettings, BeforeValidator(_listed, json_schema_input_type=CorpusSettings | list[CorpusSettings])
]
