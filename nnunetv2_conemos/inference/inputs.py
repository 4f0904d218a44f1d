"""Check images before they are predicted: nnU-Net would predict a cut file as if the rest of it were air."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from rich.progress import track

from nnunetv2_conemos.datasets.folders import image_lists
from nnunetv2_conemos.datasets.volumes import naming, read_image
from nnunetv2_conemos.errors import MissingFileError


def require_sound_images(
    images: Path | Sequence[Sequence[Path]], plans: dict[str, Any], dataset_json: dict[str, Any]
) -> None:
    """Raise VolumeError, naming case and file, for an image that cannot be used as it is.

    `images`: a folder of CASE_0000 files, or the channels of each case. They are read as nnU-Net will read them.
    """
    ending, channels = dataset_json["file_ending"], len(dataset_json["channel_names"])
    if isinstance(images, Path):
        if not images.is_dir():
            raise MissingFileError(f"{images}: expected a folder of images CASE_0000{ending}, found none.")
        images = [[Path(file) for file in files] for files in image_lists(images, ending)]
    reader = PlansManager(plans).image_reader_writer_class()
    for files in track(images, "Reading images"):
        with naming(files[0].name.removesuffix(ending)[:-5]):
            read_image(files, reader, channels)
