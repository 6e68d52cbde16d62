"""Recipes: how public models are asked, as data, and which of them fits a checkpoint.

A recipe is a fragment of a manifest (see ``fsrm_lite.export``) that comes with the package, in ``models/recipes/``,
with what it is for, how its models are recognised, and what it assumes. A checkpoint is recognised by its name; else by
the name of the model that it was made from, as far as its files tell; else, by its architecture and head together with
a chat template, it gets one of the recipes for any model. What of that is a guess is said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from fsrm_lite.errors import ExportError

ANY_SCALAR, ANY_JUDGE = "scalar", "yes-no"
"""The recipes for checkpoints that no other one knows: with a scalar head, and with a vocabulary."""

UNREAD = {
    "judgelrm": "writes a rating of its own making for each of two responses, which no recipe reads",
}
"""Judges that must not be taken for any chat model, by a part of their names, and why no recipe is theirs."""

_OWN_KIND = re.compile(r"(?<![a-z])(judge|reward|rm|grm|rrm|gram|critic|evaluator|rerank(?:er)?|verifier)(?![a-z])")
"""Words in the name of a model that was trained to judge, and so for a prompt of its own."""


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
            these, in lower case and as whole words.
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
    """The recipe for a checkpoint.

    Attributes:
        recipe: The recipe.
        why: By what the checkpoint was recognised.
        guesses: What was guessed beside what the recipe assumes, and what to do where it is wrong; a sentence each.
    """

    recipe: Recipe
    why: str
    guesses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """A name that a checkpoint does not have itself, but that tells what it was made from.

    Attributes:
        name: The name.
        where: Where it stands, for messages.
    """

    name: str
    where: str


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


def recognise(name: str, model_class: str, *, chat_template: bool, traces: Sequence[Trace] = ()) -> Recognised:
    """Return the recipe for a checkpoint.

    Args:
        name: The name of its folder, without the folders above it, or "org/name" on the hub.
        model_class: The class in its config.json.
        chat_template: Whether it has a chat template.
        traces: Other names, of what it was made from; the first that a recipe has decides.

    Raises:
        ExportError: If nothing is known about it, or no recipe can read it; the message says what to do.
    """
    called = _recipe_called(name)
    if called is not None:
        recipe, part = called
        if recipe.classes and model_class not in recipe.classes:
            raise ExportError(
                f"{name} is called like the models of the recipe {recipe.name!r}, but is a {model_class}, expected "
                f"{' or '.join(recipe.classes)}; name a recipe with --recipe, or a file with --spec"
            )
        return Recognised(recipe, f"by its name, which contains {part!r}")
    for trace in (Trace(name, "its name"), *traces):
        unread = next((why for part, why in UNREAD.items() if _contains(trace.name, part)), None)
        if unread is not None:
            raise ExportError(
                f"{name} ({trace.where}: {trace.name}) is a judge that {unread}; --recipe pairwise asks it like any "
                "chat model, which it was not trained for; or write its prompt into a file and name it with --spec"
            )
        found = _recipe_called(trace.name)
        if found is not None and (not found[0].classes or model_class in found[0].classes):
            guess = (
                f"guessed from {trace.where}, {trace.name}: that this checkpoint is asked like that model; if it was "
                "trained for another prompt, name a recipe with --recipe, or a file with --spec"
            )
            return Recognised(found[0], f"by {trace.where}, which contains {found[1]!r}", (guess,))
    if not chat_template:
        raise ExportError(
            f"nothing is known about {name}: no recipe has its name, and it has no chat template from which a prompt "
            "could be made; write labels and templates into a file and name it with --spec"
        )
    scalar = model_class.endswith("ForSequenceClassification")
    recipe = find_recipe(ANY_SCALAR if scalar else ANY_JUDGE)
    head = "a scalar head" if scalar else "a vocabulary as its head"
    why = f"by its class {model_class}, {head} and a chat template; no recipe has its name"
    return Recognised(recipe, why, () if scalar else _guesses(name, traces))


def check_asked_for(recipe: Recipe, name: str, model_class: str) -> None:
    """Refuse a recipe that is asked for where the head is of another kind. Other classes may well be asked like it.

    Raises:
        ExportError: Naming the recipes that would fit.
    """
    of_scalar_heads = bool(recipe.classes) and all(c.endswith("ForSequenceClassification") for c in recipe.classes)
    if of_scalar_heads != model_class.endswith("ForSequenceClassification"):
        fitting = f"{ANY_JUDGE} or pairwise" if of_scalar_heads else ANY_SCALAR
        head = "a scalar head" if of_scalar_heads else "a vocabulary as their head"
        raise ExportError(
            f"the recipe {recipe.name!r} is for models with {head}, and {name} is a {model_class}; expected another "
            f"recipe, such as {fitting}"
        )


def _guesses(name: str, traces: Sequence[Trace]) -> tuple[str, ...]:
    """Return what is guessed where a model with a vocabulary is asked like any chat model."""
    guessed = (
        "guessed: that it is a chat model; --recipe pairwise reads two answers at once, and --print-recipe writes a "
        "recipe that can be edited and given back with --spec"
    )
    for trace in (Trace(name, "its name"), *traces):
        word = _OWN_KIND.search(trace.name.rsplit("/", 1)[-1].lower())
        if word is not None:
            doubt = (
                f"warning: {trace.where}, {trace.name}, has {word[1]!r} in it: a model that was trained to judge has a "
                "prompt and an answer of its own, which are not known here, and the scores of this recipe may mean "
                "little; give its own with --spec"
            )
            return guessed, doubt
    return (guessed,)


def _recipe_called(name: str) -> tuple[Recipe, str] | None:
    """Return the recipe whose models are called like this, and the part of the name that says so."""
    for recipe in all_recipes().values():
        for part in recipe.names:
            if _contains(name, part):
                return recipe, part
    return None


def _contains(name: str, part: str) -> bool:
    """Return whether a name contains a part as whole words: neither letters nor a number go on at its ends."""
    behind = r"(?!\.?\d)" if part[-1].isdigit() else ""
    return re.search(rf"(?<![a-z0-9]){re.escape(part)}(?![a-z]){behind}", name.lower()) is not None


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
