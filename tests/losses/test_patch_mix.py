"""The Patch-Mix loss against their formulas and the authors' numbers."""

import math

import pytest
import torch

from laennec.losses import PatchMixContrastiveLoss


def naive(mixed, clean, lam, index, labels, negatives):
    batch, total = len(mixed), 0.0
    lam = [float(lam)] * batch if not isinstance(lam, torch.Tensor) else lam.tolist()
    for i in range(batch):
        logits = [
            float(torch.cosine_similarity(mixed[i].double(), clean[j].double(), dim=0)) / 0.06 for j in range(batch)
        ]
        kept = [j for j in range(batch) if negatives == "all" or labels[j] != labels[i] or j in (i, int(index[i]))]
        norm = math.log(sum(math.exp(logits[j]) for j in kept))
        total -= lam[i] * (logits[i] - norm) + (1 - lam[i]) * (logits[index[i]] - norm)
    return total / batch


def test_golden_values_and_gradients(golden):
    cases = golden("patchmix_groupmix")
    for name, negatives in [("patchmix_con_all_lam0.7", "all"), ("patchmix_con_diff_label_lam0.7", "different_label")]:
        given, expected = cases[name]["inputs"], cases[name]["expected"]
        clean = torch.tensor(given["projection1"], requires_grad=True)
        mixed = torch.tensor(given["projection2"], requires_grad=True)
        loss = PatchMixContrastiveLoss(negatives=negatives, detach_clean=False)
        value = loss(mixed, clean, given["lam"], torch.tensor(given["index"]), torch.tensor(given["labels"]))[
            "patch_mix"
        ]
        value.backward()
        assert value.item() == pytest.approx(expected["loss"], rel=1e-5)
        assert torch.isfinite(clean.grad).all()
        if expected["grad_projection1"] is not None:
            torch.testing.assert_close(clean.grad, torch.tensor(expected["grad_projection1"]), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(mixed.grad, torch.tensor(expected["grad_projection2"]), rtol=1e-4, atol=1e-6)
