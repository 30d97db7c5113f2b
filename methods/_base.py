"""The interface of a method: frozen features from images, losses from features, scores and maps from features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import nn

from utils import InputError

if TYPE_CHECKING:
    from AnomalyCLIP_lib import AnomalyCLIP
    from dataset import AnomalyDataset


class Base(nn.Module, ABC):
    """A row of the paper's tables. `methods/anomalyclip.py` is the model to follow.

    Args:
        model: the frozen CLIP; it is used, not owned: it is not among the method's parameters.
        settings: the method's SETTINGS, with TRAINING (in train.py) or TESTING (in test.py), as given by flags,
            checkpoint and defaults, None where the value depends on the model (filled in, in place).

    Attributes:
        STATE: the name under which checkpoints hold the state dict of `learner`; None: nothing is ever trained.
        TRAINING_FEATURES: names of the features that `losses` reads; None: all.
        SCHEDULED: whether `learning_rate` depends on --epoch, which a resumed run then has to repeat.
        learner: the module that is trained, or None if with these settings nothing is.
        num_references: normal images of the train split that `set_references` wants for each class (few-shot), or 0.
    """

    STATE: str | None = None
    TRAINING_FEATURES: tuple[str, ...] | None = None
    SCHEDULED = False

    def __init__(self, model: AnomalyCLIP, settings: dict) -> None:
        super().__init__()
        self._model = (model,)  # a tuple hides the frozen model from parameters() and state_dict()
        self.settings = settings
        self.learner: nn.Module | None = None
        self.num_references = 0
        if "features_list" in settings:
            if settings["features_list"] is None:
                settings["features_list"] = self.default_layers(model.num_layers)
            model.check_layers(settings["features_list"])

    @property
    def model(self) -> AnomalyCLIP:
        return self._model[0]

    @staticmethod
    def default_layers(num_layers: int) -> list[int]:
        """Blocks tapped if --features_list is not given: the ends of the four quarters."""
        return [-(-num_layers * quarter // 4) for quarter in (1, 2, 3, 4)]

    @staticmethod
    def sizes(state: dict[str, torch.Tensor]) -> dict:
        """Settings that can be read from a checkpoint's state dict (files of the authors hold no settings).

        Raises InputError if the tensors are not this method's.
        """
        return {}

    def encoding(self) -> dict:
        """All settings that the features depend on; with weights and data they are the key of a cache."""
        keys = ("image_size", "features_list", "dpam_layer", "dpam_mode")
        return {"encoder": type(self).__module__} | {key: self.settings[key] for key in keys if key in self.settings}

    @abstractmethod
    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Frozen features of normalised images (B, 3, S, S), each (B, ...): the part that can be cached.

        Called through `features.encode`, which sees to precision, gradients and float32.
        """

    # training

    def check_training(self, dataset: AnomalyDataset) -> list[str]:
        """What to warn of before training; InputError if nothing can be learned from this data set."""
        return []

    def losses(
        self,
        features: dict[str, torch.Tensor],
        labels: torch.Tensor,
        masks: torch.Tensor | None,
        class_names: list[str],
    ) -> dict[str, torch.Tensor]:
        """Terms of the loss, to be added up, by name: each the mean over the images of a batch.

        features: of `encode`; labels (B,) 0 or 1; masks (B, S, S) of 0 and 1, None if the data set has none.
        """
        raise NotImplementedError

    def forward(self, *arguments) -> dict[str, torch.Tensor]:
        """`losses`: what DistributedDataParallel calls."""
        return self.losses(*arguments)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam as in AnomalyCLIP and VAND."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.Adam(trained, lr=self.settings["learning_rate"], betas=(0.5, 0.999))

    def learning_rate(self, epoch: int) -> float:
        """The learning rate of an epoch (1-based)."""
        return self.settings["learning_rate"]

    # testing

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Take over a checkpoint's state dict; InputError if it does not fit."""
        own = self.learner.state_dict()
        strange = sorted(own.keys() ^ state.keys())
        if strange:
            raise InputError(f"the checkpoint does not fit this method: {strange[0]} is missing or too much")
        for key in own:
            shape, wanted = tuple(state[key].shape), tuple(own[key].shape)
            if shape != wanted:
                raise InputError(f"the checkpoint does not fit this model: {key} is {shape}, not {wanted}")
        self.learner.load_state_dict(state)

    @abstractmethod
    def set_classes(self, class_names: list[str]) -> None:
        """Compute once what depends on the class names alone, such as their text features; called without gradients."""

    def set_references(self, class_name: str, features: dict[str, torch.Tensor]) -> None:
        """Remember features of `num_references` normal images of a class."""
        raise NotImplementedError

    @abstractmethod
    def predict(self, features: dict[str, torch.Tensor], class_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (B,) and maps (B, S, S), not yet filtered, of images of one class; called without gradients."""
