"""BibTeX entries of everything that a run used.

Decisions: corpora, encoders and losses carry their own citation; the table below holds the others. Identifiers (DOI,
arXiv) stand only where they were looked up.
"""

from collections.abc import Mapping
from typing import Any

from laennec.corpora.load import find_corpus
from laennec.encoders import encoder_class

_BIB: dict[str, str] = {
    "audioset": """@inproceedings{gemmeke2017audioset,
  title={Audio Set: An ontology and human-labeled dataset for audio events},
  author={Gemmeke, Jort F. and others},
  booktitle={IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year={2017}
}""",
    "lora": """@inproceedings{hu2022lora,
  title={LoRA: Low-Rank Adaptation of Large Language Models},
  author={Hu, Edward J. and others},
  booktitle={International Conference on Learning Representations (ICLR)},
  year={2022}
}""",
    "mixup": """@inproceedings{zhang2018mixup,
  title={mixup: Beyond Empirical Risk Minimization},
  author={Zhang, Hongyi and Cisse, Moustapha and Dauphin, Yann N. and Lopez-Paz, David},
  booktitle={International Conference on Learning Representations (ICLR)},
  year={2018}
}""",
    "lungmix": """@article{ge2024lungmix,
  title={Lungmix: A Mixup-Based Strategy for Generalization in Respiratory Sound Classification},
  author={Ge, Shijia and others},
  year={2024}
}""",
    "spec_augment": """@inproceedings{park2019specaugment,
  title={SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition},
  author={Park, Daniel S. and others},
  booktitle={Interspeech},
  year={2019}
}""",
    "pretrain": """@article{soni2022contrastive,
  title={Contrastive learning of heart and lung sounds for label-efficient diagnosis},
  author={Soni, Pratham N. and Shi, Siyu and Sriram, Pranav R. and Ng, Andrew Y. and Rajpurkar, Pranav},
  journal={Patterns},
  year={2022}
}""",
    "sam": """@inproceedings{foret2021sam,
  title={Sharpness-Aware Minimization for Efficiently Improving Generalization},
  author={Foret, Pierre and Kleiner, Ariel and Mobahi, Hossein and Neyshabur, Behnam},
  booktitle={International Conference on Learning Representations (ICLR)},
  year={2021}
}""",
    "hybrid": """@article{moummad2022supervised,
  title={Supervised Contrastive Learning for Respiratory Sound Classification},
  author={Moummad, Ilyass and Farrugia, Nicolas},
  journal={arXiv preprint arXiv:2210.16192},
  year={2022}
}""",
    "stethoscope": """@inproceedings{kim2024stethoscope,
  title={Stethoscope-guided Supervised Contrastive Learning for Cross-domain Adaptation on Respiratory Sound
    Classification},
  author={Kim, June-Woo and Bae, Sangmin and Cho, Won-Yang and Lee, Byungjo and Jung, Ho-Young},
  booktitle={IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year={2024}
}""",
    "temperature": """@inproceedings{guo2017calibration,
  title={On Calibration of Modern Neural Networks},
  author={Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle={International Conference on Machine Learning (ICML)},
  year={2017}
}""",
    "platt": """@incollection{platt1999probabilistic,
  title={Probabilistic Outputs for Support Vector Machines and Comparisons to Regularized Likelihood Methods},
  author={Platt, John C.},
  booktitle={Advances in Large Margin Classifiers},
  year={1999}
}""",
}


def citations_of(run: Mapping[str, Any]) -> list[str]:
    """BibTeX entries of what a run used, corpus first, each once.

    Args:
        run: The run record.
    """
    config = run["config"]
    encoder, augment = config["encoder"], config.get("augment") or {}
    corpus = find_corpus(config["corpus"]["name"])
    kind = encoder_class(encoder)
    keys = []
    if "AudioSet" in getattr(kind, "title", "") and encoder.get("weights") and not run.get("pretraining"):
        keys.append("audioset")
    if encoder.get("trainable") == "lora":
        keys.append("lora")
    entries = [corpus.citation] if corpus is not None and corpus.citation else []
    entries += [kind.citation] if getattr(kind, "citation", "") else []  # type: ignore[union-attr, list-item]
    entries += [_BIB[key] for key in keys if key in _BIB] + _of_losses(config)
    mix = augment.get("mix") or {}
    keys = [mix["method"]] if mix else []
    keys += ["lungmix"] if mix.get("labels") == "lungmix" else []
    keys += ["spec_augment"] if augment.get("spec") else []
    keys += ["pretrain"] if run.get("pretraining") else []
    keys += ["sam"] if config["train"].get("sam_rho") is not None else []
    fitted = run.get("operating_points") or {}
    keys.append(fitted.get("calibration") or ("temperature" if fitted.get("temperatures") else ""))
    entries += [_BIB[key] for key in keys if key in _BIB]
    return list(dict.fromkeys(entries))


def _of_losses(config: Mapping[str, Any]) -> list[str]:
    """The citations that the losses carry themselves."""
    from laennec.losses import AUXILIARY_LOSSES, FocalLoss, PatchMixContrastiveLoss

    loss, found = config["loss"], []
    if loss["task"] == "focal":
        found.append(FocalLoss.citation)
    for name, given in (loss.get("auxiliary") or {}).items():
        kind = (given or {}).get("loss", name)
        found.append(str(getattr(AUXILIARY_LOSSES.get(kind), "citation", "") or ""))
        if kind == "supcon" and loss.get("task_views") == "all":
            found.append(_BIB["hybrid"])
        if (given or {}).get("detach_other_views"):
            found.append(_BIB["stethoscope"])
    mix = (config.get("augment") or {}).get("mix") or {}
    if mix.get("method") == "patch_mix":
        found.append(PatchMixContrastiveLoss.citation)
    return [entry for entry in found if entry]
