"""Compare a raw dataset with what nnU-Net preprocessed from it: training uses only the latter.

Label maps are compared with the copies that nnU-Net keeps in `gt_segmentations`, by content. Images have no such copy,
and of several configurations only the last one preprocessed renews it: cases whose files changed after they were
preprocessed are therefore preprocessed once more, in memory, by nnU-Net itself.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_conemos.datasets.dataset_json import read_dataset_json, read_raw_json
from nnunetv2_conemos.datasets.folders import preprocessed_cases, preprocessed_folder, raw_cases, raw_folder
from nnunetv2_conemos.datasets.geometry import difference
from nnunetv2_conemos.datasets.readers import reader_of
from nnunetv2_conemos.datasets.volumes import read_label_map
from nnunetv2_conemos.errors import FileError, SourceError, VolumeError, brief, shorten
from nnunetv2_conemos.parallel import in_processes
from nnunetv2_conemos.text_files import read_object

THREADS = 8  # that compare files; they wait for the disk
TOLERANCE = 0.1  # of normalised intensities: other versions of a library round otherwise
AT_START = 2  # cases that a training preprocesses again before it starts, the latest changed first


class Prepared(NamedTuple):
    """The folder of the cases preprocessed for a configuration of some plans."""

    folder: Path
    plans: dict[str, Any]
    configuration: str


@dataclass(frozen=True)
class Copies:
    """The raw and the preprocessed folder of a dataset; `files`: raw case -> {'images': [files], 'label': file}."""

    raw: Path
    preprocessed: Path
    files: dict[str, dict[str, Any]]

    @property
    def remedy(self) -> str:
        """What to do about a stale copy."""
        return f"Preprocess again: nnUNetv2_plan_and_preprocess -d {self.raw.name}"


def find_copies(name: str) -> Copies | None:
    """Find both copies of a dataset; None where there are no raw cases, or nothing is preprocessed."""
    raw, preprocessed = raw_folder(name), preprocessed_folder(name)
    if raw is None or preprocessed is None:
        return None
    if "dataset" not in read_raw_json(raw) and not (raw / "imagesTr").is_dir():
        return None
    return Copies(raw, preprocessed, raw_cases(raw))


def prepared_configurations(preprocessed: Path) -> list[Prepared]:
    """List the folders of preprocessed cases, each with the first configuration of the plans that uses it."""
    found: dict[Path, Prepared] = {}
    for file in sorted(preprocessed.glob("*.json")):
        with suppress(ValueError, KeyError, TypeError, AttributeError, RuntimeError):  # plans that nnU-Net cannot read
            plans = read_object(file)
            for name in plans.get("configurations", ()):
                folder = preprocessed / PlansManager(plans).get_configuration(name).data_identifier
                if folder.is_dir():
                    found.setdefault(folder, Prepared(folder, plans, name))
    return list(found.values())


def require_fresh(plans: dict[str, Any], configuration: str) -> None:
    """Raise SourceError where the cases preprocessed for a configuration are not those of the raw dataset any more.

    Without a raw dataset, nothing is compared.
    """
    copies = find_copies(plans["dataset_name"])
    if copies is None:
        return
    folder = copies.preprocessed / PlansManager(plans).get_configuration(configuration).data_identifier
    prepared = Prepared(folder, plans, configuration)
    if folder.is_dir():
        require_same_cases(copies, [prepared])
        problems = list(stale_maps(copies, trust_times=True))
        problems = problems or list(stale_cases(copies, prepared, changed_since(copies, prepared)[:AT_START]))
        if problems:
            raise SourceError(f"{problems[0]} {copies.remedy}")


def require_same_cases(copies: Copies, prepared: Sequence[Prepared]) -> None:
    """Raise SourceError where a folder holds other cases than the raw dataset."""
    for each in prepared:
        if problem := other_cases(copies, each):
            raise SourceError(f"{problem} {copies.remedy}")


def other_cases(copies: Copies, prepared: Prepared) -> str:
    """Return which cases were added or removed after preprocessing; empty where none was."""
    folder = prepared.folder
    done = {case for case in preprocessed_cases(folder) if (folder / f"{case}.pkl").is_file()}
    added, removed = sorted(copies.files.keys() - done), sorted(done - copies.files.keys())
    if not added and not removed:
        return ""
    parts = [
        f"{what}: {shorten(cases)}" for what, cases in (("missing", added), ("no longer in raw", removed)) if cases
    ]
    return f"{folder} was preprocessed for other cases than {copies.raw} has now ({'; '.join(parts)})."


def copied_map(copies: Copies, case: str) -> Path:
    """Return nnU-Net's copy of the label map of a case."""
    ending = read_dataset_json(copies.preprocessed)["file_ending"]
    return copies.preprocessed / "gt_segmentations" / f"{case}{ending}"


def stale_maps(copies: Copies, trust_times: bool = False) -> Iterator[str]:
    """Yield a sentence about the label maps that differ from the copies that nnU-Net made while preprocessing.

    With `trust_times`, files of the same size and time count as equal: nnU-Net copies the time.
    """
    folder = copied_map(copies, "").parent
    pairs = {case: (Path(entry["label"]), copied_map(copies, case)) for case, entry in copies.files.items()}
    with ThreadPoolExecutor(THREADS) as pool:
        same = pool.map(lambda pair: same_bytes(*pair, trust_times=trust_times), pairs.values())
        differing = [case for case, equal in zip(pairs, same, strict=True) if not equal]
        stale = [case for case in differing if not same_map(copies, case, *pairs[case])]
    if not stale:
        return
    names = shorten(inside(copies.raw, pairs[case][0]) for case in stale)
    text = f"{names} differs from its preprocessed copy" if len(stale) == 1 else f"{names} differ from their copies"
    times = [[int(file.stat().st_mtime) for file in pairs[case]] for case in stale]
    older = any(ours <= theirs for ours, theirs in times)
    yield f"{text} in {folder}." + (f" Delete {folder}: nnU-Net replaces only files older than yours." if older else "")


def inside(raw: Path, file: Path) -> str:
    """Return a file as named from the folder of its dataset, if it lies there."""
    return file.relative_to(raw).as_posix() if file.is_relative_to(raw) else str(file)


def same_bytes(ours: Path, theirs: Path, *, trust_times: bool) -> bool:
    """Return whether two files hold the same; also where one of them does not exist, so that nothing can be said."""
    try:
        a, b = ours.stat(), theirs.stat()
    except FileNotFoundError:
        return True
    if trust_times and (a.st_size, int(a.st_mtime)) == (b.st_size, int(b.st_mtime)):
        return True
    return a.st_size == b.st_size and filecmp.cmp(ours, theirs, shallow=False)


def same_map(copies: Copies, case: str, ours: Path, theirs: Path) -> bool:
    """Return whether two label maps have the same voxels on the same grid, in whatever way they are compressed."""
    try:
        reader = reader_of(read_dataset_json(copies.raw), Path(copies.files[case]["images"][0]))
        one, other = (read_label_map(file, reader) for file in (ours, theirs))
    except VolumeError:  # a file that cannot be read is not a copy
        return False
    return difference(one.grid, other.grid) is None and np.array_equal(one.data, other.data)


def last_written(file: str) -> float:
    """Return the time at which the content of a file was written."""
    return os.stat(file).st_mtime


def last_change(file: str) -> float:
    """Return the time of the last change of a file or of the link to it; moving or copying it counts too."""
    followed, itself = os.stat(file), os.lstat(file)
    return max(followed.st_mtime, followed.st_ctime, itself.st_ctime)


def changed_since(copies: Copies, prepared: Prepared, time: Callable[[str], float] = last_change) -> list[str]:
    """Return the cases of which a raw file has a later time than the preprocessed case, the latest first.

    So has every case of a dataset that was copied: only their content tells whether they changed.
    """
    changed = {}
    for case, entry in copies.files.items():
        with suppress(FileNotFoundError):  # images that are gone cannot be compared
            written = (prepared.folder / f"{case}.pkl").stat().st_mtime
            last = max(map(time, (*entry["images"], entry["label"])))
            if last > written:
                changed[case] = last
    return sorted(changed, key=lambda case: -changed[case])


def stale_cases(copies: Copies, prepared: Prepared, cases: Sequence[str], processes: int = 1) -> Iterator[str]:
    """Yield a sentence about those of these cases that nnU-Net would preprocess otherwise now; raises OSError."""
    jobs = [(case, copies.files[case], prepared) for case in cases]
    found = in_processes(is_stale, jobs, processes, "Comparing with preprocessed cases") if jobs else []
    if stale := [case for case, changed in zip(cases, found, strict=True) if changed]:
        yield f"{prepared.folder}: image or label map has changed since preprocessing: {shorten(stale)}."


def is_stale(case: str, files: dict[str, Any], prepared: Prepared) -> bool:
    """Return whether a raw case, preprocessed anew, differs from what was stored."""
    manager = PlansManager(prepared.plans)
    configuration = manager.get_configuration(prepared.configuration)
    dataset_json = read_dataset_json(prepared.folder.parent)
    try:
        preprocessor = configuration.preprocessor_class(verbose=False)
        data, seg, _ = preprocessor.run_case(files["images"], files["label"], manager, configuration, dataset_json)
    except Exception as error:  # each image library raises its own
        raise FileError(f"case '{case}': cannot be preprocessed again: {brief(error)} Restore its files.") from None
    stored: Any
    stored_seg: Any
    stored, stored_seg, _, _ = infer_dataset_class(str(prepared.folder))(str(prepared.folder), [case]).load_case(case)
    if data.shape != stored.shape or not np.array_equal(seg, stored_seg[:]):
        return True
    return not np.allclose(data, stored[:], rtol=0, atol=TOLERANCE, equal_nan=True)
