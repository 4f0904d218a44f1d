"""From a folder of files to a raw dataset with `sources`: find, names, read, plan, write, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunetv2_conemos.conversion.anonymise import problems_listed, require_private
from nnunetv2_conemos.conversion.case_maps import Empty
from nnunetv2_conemos.conversion.finish import write_dataset, write_images
from nnunetv2_conemos.conversion.layouts.choose import LayoutName
from nnunetv2_conemos.conversion.layouts.places import Patterns
from nnunetv2_conemos.conversion.name_file import write_name_file
from nnunetv2_conemos.conversion.names import require_known
from nnunetv2_conemos.conversion.overlaps import resolve
from nnunetv2_conemos.conversion.plan import plan_import, with_absent
from nnunetv2_conemos.conversion.reading import How, absent_labels, read_cases
from nnunetv2_conemos.conversion.report import ImportReport, NameListing
from nnunetv2_conemos.conversion.scan import Labels, left_note, scan
from nnunetv2_conemos.datasets.folders import new_dataset_folder, require_new_dataset
from nnunetv2_conemos.datasets.writer import Images
from nnunetv2_conemos.files import exclusive, require_absent, write_aside


@dataclass(frozen=True)
class ImportedImages:
    """Result of `import_images`: the folder written, and how many cases it holds."""

    folder: Path
    cases: int


def list_names(
    source: Path | str,
    output: Path | str,
    *,
    layout: LayoutName = "auto",
    image: Sequence[str] = (),
    mask: str = "",
    table: str = "",
    labels: Labels | None = None,
    overwrite: bool = False,
) -> NameListing:
    """List every name in a folder of files with what would become of it, and write a table of labels to edit.

    Nothing is read but names and headers. The arguments are those of `import_dataset`; `output` is the file to write,
    which `overwrite` allows to replace. Raises what `import_dataset` raises for files that cannot be understood.
    """
    file = Path(output)
    require_absent(file, overwrite)
    found = scan(Path(source), layout, Patterns(tuple(image), mask, table), labels)
    keep = isinstance(labels, Path | Mapping)
    write_aside(file, lambda aside: write_name_file(aside, found.table, found.names, keep))
    words = "; ".join(filter(None, (found.words, left_note(found.left))))
    return NameListing(words, found.names, file)


def import_dataset(
    source: Path | str,
    output: Path | str,
    *,
    layout: LayoutName = "auto",
    image: Sequence[str] = (),
    mask: str = "",
    table: str = "",
    labels: Labels | None = None,
    ignore_unknown: bool = False,
    absent: Path | Mapping[str, Sequence[str]] | None = None,
    empty: Empty = "absent",
    order: Sequence[str] = (),
    regions: bool = False,
    max_overlap: float = 0.0,
    resample: bool = False,
    images: Images = "link",
    channels: Sequence[str] | None = None,
    anonymise: Path | None = None,
    processes: int = 1,
    overwrite: bool = False,
) -> ImportReport:
    """Make a raw dataset that says who annotated what from files as clinics keep them; it appears whole or not at all.

    A structure that is there is annotated, one that is missing is not. An interrupted run is gone on with: cases whose
    files and settings are as before are not read again.

    Args:
        source: folder that holds the files.
        output: name or path of the new dataset, `Dataset100_Name`.
        layout: how the files are kept; `auto` looks.
        image: pattern of the images below `source`, one for each channel, such as `{case}/ct.nii.gz`.
        mask: pattern of the masks, such as `{case}/segmentations/{label}.nii.gz`, or of segmentations, without {label}.
        table: tables value -> name of label maps, where they do not lie beside these.
        labels: file, or mapping, label -> names and patterns; `tg263`: the table of this package; `names`: each name is
            a label (the default for masks and raw datasets).
        ignore_unknown: leave out names that `labels` does not know.
        absent: case -> labels that somebody looked for and that are absent, as a mapping or a file (JSON or CSV).
        empty: what a mask without voxels means: `absent`, or `unknown` (not annotated).
        order: labels; each is written over those before it, and over all that are not named.
        regions: labels that lie within others in every case become regions.
        max_overlap: share, of the smaller of two labels, up to which voxels of both go to the smaller one.
        resample: bring masks on other grids to that of the image, by nearest neighbour.
        images: how images are kept where they need no conversion: `link`, `copy` or `reference`.
        channels: names of the channels, by which nnU-Net normalises.
        anonymise: file, outside of the dataset, that says who is who; cases and patients become numbers.
        processes: how many read and write cases; more than one requires a script with `if __name__ == "__main__":`.
        overwrite: replace an existing dataset of that name.

    Raises InputError (ImportProblemsError: all of them at once) for files and names that do not fit together, OSError
    for files that cannot be read or written, or exist.
    """
    target = new_dataset_folder(output)
    require_new_dataset(target, overwrite)
    if anonymise:
        require_private(anonymise, target, overwrite)
    how = How(images, resample, empty, channels, anonymise, processes)
    with exclusive(target):
        with problems_listed(target, anonymise):
            found = scan(Path(source), layout, Patterns(tuple(image), mask, table), labels)
            if not ignore_unknown:
                require_known(found.names, found.table.where)
            read = read_cases(found, how, target)
            known = with_absent(read.records, absent_labels(absent, read))
            records = [replace(record, annotated=known[record.case]) for record in read.records]
            resolution = resolve(records, found.table.labels, order, regions, max_overlap)
            plan = plan_import(read, known, resolution)
        return write_dataset(target, read, plan, resolution)


def import_images(
    source: Path | str,
    output: Path | str,
    *,
    layout: LayoutName = "auto",
    image: Sequence[str] = (),
    images: Images = "link",
    anonymise: Path | None = None,
    processes: int = 1,
    overwrite: bool = False,
) -> ImportedImages:
    """Make a folder of images to predict, CASE_0000.ENDING with origins.csv, from files as clinics keep them.

    The arguments are those of `import_dataset`; what is drawn on the images is not looked at. Images that are
    referenced elsewhere are linked here. Raises what `import_dataset` raises.
    """
    target = Path(output)
    require_absent(target, overwrite)
    if anonymise:
        require_private(anonymise, target, overwrite)
    how = How("link" if images == "reference" else images, False, "absent", None, anonymise, processes)
    with exclusive(target):
        with problems_listed(target, anonymise):
            found = scan(Path(source), layout, Patterns(tuple(image)), None, images_only=True)
            read = read_cases(found, how, target)
        write_images(target, read)
    return ImportedImages(target, len(read.records))
