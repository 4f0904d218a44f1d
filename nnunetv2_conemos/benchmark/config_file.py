"""Read, write and extend recipes of benchmarks as YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from nnunetv2_conemos.benchmark.config import Arm, Recipe
from nnunetv2_conemos.errors import InputError, describe
from nnunetv2_conemos.text_files import read_yaml

FREE = ("arms", "seeds", "folds", "epochs", "configurations", "notes")  # may grow between calls of a benchmark


def read_recipe(file: Path | None, changes: dict[str, Any]) -> Recipe:
    """Read a recipe from a YAML file (its paths are relative to its folder), with `changes` from the command line.

    Arms among the changes may be names of the recipe's arms. Raises ValueError that names the entry that is wrong.
    """
    where = str(file) if file else "command line"
    try:
        content = read_yaml(file) if file else {}
        if not isinstance(content, dict):
            raise InputError(f"{where}: expected a mapping with `dataset`, found {type(content).__name__}.")
        arms = content.get("arms")
        if "arms" in changes and isinstance(arms, list):
            own = {Arm.model_validate(arm).name: arm for arm in arms}
            changes = {**changes, "arms": [own.get(str(arm), arm) for arm in changes["arms"]]}
        recipe = Recipe.model_validate({**absolute(content, file.parent if file else Path()), **changes})
    except ValidationError as error:
        raise InputError(f"{where}: {describe(error)}.") from None
    return recipe


def absolute(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the paths of a recipe that was written in `folder` absolute."""

    def full(entry: Any, *names: str) -> Any:
        if not isinstance(entry, dict):
            return entry
        return entry | {name: str((folder / str(entry[name])).absolute()) for name in names if entry.get(name)}

    changed = {"annotated": full(content, "annotated").get("annotated")}
    changed |= {"test": full(content.get("test"), "images", "labels"), "hide": full(content.get("hide"), "groups")}
    dataset = content.get("dataset")
    if isinstance(dataset, str) and (folder / dataset / "dataset.json").is_file():
        changed["dataset"] = str((folder / dataset).absolute())
    return content | {key: value for key, value in changed.items() if value is not None}


def recipe_text(recipe: Recipe) -> str:
    """Return the recipe as YAML, without defaults; arms as single words where that is enough."""
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    arms = [arm.model_dump(exclude_defaults=True) for arm in recipe.arms]
    content["arms"] = [arm["arm"] if arm == {"arm": arm["arm"], "name": arm["arm"]} else arm for arm in arms]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def grown(ours: Recipe, theirs: Recipe, file: Path) -> Recipe:
    """Extend the recipe that a folder holds (`theirs`, in `file`) by the arms, seeds, ... of a new one (`ours`).

    Raises ValueError where they differ in anything else.
    """
    differing = [
        name for name in Recipe.model_fields if name not in FREE and getattr(ours, name) != getattr(theirs, name)
    ]
    known = {arm.name: arm for arm in theirs.arms}
    differing += [f"arm '{arm.name}'" for arm in ours.arms if known.get(arm.name, arm) != arm]
    before, now = theirs.configurations, ours.configurations
    differing += [f"configuration '{name}'" for name in before if now.get(name, before[name]) != before[name]]
    if differing:
        raise InputError(
            f"{file.parent} holds another benchmark: {', '.join(differing)} differ(s) from {file}. "
            "Choose another folder."
        )
    arms = {arm.name: arm for arm in (*theirs.arms, *ours.arms)}
    others = [name for name in FREE if name not in ("arms", "configurations")]
    more = {name: tuple(dict.fromkeys((*getattr(theirs, name), *getattr(ours, name)))) for name in others}
    return ours.model_copy(update={"arms": tuple(arms.values()), "configurations": before | now, **more})
