"""Choose nnU-Net's reader for a dataset, once and before any work starts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES, recursive_find_reader_writer_by_name
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

from nnunetv2_conemos.errors import InputError

KEY = "overwrite_image_reader_writer"  # of dataset.json


def reader_of(dataset_json: Mapping[str, Any], example: Path) -> BaseReaderWriter:
    """Build the reader that nnU-Net uses for a raw dataset: the one named, or the first that reads the example.

    nnU-Net's own search catches every exception of a reader that it tries, an interruption included, and would go on
    with the next one. Where none reads the example, the first is returned: reading a case then says what is wrong.
    Raises InputError where nnU-Net has no reader of that name or for that file ending.
    """
    kinds = candidates(dataset_json)
    if len(kinds) > 1:
        for kind in kinds:
            with suppress(Exception), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                kind().read_images([str(example)])  # each image library raises its own errors
                return kind()
    return kinds[0]()


def candidates(dataset_json: Mapping[str, Any]) -> list[type[BaseReaderWriter]]:
    """Return the readers that nnU-Net would try, in its order; raises InputError where there is none."""
    named, ending = dataset_json.get(KEY, "None"), str(dataset_json["file_ending"])
    if named != "None":
        try:
            return [recursive_find_reader_writer_by_name(named)]
        except (RuntimeError, TypeError):
            known = ", ".join(kind.__name__ for kind in (*LIST_OF_IO_CLASSES, SimpleITKIOWithReorient))
            raise InputError(
                f"`{KEY}` in dataset.json: expected a reader of nnU-Net's ({known}), found {named!r}. Correct it or "
                "leave it out."
            ) from None
    found = [kind for kind in LIST_OF_IO_CLASSES if ending.lower() in kind.supported_file_endings]
    if not found:
        endings = dict.fromkeys(ending for kind in LIST_OF_IO_CLASSES for ending in kind.supported_file_endings)
        raise InputError(
            f"`file_ending` in dataset.json: expected one that nnU-Net reads ({', '.join(endings)}), found {ending!r}."
        )
    return found


def reader_as_stored(reader: BaseReaderWriter) -> BaseReaderWriter:
    """Return the reader that leaves the orientation of files as it is, for one that changes it."""
    as_stored = {NibabelIOWithReorient: NibabelIO, SimpleITKIOWithReorient: SimpleITKIO}
    return as_stored.get(type(reader), type(reader))()
