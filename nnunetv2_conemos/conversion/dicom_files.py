"""Find the DICOM files below a folder and read their headers: what each slice is, and where it lies.

pydicom and highdicom are an extra of this package, imported only where a DICOM file is read or written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_conemos.conversion.patterns import files_below
from nnunetv2_conemos.datasets.volumes import reading
from nnunetv2_conemos.errors import UnsupportedError, VolumeError
from nnunetv2_conemos.parallel import default_processes, in_processes

EXTRA = ("pydicom", "highdicom")
RTSTRUCT = "RTSTRUCT"
SEG = "SEG"
NO_VOLUME = (
    "RTDOSE",
    "RTPLAN",
    "RTRECORD",
    "SR",
    "PR",
    "KO",
    "REG",
    "DOC",
)  # modalities that are no images of a patient
ENDINGS = re.compile(r"(|\.\d+|\.dcm|\.dicom|\.ima)", re.IGNORECASE)  # of files that may lack the preamble of DICOM
DIRECTORY = "1.2.840.10008.1.3.10"  # SOP class of a DICOMDIR
SLICES = tuple(f"1.2.840.10008.5.1.4.1.1.{kind}" for kind in ("2", "2.1", "4", "4.1", "128", "130"))  # CT, MR, PET
RESTORE = "Restore or remove it."
MAGIC = b"DICM"
UNDEFINED = 0xFFFFFFFF  # length of elements that end with a delimiter
CHUNK = 500  # files whose headers one job reads
TAGS = (
    "SOPClassUID", "SOPInstanceUID", "Modality", "PatientID", "StudyInstanceUID", "StudyDate", "SeriesInstanceUID",
    "SeriesNumber", "FrameOfReferenceUID", "ImageType", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames",
    "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "SliceThickness", "SpacingBetweenSlices",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip


class Header(NamedTuple):
    """A slice, or a file that is no image: who, what and where; positions in mm, in LPS+ as DICOM has them.

    `spacing`, `orientation` (of a row, then of a column) and `position` are empty where the file holds none;
    `thickness` and `apart`, the distance between slices that it names, are None there. `frame` counts the frames of a
    file with many, and is None where the file is one slice.
    """

    file: Path
    uid: str
    sop_class: str
    modality: str
    patient: str
    study: str
    date: str
    series: str
    number: int
    reference: str
    localizer: bool
    size: tuple[int, ...]
    samples: int
    spacing: tuple[float, ...] = ()
    orientation: tuple[float, ...] = ()
    position: tuple[float, ...] = ()
    thickness: float | None = None
    apart: float | None = None
    frame: int | None = None

    @property
    def is_slice(self) -> bool:
        """Whether this is an image that lies somewhere in a patient."""
        placed = self.size and self.spacing and self.orientation and self.position
        return bool(placed) and self.modality not in (RTSTRUCT, SEG, *NO_VOLUME)


class Scan(NamedTuple):
    """Headers of all DICOM files below a folder, and what is wrong with those that cannot be read."""

    headers: list[Header]
    problems: list[str]


def require_dicom() -> None:
    """Raise UnsupportedError where the packages that read and write DICOM are not installed."""
    missing = [package for package in EXTRA if find_spec(package) is None]
    if missing:
        raise UnsupportedError(
            f'DICOM needs {" and ".join(missing)}, which is not installed: pip install "nnunetv2-conemos[dicom]"'
        )


def scan(source: Path) -> Scan:
    """Read the headers of all DICOM files below a folder, on all cores where there are many.

    Other files are passed over. Raises MissingFileError where there is no such folder, FileError for one that cannot be
    read, and UnsupportedError where the packages for DICOM are not installed.
    """
    require_dicom()
    files = [file for name in files_below(source) if (file := source / name).is_file() or file.is_symlink()]
    jobs = [(files[start : start + CHUNK],) for start in range(0, len(files), CHUNK)]
    found = in_processes(scan_files, jobs, default_processes() if len(jobs) > 8 else 1, "DICOM headers")
    return Scan([header for part in found for header in part.headers], [p for part in found for p in part.problems])


def scan_files(files: Sequence[Path]) -> Scan:
    """Read the headers of those files that are DICOM."""
    headers, problems = [], []
    for file in files:
        try:
            headers += headers_of(file)
        except VolumeError as error:
            problems.append(str(error))
    return Scan(headers, problems)


def headers_of(file: Path) -> list[Header]:
    """Return one header per slice of a file: none for a file that is not DICOM, one for a file that is no image.

    Raises VolumeError for a file with the name of a DICOM file that cannot be read.
    """
    with reading(file):
        with file.open("rb") as opened:
            is_dicom = opened.read(132)[128:] == MAGIC
        if not is_dicom and not ENDINGS.fullmatch(file.suffix):
            return []
        dataset = read_header(file, TAGS)
        if dataset.file_meta.get("MediaStorageSOPClassUID") == DIRECTORY:
            return []
        if "SOPInstanceUID" in dataset and "SOPClassUID" in dataset:
            return [require_placed(header) for header in _headers(file, dataset)]
    if not is_dicom and file.suffix.lower() not in (".dcm", ".dicom", ".ima"):
        return []
    raise VolumeError(f"{file}: expected a DICOM file, found one without class and UID.", RESTORE)


def require_placed(header: Header) -> Header:
    """Return a header; raises VolumeError for a slice of CT, MR or PET that does not say where it lies."""
    if header.sop_class in SLICES and not header.is_slice:
        raise VolumeError(
            f"{header.file}: expected size, spacing, orientation and position of a slice ({header.modality}), found a "
            "file without, which may be cut off.",
            RESTORE,
        )
    return header


def read_header(file: Path, tags: Sequence[str] | None = None) -> Any:
    """Read a DICOM file without its voxels, with or without preamble; only these elements, if any are named."""
    from pydicom import dcmread
    from pydicom.dataelem import RawDataElement

    with reading(file):
        wanted = None if tags is None else list(tags)
        dataset = dcmread(file, stop_before_pixels=True, specific_tags=wanted, force=True)
        for element in dataset.values():  # as they are in the file: pydicom takes what there is of the last one
            if not isinstance(element, RawDataElement) or not isinstance(element.value, bytes):
                continue
            if len(element.value) < element.length < UNDEFINED:
                raise VolumeError(f"{file}: expected {element.length} bytes in {element.tag}, found the end.", RESTORE)
        return dataset


def _headers(file: Path, dataset: Any) -> Iterator[Header]:
    kind = [str(value) for value in _values(dataset, "ImageType")]
    whole = Header(
        file,
        uid=str(dataset.SOPInstanceUID),
        sop_class=str(dataset.get("SOPClassUID", "")),
        modality=str(dataset.get("Modality", "")),
        patient=str(dataset.get("PatientID") or "").strip(),
        study=str(dataset.get("StudyInstanceUID", "")),
        date=str(dataset.get("StudyDate") or ""),
        series=str(dataset.get("SeriesInstanceUID", "")),
        number=int(dataset.get("SeriesNumber") or 0),
        reference=str(dataset.get("FrameOfReferenceUID", "")),
        localizer="LOCALIZER" in kind,
        size=(int(dataset.Columns), int(dataset.Rows)) if dataset.get("Columns") and dataset.get("Rows") else (),
        samples=int(dataset.get("SamplesPerPixel") or 1),
    )
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    if not frames or whole.modality == SEG:
        yield whole._replace(**place(dataset))
        return
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    for number, frame in enumerate(frames):
        yield whole._replace(**frame_place(frame, shared), frame=number)


def place(dataset: Any) -> dict[str, Any]:
    """Return spacing, orientation, position, thickness and distance of a slice, as far as a dataset holds them."""
    thickness, apart = dataset.get("SliceThickness"), dataset.get("SpacingBetweenSlices")
    return {
        "spacing": _numbers(dataset, "PixelSpacing", 2),
        "orientation": _numbers(dataset, "ImageOrientationPatient", 6),
        "position": _numbers(dataset, "ImagePositionPatient", 3),
        "thickness": abs(float(thickness)) if thickness else None,
        "apart": abs(float(apart)) if apart else None,
    }


def frame_place(frame: Any, shared: Any) -> dict[str, Any]:
    """Return the same of a frame, from its functional groups and those that all frames share."""
    found: dict[str, Any] = {"thickness": None, "apart": None, "spacing": (), "orientation": (), "position": ()}
    for name in ("PixelMeasuresSequence", "PlaneOrientationSequence", "PlanePositionSequence"):
        group = frame.get(name) or (shared.get(name) if shared is not None else None)
        if group:
            found |= {key: value for key, value in place(group[0]).items() if value}
    return found


def _values(dataset: Any, name: str) -> Sequence[Any]:
    value = dataset.get(name)
    return () if value is None else (value,) if isinstance(value, str | int | float) else value


def _numbers(dataset: Any, name: str, count: int) -> tuple[float, ...]:
    numbers = tuple(map(float, _values(dataset, name)))
    return numbers if len(numbers) == count else ()
