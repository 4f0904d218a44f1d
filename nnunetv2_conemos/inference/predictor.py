"""Predict with a trained model: all labels or some, images of a folder or the training cases of a dataset."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_conemos.doorway import register_trainers
from nnunetv2_conemos.environment import variables
from nnunetv2_conemos.errors import InputError
from nnunetv2_conemos.inference.inputs import cases_of, require_images
from nnunetv2_conemos.inference.model_folder import ModelFolder, is_ours, read_checkpoint, read_folder, read_model
from nnunetv2_conemos.inference.streaming import StreamingPredictor
from nnunetv2_conemos.networks.spec import SKIP_VARIABLE, UNKNOWN


def default_device() -> str:
    """Return `cuda` if there is one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Inference:
    """How to predict: nnU-Net's own options, and `labels_at_once`. Raises InputError for values that cannot be used.

    `folds`: an ensemble of these (None: all that were trained). `mirroring`: average over mirrored images.
    `preprocessing`: number of processes. `export`: of threads that resample or, for probabilities and stock models, of
    processes. With both 0, everything runs in the current process. `step_size`: of the sliding window, in patches.
    `on_device`: sum up tiles on the GPU. `labels_at_once`: memory is needed for the maps of so many labels, whatever
    their number (None: 8 where each label costs a pass of its own; else all, since each chunk costs another pass).
    `skip_absent`: give up a label early in tiles where its coarse logits say that it is absent.
    """

    folds: Sequence[str] | None = None
    checkpoint: str = "checkpoint_final.pth"
    device: str = field(default_factory=default_device)
    mirroring: bool = True
    preprocessing: int = 3
    export: int = 3
    step_size: float = 0.5
    on_device: bool = True
    labels_at_once: int | None = None
    skip_absent: bool = False
    verbose: bool = False
    progress_bars: bool = False

    def __post_init__(self) -> None:
        if self.labels_at_once is not None and self.labels_at_once < 1:
            raise InputError(f"labels_at_once: expected 1 or more, found {self.labels_at_once}.")
        if not 0 < self.step_size <= 1:
            raise InputError(f"step_size: expected a number above 0 and up to 1, found {self.step_size:g}.")
        for name, number in (("preprocessing (-npp)", self.preprocessing), ("export (-nps)", self.export)):
            if number < 0:
                raise InputError(f"{name}: expected 0 or more processes, found {number}.")


def predict(
    model: Path | str,
    images: Path | str,
    output: Path | str,
    *,
    labels: Sequence[str] | None = None,
    modality: str | None = None,
    inference: Inference | None = None,
    probabilities: bool = False,
    keep_existing: bool = False,
    previous_stage: Path | str | None = None,
    part: int = 0,
    parts: int = 1,
) -> list[Path]:
    """Predict the images of a folder, named CASE_0000 and so on; return the label maps in `output`, one for each case.

    `model` is the folder of a trained model. `labels`: compute these only (None: all that were annotated in training).
    `modality`: that of the images, for methods that are conditioned on it (None: the only one, or unknown). Memory does
    not grow with the number of labels, except with `probabilities`, which are written beside each map, and for models
    of stock nnU-Net: then everything is as in nnU-Net. `keep_existing`: skip cases that were predicted before.
    `previous_stage`: folder of the predictions that a cascade of stock nnU-Net needs. `part` of `parts`: predict every
    n-th case only, as one of several processes. Raises FileNotFoundError for a folder without a model, SourceError or
    ValueError for labels and a modality that the model does not know, ShortOfMemoryError for a case that is too large.
    """
    register_trainers()
    if not 0 <= part < parts:
        raise InputError(f"part {part} of {parts}: expected parts numbered from 0, the last being one less than parts.")
    folder, target, how = Path(model), Path(output), inference or Inference()
    predictor = load_predictor(folder, how, labels, modality)
    dataset_json: Any = predictor.dataset_json
    ending = dataset_json["file_ending"]
    cases = cases_of(Path(images), ending, list(dataset_json["channel_names"].values()))[part::parts]
    outputs = [target / files[0].name.removesuffix(ending)[:-5] for files in cases]
    with threads_of(how.device):
        predict_files(predictor, how, cases, outputs, probabilities, keep_existing, previous_stage)
    return [file.with_name(f"{file.name}{ending}") for file in outputs]


@contextmanager
def threads_of(device: str) -> Iterator[None]:
    """Set torch's threads within the block as nnUNetv2_predict does: every core, or beside a GPU one."""
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(multiprocessing.cpu_count())
    elif device == "cuda":
        torch.set_num_threads(1)
        with suppress(RuntimeError):  # it can be set once in a process
            torch.set_num_interop_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_predictor(
    folder: Path, how: Inference, labels: Sequence[str] | None = None, modality: str | None = None
) -> nnUNetPredictor:
    """Load the predictor of a model of this package or of stock nnU-Net, which has all labels, and no modality.

    Raises what `predict` raises for a model.
    """
    if labels or modality or how.labels_at_once or how.skip_absent or is_ours(folder):
        return make_predictor(read_model(folder), how, labels, modality)
    return loaded(nnUNetPredictor, read_folder(folder), how)


def make_predictor(
    model: ModelFolder, how: Inference, labels: Sequence[str] | None = None, modality: str | None = None
) -> StreamingPredictor:
    """Load a predictor, with the network set to compute only some labels, in images of a modality."""
    check_choice(model, labels, modality)
    predictor = loaded(StreamingPredictor, model, how)
    predictor.labels_at_once = how.labels_at_once
    network: Any = getattr(predictor.network, "_orig_mod", predictor.network)
    if labels is not None:
        network.output_labels = tuple(sorted({model.labels.names.index(label) + 1 for label in labels}))
    if modality is not None:
        network.modality = model.modalities.index(modality) + 1 if modality in model.modalities else 0
    return predictor


Predictor = TypeVar("Predictor", bound=nnUNetPredictor)


def loaded(kind: type[Predictor], model: ModelFolder, how: Inference) -> Predictor:
    """Load nnU-Net's predictor, or a kind of it, once the checkpoints are known to be whole and harmless."""
    if how.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: expected a GPU for cuda, found none. Pass -device cpu, or install a torch for CUDA.")
    predictor = kind(
        how.step_size,
        use_mirroring=how.mirroring,
        perform_everything_on_device=how.on_device,
        device=torch.device(how.device),
        verbose=how.verbose,
        verbose_preprocessing=how.verbose,
        allow_tqdm=how.progress_bars,
    )
    folds: Any = tuple(model.folds(how.checkpoint, how.folds))
    for fold in folds:
        read_checkpoint(model.folder / f"fold_{fold}" / how.checkpoint, mapped=True)  # nnU-Net would run code in it
    with variables({SKIP_VARIABLE: "1" if how.skip_absent else None}):
        predictor.initialize_from_trained_model_folder(str(model.folder), folds, how.checkpoint)
    return predictor


def predict_files(
    predictor: nnUNetPredictor,
    how: Inference,
    images: Sequence[Sequence[Path]],
    outputs: Sequence[Path],
    probabilities: bool = False,
    keep_existing: bool = False,
    previous_stage: Path | str | None = None,
) -> None:
    """Write the prediction of each list of channels to a file whose ending is not named yet.

    Raises VolumeError, before anything is predicted, for an image that cannot be used as it is.
    """
    manager: Any = predictor.plans_manager
    streams = isinstance(predictor, StreamingPredictor) and not probabilities
    require_options(how, streams)
    require_images(images, manager.plans, predictor.dataset_json or {})
    if not images:
        return
    outputs[0].parent.mkdir(parents=True, exist_ok=True)
    files = [[str(file) for file in of_case] for of_case in images]
    names: Any = [str(file) for file in outputs]
    before: Any = None if previous_stage is None else str(previous_stage)
    if not streams and how.preprocessing == 0:
        predictor.predict_from_files_sequential(files, names, probabilities, not keep_existing, before)
    else:
        processes = how.preprocessing, how.export
        predictor.predict_from_files(files, names, probabilities, not keep_existing, *processes, before)


def require_options(how: Inference, streams: bool) -> None:
    """Raise InputError for options that nnU-Net's own way, which needs the maps of all labels, does not have."""
    if streams:
        return
    if how.labels_at_once:
        raise InputError("labels_at_once: probabilities are the maps of all labels. Leave one of the two out.")
    if (how.preprocessing == 0) != (how.export == 0):
        raise InputError(
            "preprocessing (-npp) and export (-nps): for probabilities and stock models, expected both 0 or neither, "
            f"found {how.preprocessing} and {how.export}."
        )


def check_choice(model: ModelFolder, labels: Sequence[str] | None, modality: str | None) -> None:
    """Raise SourceError for a name that is not a label of the model, ValueError for what it was not trained on."""
    for label in labels or ():
        model.labels.index(label, "labels")
        if label in model.never_annotated:
            raise InputError(f"labels: '{label}' was annotated in no training case, so it is never predicted.")
    known = model.modalities
    if modality is not None and (modality not in (*known, UNKNOWN) or not known):
        raise InputError(f"modality: this model knows {', '.join(known) or 'no modality'}, found '{modality}'.")
