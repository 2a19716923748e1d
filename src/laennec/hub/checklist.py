"""Which items of the reporting guidelines a card answers.

Decisions: one file says where each item is answered and by whom (templates/checklist.yaml; the copy in model_cards/
is for readers). An item is answered when its section is in the card and everything it needs was said; a section that is
there says something, because the template has no empty ones.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml


@dataclass(frozen=True)
class Item:
    """One item of a guideline.

    Attributes:
        guideline: Its name.
        item: Number, or main heading where items go by topic.
        topic: What it is about.
        section: Anchor of the card's section.
        needs: Answers without which it is open.
        open: Those of them that are missing, or the section.
    """

    guideline: str
    item: str
    topic: str
    section: str
    needs: tuple[str, ...]
    open: tuple[str, ...] = ()


@cache
def checklist() -> dict[str, Any]:
    """The checklist file: guidelines, answers and items."""
    text = resources.files("laennec").joinpath("templates/checklist.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def questions() -> dict[str, str]:
    """What each answer is about, by its key ("card.funding", "record.evaluation")."""
    return {answer["key"]: answer["about"] for answer in checklist()["answers"]}


def items(answered: Collection[str], sections: Collection[str]) -> list[Item]:
    """Every item, with what keeps it open.

    Args:
        answered: Keys of the answers that were given.
        sections: Anchors of the sections that the card has.
    """
    found = []
    for row in checklist()["items"]:
        lacking = [key for key in row["needs"] if key not in answered]
        if row["section"] not in sections and not lacking:
            lacking = ["record.evaluation"]  # the sections that can be absent are those of an evaluation
        found.append(
            Item(row["guideline"], row["item"], row["topic"], row["section"], tuple(row["needs"]), tuple(lacking))
        )
    return found


def open_answers(answered: Collection[str], sections: Collection[str]) -> dict[str, list[str]]:
    """The keys that are to be answered, each with the items that wait for it ("TRIPOD+AI 17")."""
    waiting: dict[str, list[str]] = {key: [] for key in questions() if key not in answered}
    for item in items(answered, sections):
        for key in item.open:
            waiting.setdefault(key, []).append(f"{item.guideline} {item.item}")
    return waiting


def guideline_lines() -> list[Mapping[str, Any]]:
    """Name, reference, number of items and numbering of each guideline."""
    return list(checklist()["guidelines"])
