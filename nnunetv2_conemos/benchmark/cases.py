"""Choose the cases of a benchmark and check them before anything is written: which train, which test, who annotated."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.table_file import PATIENT, complete_table, group_sources, read_table
from nnunetv2_conemos.benchmark.config import Recipe, TestSet
from nnunetv2_conemos.benchmark.derived_datasets import write_referenced
from nnunetv2_conemos.benchmark.hold_out import draw_held_out, draw_training_cases
from nnunetv2_conemos.benchmark.preparation import restricted
from nnunetv2_conemos.benchmark.runner import Runner
from nnunetv2_conemos.benchmark.workspace import MODALITIES, PARTIAL, Workspace
from nnunetv2_conemos.datasets.dataset_json import read_raw_json
from nnunetv2_conemos.datasets.folders import find_images, image_lists, raw_cases, source_table
from nnunetv2_conemos.datasets.label_maps import visible_values
from nnunetv2_conemos.datasets.readers import reader_of
from nnunetv2_conemos.datasets.splits import SPLITS, Fold, read_splits
from nnunetv2_conemos.datasets.volumes import RESAMPLE, naming, read_image, read_label_map, require_same_grid
from nnunetv2_conemos.datasets.writer import jobs_of, write_cases
from nnunetv2_conemos.errors import MissingFileError, SourceError, shorten
from nnunetv2_conemos.evaluation.scoring import occupied
from nnunetv2_conemos.files import new_folder, write_json
from nnunetv2_conemos.parallel import in_processes

TO_HIDE = "Dataset899_ToHide"


class BenchmarkCases(NamedTuple):
    """The cases of a raw dataset and their use.

    `dataset_json` with `sources`, `files` case -> images and label map, `table` who annotated what, `held_out` the
    cases that are tested on instead of trained on, `train` those that train, `test` the test set where it lies
    elsewhere.
    """

    source: Path
    dataset_json: dict[str, Any]
    files: dict[str, Any]
    table: SourceTable
    held_out: list[str]
    train: list[str]
    test: TestSet | None


def choose_cases(recipe: Recipe, source: Path, processes: int) -> BenchmarkCases:
    """Choose the cases of the raw dataset in `source`.

    Raises ValueError or OSError where labels are not partial, or test cases lack complete ground truth.
    """
    dataset_json, files = read_raw_json(source), raw_cases(source)
    if recipe.annotated:
        if "sources" in dataset_json:
            raise SourceError(f"{source} has `sources` already: leave `annotated` out of the recipe.")
        given = read_table(recipe.annotated)
        annotated = complete_table(given.annotated, files, None)
        labels = LabelSpace.from_dataset_json(dataset_json)
        dataset_json["sources"] = group_sources(annotated, labels, source.name, given.traits)
    table = source_table(source, dataset_json, files)
    check_partial(recipe, source, table)
    held_out = draw_held_out(recipe, source, table) if recipe.hold_out else []
    train = draw_training_cases(recipe, held_out, source, table)
    if held_out:
        return BenchmarkCases(source, dataset_json, files, table, held_out, train, None)
    test = test_set(recipe, source, dataset_json)
    require_unseen_cases(test, files, dataset_json["file_ending"])
    check_truth(test, table.labels, dataset_json, processes)
    return BenchmarkCases(source, dataset_json, files, table, [], train, test)


def check_partial(recipe: Recipe, source: Path, table: SourceTable) -> None:
    """Raise SourceError where there is nothing to compare: no partial labels, or hidden ones to be hidden again."""
    if recipe.hide and not table.is_complete:
        raise SourceError(f"{source} is partially labelled already: leave `hide` out of the recipe.")
    if table.is_complete and not recipe.hide:
        raise SourceError(
            f"{source}: all labels are annotated in every case, so there is nothing to compare. Declare who annotated "
            "what (`conemos declare`, or `annotated` in a recipe), or what to `hide`."
        )


def test_set(recipe: Recipe, source: Path, dataset_json: Mapping[str, Any]) -> TestSet:
    """Find test images and their ground truth; raises FileNotFoundError naming images without a map or channel."""
    ending = dataset_json["file_ending"]
    test = recipe.test or TestSet(images=source / "imagesTs", labels=source / "labelsTs")
    for folder in (test.images, test.labels):
        if not folder.is_dir():
            raise MissingFileError(
                f"expected test cases in {folder}. Name images and complete labels with `test` in a recipe, or say how "
                "many of the completely annotated cases to `hold_out`."
            )
    cases = {file.name.removesuffix(ending)[:-5] for file in test.images.glob(f"*_0000{ending}")}
    truth = {file.name.removesuffix(ending) for file in test.labels.glob(f"*{ending}")}
    lacking = [f"no label map of {shorten(sorted(cases - truth))}"] if cases - truth else []
    lacking += [f"no image of {shorten(sorted(truth - cases))}"] if truth - cases else []
    if lacking or not cases:
        raise MissingFileError(
            f"{test.labels}: expected one label map for each image CASE_0000{ending} in {test.images}, found "
            f"{', '.join(lacking) or 'no image'}."
        )
    files = image_lists(test.images, ending)
    channels = max(map(len, files))
    if few := [Path(case[0]).name for case in files if len(case) < channels]:
        raise MissingFileError(f"{test.images}: expected {channels} channels, found fewer of {shorten(few)}.")
    return test


def require_unseen_cases(test: TestSet, files: Mapping[str, Any], ending: str) -> None:
    """Raise SourceError where a test case is a training case, by its name or its image."""
    images = {Path(image).resolve() for entry in files.values() for image in entry["images"]}
    tested = {file.name.removesuffix(ending)[:-5]: file for file in test.images.glob(f"*_0000{ending}")}
    both = [case for case, file in tested.items() if case in files or file.resolve() in images]
    if both:
        raise SourceError(
            f"{test.images}: expected cases that do not train, found training case(s) {shorten(sorted(both))}. Name "
            "other test cases, or say how many to `hold_out`; to score on hidden labels, use `hide` in the recipe."
        )


def check_truth(test: TestSet, labels: LabelSpace, dataset_json: Mapping[str, Any], processes: int) -> None:
    """Read every test case; raises OSError, ValueError or SourceError naming an image or map that cannot be used."""
    ending, channels = dataset_json["file_ending"], len(dataset_json["channel_names"])
    images = find_images(test.images, ending)
    reader = reader_of(dataset_json, Path(next(iter(images.values()))[0]))
    jobs = [(case, files, test.labels / f"{case}{ending}", reader, channels, labels) for case, files in images.items()]
    present = in_processes(values_of_case, jobs, processes, "Reading test cases")
    require_labels_in_truth(present, labels, test.labels)


def values_of_case(
    case: str, images: Sequence[str], label: Path, reader: BaseReaderWriter, channels: int, labels: LabelSpace
) -> list[int]:
    """Read one test case; return the values that its label map holds."""
    with naming(case):
        image = read_image([Path(file) for file in images], reader, channels)
        own = read_label_map(label, reader)
        require_same_grid(image.grid, own.grid, (Path(images[0]), label), RESAMPLE)
    return list(occupied(label, own.data, labels))


def require_labels_in_truth(present: Iterable[Collection[int]], labels: LabelSpace, where: Path) -> None:
    """Raise SourceError where no map shows any label; `present`: the values in each map."""
    scored = {value for values in labels.values for value in values}
    if not any(scored.intersection(values) for values in present):
        raise SourceError(f"{where}: no test case shows any label, so nothing can be scored. Use other test cases.")


def write_datasets(workspace: Workspace, runner: Runner, cases: BenchmarkCases) -> TestSet:
    """Write the partially labelled dataset and the test set into the workspace, unless that was done."""
    raw, hide = workspace.raw, workspace.recipe.hide
    raw.mkdir(parents=True, exist_ok=True)
    train = {case: cases.files[case] for case in cases.train}
    name = TO_HIDE if hide else PARTIAL
    if not (raw / name).is_dir():
        write_referenced(raw / name, remaining(cases, train), train, own_split(cases, train))
    if hide and not (raw / PARTIAL).is_dir():
        options = (*hide.words(), "-np", str(runner.processes))
        runner.run("hide", "conemos", "hide", raw / name, "-o", PARTIAL, *options)
    return cases.test or write_test_set(workspace.folder / "test", cases, runner.processes)


def own_split(cases: BenchmarkCases, train: Collection[str]) -> list[Fold] | None:
    """Read the source's own splits_final.json, if it has one, for the cases that train.

    Where all validation cases of a fold are held out, those of its first training patient take their place.
    """
    file, patient_of = cases.source / SPLITS, cases.table.patient_of
    if not file.is_file():
        return None
    folds = restricted(read_splits(file, cases.table), set(train))
    for fold in folds:
        if not fold["val"] and fold["train"]:
            first = patient_of(fold["train"][0])
            fold["val"] = [case for case in fold["train"] if patient_of(case) == first]
            fold["train"] = [case for case in fold["train"] if patient_of(case) != first]
    if empty := [number for number, fold in enumerate(folds) if not fold["train"]]:
        raise SourceError(
            f"{file}: fold {empty[0]} has no training case left. Hold out fewer cases, or delete the file."
        )
    return folds


def remaining(cases: BenchmarkCases, train: Mapping[str, Any]) -> dict[str, Any]:
    """Return dataset.json for the cases that train: `sources` that name each of them, and their `tags`."""
    content = cases.dataset_json
    if "sources" not in content:
        return content
    sources = content["sources"]
    left = {name: [case for case in cases.table.cases_of(name) if case in train] for name in sources}
    entries = {name: narrowed(sources[name], own, cases.table) for name, own in left.items() if own}
    result = {**content, "sources": entries}
    if "tags" in content:
        of_cases = {case: tags for case, tags in content["tags"].get("cases", {}).items() if case in train}
        result["tags"] = {**content["tags"], "cases": of_cases}
    return result


def narrowed(source: Mapping[str, Any], cases: Collection[str], table: SourceTable) -> dict[str, Any]:
    """Return an entry of `sources` for some of its cases, each by name."""
    patients = {escape(case): table.patients[case] for case in cases if case in table.patients}
    rest = {key: value for key, value in source.items() if key != PATIENT}
    return {**rest, "cases": [escape(case) for case in cases], **({PATIENT: patients} if patients else {})}


def write_test_set(folder: Path, cases: BenchmarkCases, processes: int) -> TestSet:
    """Write the held-out cases as folders of images (links) and label maps, unless that was done."""
    if not folder.is_dir():
        labels, table = cases.table.labels, cases.table
        visible = visible_values(labels, labels.names)
        files = {case: cases.files[case] for case in cases.held_out}
        jobs = [job._replace(values=visible) for job in jobs_of(cases.dataset_json, files)]
        with new_folder(folder) as aside:
            ending = cases.dataset_json["file_ending"]
            written = write_cases(jobs, aside, ending, "link", processes, "Test cases")
            require_labels_in_truth((held.values for held in written.values()), labels, cases.source / "labelsTr")
            modalities = {case: table.sources[table.source_of(case)].modality for case in cases.held_out}
            write_json(aside / MODALITIES, modalities)
    return TestSet(images=folder / "imagesTr", labels=folder / "labelsTr")
