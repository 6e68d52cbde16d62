"""Recipes: how public models are asked, as data, and which of them fits a checkpoint.

A recipe is a fragment of a manifest (see ``fsrm_lite.export``) that comes with the package, in ``models/recipes/``,
with what it is for, how its models are recognised, and what it assumes. A checkpoint is recognised by its name; else,
by its architecture and head together with a chat template, it gets one of the recipes for any model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from fsrm_lite.errors import ExportError

ANY_SCALAR, ANY_JUDGE = "scalar", "yes-no"
"""The recipes for checkpoints that no other one knows: with a scalar head, and with a vocabulary."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a family of models is asked.

    Attributes:
        name: Its name on the command line.
        about: What it reads, in half a sentence.
        models: Names on the hub that it is for; empty for a recipe for any model.
        license: Licence of the models.
        source: Where the prompt and the figures were published.
        names: A checkpoint is recognised if the name of its folder, or its "org/name" on the hub, contains one of
            these, in lower case.
        classes: Model classes that it fits; empty for any with a vocabulary.
        assumes: What it takes for granted, a sentence each.
        spec: The fragment, without a name.
        published: Examples with published rewards, each with ``model``, ``shape``, ``prompt``, ``response``, ``logit``
            and ``tolerance``.
        examples: Two texts with the ids that they must give: ``tokenizer``, ``template``, ``prompt``, ``responses``,
            and ``ids``, as one text.
    """

    name: str
    about: str
    models: tuple[str, ...]
    license: str
    source: str
    names: tuple[str, ...]
    classes: tuple[str, ...]
    assumes: tuple[str, ...]
    spec: Mapping[str, Any]
    published: tuple[Mapping[str, Any], ...]
    examples: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Recognised:
    """The recipe for a checkpoint, and by what the checkpoint was recognised."""

    recipe: Recipe
    why: str


@cache
def all_recipes() -> dict[str, Recipe]:
    """Return the recipes by name: those for certain models first, then those for any."""
    folder = resources.files("fsrm_lite.models").joinpath("recipes")
    found = [
        _read(entry.name.removesuffix(".json"), json.loads(entry.read_text("utf-8")))
        for entry in folder.iterdir()
        if entry.name.endswith(".json")
    ]
    return {recipe.name: recipe for recipe in sorted(found, key=lambda r: (not r.models, r.name))}


def find_recipe(name: str) -> Recipe:
    """Return a recipe by name.

    Raises:
        ExportError: If there is none of this name.
    """
    known = all_recipes()
    if name not in known:
        raise ExportError(f"there is no recipe {name!r}; expected one of {', '.join(known)}")
    return known[name]


def recognise(name: str, model_class: str, *, chat_template: bool) -> Recognised:
    """Return the recipe for a checkpoint.

    Args:
        name: The name of its folder, without the folders above it, or "org/name" on the hub.
        model_class: The class in its config.json.
        chat_template: Whether it has a chat template.

    Raises:
        ExportError: If nothing is known about it; the message says what to do.
    """
    for recipe in all_recipes().values():
        part = next((part for part in recipe.names if part in name.lower()), None)
        if part is not None:
            if recipe.classes and model_class not in recipe.classes:
                raise ExportError(
                    f"{name} is called like the models of the recipe {recipe.name!r}, but is a {model_class}, expected "
                    f"{' or '.join(recipe.classes)}; name a recipe with --recipe, or a file with --spec"
                )
            return Recognised(recipe, f"by its name, which contains {part!r}")
    if not chat_template:
        raise ExportError(
            f"nothing is known about {name}: no recipe has its name, and it has no chat template from which a prompt "
            "could be made; write labels and templates into a file and name it with --spec"
        )
    scalar = model_class.endswith("ForSequenceClassification")
    recipe = find_recipe(ANY_SCALAR if scalar else ANY_JUDGE)
    head = "a scalar head" if scalar else "a vocabulary as its head"
    return Recognised(recipe, f"by its class {model_class}, {head} and a chat template; no recipe has its name")


def fragment(recipe: Recipe, name: str) -> dict[str, Any]:
    """Return a recipe as a spec for a model of this name: what ``--print-recipe`` prints and ``--spec`` takes."""
    return {"name": name, "license": recipe.license, **recipe.spec}


def _read(name: str, data: Mapping[str, Any]) -> Recipe:
    known = data["recognise"]
    return Recipe(
        name,
        data["about"],
        tuple(data["models"]),
        data["license"],
        data["source"],
        tuple(known["names"]),
        tuple(known["classes"]),
        tuple(data["assumes"]),
        data["spec"],
        tuple(data.get("published", ())),
        tuple(data.get("examples", ())),
    )
