"""From a dataset dict to what a model eats: Detectron2's mapper, whose failures name the file to look at."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils

from ..errors import DataError

__all__ = ["DetectionMapper"]


class DetectionMapper(DatasetMapper):
    """Detectron2's ``DatasetMapper``, same arguments, same result.

    Raises:
        DataError: when called, if an image is missing, unreadable or of another size than annotated, or if the
            annotations do not suit ``instance_mask_format``.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        try:
            return super().__call__(dataset_dict)
        except Exception as error:
            self._explain(dataset_dict, error)

    def _explain(self, dataset_dict: dict, error: Exception) -> NoReturn:
        """Raises a DataError if the data caused ``error``, else ``error`` itself.

        Runs only after a failure, so the files are simply read a second time.
        """
        name = dataset_dict["file_name"]
        image = self._read(name, "image", self.image_format)
        height, width = image.shape[:2]
        expected = (dataset_dict.get("width", width), dataset_dict.get("height", height))
        if (width, height) != expected:
            raise DataError(
                f"Image {name!r} is {width}x{height} pixels (width x height), but its annotations say "
                f"{expected[0]}x{expected[1]}; correct the annotations or restore the image."
            ) from error
        if "sem_seg_file_name" in dataset_dict:
            labels = self._read(dataset_dict["sem_seg_file_name"], "label map", "L")
            if labels.shape[:2] != (height, width):
                raise DataError(
                    f"Label map {dataset_dict['sem_seg_file_name']!r} is {labels.shape[1]}x{labels.shape[0]} pixels, "
                    f"but its image {name!r} is {width}x{height}; correct one of them."
                ) from error
        for annotation in dataset_dict.get("annotations", ()) if self.is_train and self.use_instance_mask else ():
            self._explain_mask(name, (height, width), annotation, error)
        raise error

    def _read(self, name: str, kind: str, image_format: str) -> np.ndarray:
        try:
            return utils.read_image(name, image_format)
        except FileNotFoundError as missing:
            raise DataError(
                f"The {kind} {name!r} does not exist; restore it or remove it from the annotations."
            ) from missing
        except Exception as broken:  # Pillow has many words for a broken file
            raise DataError(
                f"The {kind} {name!r} cannot be read ({type(broken).__name__}: {broken}); restore it or remove it "
                "from the annotations."
            ) from broken

    def _explain_mask(self, name: str, size: tuple[int, int], annotation: dict, error: Exception) -> None:
        mask = annotation.get("segmentation")
        if isinstance(mask, dict) and self.instance_mask_format == "polygon":
            raise DataError(
                f"Image {name!r} has run-length masks, which mask format 'polygon' cannot hold; set "
                "dataloader.train.mapper.instance_mask_format=bitmask."
            ) from error
        if isinstance(mask, dict) and tuple(mask["size"]) != size:
            raise DataError(
                f"A mask of image {name!r} is {mask['size'][1]}x{mask['size'][0]} pixels, but the image is "
                f"{size[1]}x{size[0]}; correct the annotations."
            ) from error
