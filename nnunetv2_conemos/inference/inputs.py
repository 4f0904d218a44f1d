"""Check images before they are predicted: nnU-Net would predict a cut file as if the rest of it were empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_conemos.datasets.folders import image_lists
from nnunetv2_conemos.datasets.volumes import naming, read_image
from nnunetv2_conemos.errors import InputError, MissingFileError, shorten
from nnunetv2_conemos.parallel import progress_bar


def require_images(images: Sequence[Sequence[Path]], plans: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> None:
    """Raise an error, naming case and file, for an image that cannot be predicted as it is.

    `images`: the channels of each case; `plans` and `dataset_json` are those of the model. Images are read as nnU-Net
    will read them. Raises VolumeError for what is wrong with a file.
    """
    ending, channels = dataset_json["file_ending"], dataset_json["channel_names"]
    reader = PlansManager(dict(plans)).image_reader_writer_class()
    with progress_bar(images, "Reading images") as shown:
        for files in shown:
            with naming(files[0].name.removesuffix(ending)[:-5]):
                read_image(files, reader, len(channels))


def cases_of(folder: Path, ending: str, channels: Sequence[str]) -> list[list[Path]]:
    """Return the images of each case in a folder; raises an error for names that nnU-Net does not expect.

    That is MissingFileError for a folder without images, InputError for a case without all of its channels.
    """
    cases = image_lists(folder, ending)
    if not cases:
        raise MissingFileError(f"{folder}: expected images CASE_0000{ending}, found none. Add them, or correct -i.")
    short = [files for files in cases if len(files) != len(channels)]
    if short and ending not in NaturalImage2DIO.supported_file_endings:  # those hold all channels in one file
        raise InputError(
            f"{folder}: expected {len(channels)} channel(s) of each case ({', '.join(channels)}), found "
            f"{shorten(Path(file).name for file in short[0])}. Add the files, or remove the case."
        )
    return [[Path(file) for file in files] for files in cases]
