"""The interface of a method: frozen features from images, losses from features, scores and maps from features."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import nn

from methods import tapped_blocks
from prompt_ensemble import default_depth
from utils import InputError

if TYPE_CHECKING:
    from AnomalyCLIP_lib import AnomalyCLIP
    from dataset import AnomalyDataset


class Base(nn.Module, ABC):
    """One of the methods that the paper compares, or one of your own; `methods/anomalyclip.py` is the model to follow.

    Args:
        model: the frozen CLIP; it is used, not owned: it is not among the method's parameters.
        settings: the method's SETTINGS as `complete` returns them, with TRAINING (in train.py) or TESTING (in test.py).

    Attributes:
        STATE: the name under which checkpoints hold the state dict of `learner`; None: nothing is ever trained.
        UNTRAINED: flags with which a method that is trained otherwise needs no training and no checkpoint, if any.
        TRAINING_FEATURES: names of the features that `losses` reads; None: all.
        SCHEDULED: whether `learning_rate` depends on --epoch, which a resumed run then has to repeat.
        MEMORY: whether training begins with a look at every image, for `set_memory`.
        learner: the module that is trained, or None if with these settings nothing is.
        num_references: normal images of the train split that `set_references` wants for each class (few-shot), or 0.
    """

    STATE: str | None = None
    UNTRAINED = ""
    TRAINING_FEATURES: tuple[str, ...] | None = None
    SCHEDULED = False
    MEMORY = False

    def __init__(self, model: AnomalyCLIP, settings: dict) -> None:
        super().__init__()
        self._model = (model,)  # a tuple hides the frozen model from parameters() and state_dict()
        self.settings = settings
        self.learner: nn.Module | None = None
        self.num_references = 0
        if "features_list" in settings:
            model.check_layers(settings["features_list"])

    @property
    def model(self) -> AnomalyCLIP:
        return self._model[0]

    # settings

    @classmethod
    def complete(cls, settings: dict, model: AnomalyCLIP) -> dict:
        """`settings` with all that depends on the model: each default that is None, and the model's activation.

        `feature_map_layer`, which belongs to the default of features_list, is gone from the result.
        """
        depth = default_depth(model.num_text_layers)
        depending = {"image_size": model.image_size, "dpam_layer": model.dpam_layer, "depth": depth}
        if settings.get("features_list", ()) is None:
            blocks = cls.default_blocks(model.num_layers)
            depending["features_list"] = tapped_blocks(blocks, settings.get("feature_map_layer", 0))
        complete = {name: value for name, value in settings.items() if name != "feature_map_layer"}
        complete |= {name: value for name, value in depending.items() if settings.get(name, ()) is None}
        return complete | {"activation": model.activation}

    @staticmethod
    def default_blocks(num_layers: int) -> list[int]:
        """Blocks tapped if --features_list is not given: the ends of the four quarters."""
        return [math.ceil(num_layers * quarter / 4) for quarter in (1, 2, 3, 4)]

    @classmethod
    def learns(cls, settings: dict) -> bool:
        """Whether with these settings anything is trained, so that testing takes a checkpoint."""
        return cls.STATE is not None

    @staticmethod
    def sizes(state: dict[str, torch.Tensor]) -> dict:
        """Settings that can be read from a checkpoint's state dict (files of the authors hold no settings).

        Raises InputError if the tensors are not this method's.
        """
        return {}

    # features

    def cache_key(self) -> dict:
        """All settings that the features depend on; `features.open_features` adds what else a cache depends on."""
        keys = ("image_size", "features_list", "dpam_layer", "dpam_mode")
        return {"encoder": type(self).__module__} | {key: self.settings[key] for key in keys if key in self.settings}

    @abstractmethod
    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Frozen features of normalised images (B, 3, S, S), each (B, ...): the part that can be cached.

        Called through `features.encode`, which sees to normalising, precision, gradients and float32. With --precision
        the tower's matrices, `proj` among them, are no float32: what uses them elsewhere casts them.
        """

    # training

    @classmethod
    def check_training(cls, settings: dict, dataset: AnomalyDataset) -> list[str]:
        """What to warn of before training; InputError if nothing can be learned from this data set.

        settings: SETTINGS and TRAINING, not yet completed, so that nobody waits for a model first.
        """
        return []

    def losses(
        self,
        features: dict[str, torch.Tensor],
        labels: torch.Tensor,
        masks: torch.Tensor | None,
        class_names: list[str],
    ) -> dict[str, torch.Tensor]:
        """Terms of the loss, to be added up, by name: each the mean over the images of a batch, or several processes
        together compute another sum than one does.

        features: of `encode`; labels (B,) 0 or 1; masks (B, S, S) of 0 and 1, None if the data set has none.
        """
        raise NotImplementedError

    def forward(self, *arguments) -> dict[str, torch.Tensor]:
        """`losses`: what DistributedDataParallel calls."""
        return self.losses(*arguments)

    def summarise(
        self, features: dict[str, torch.Tensor], labels: torch.Tensor, masks: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """What is to be remembered of training images, each (B, ...); arguments as of `losses`.

        Called through `features.remember`, without gradients.
        """
        raise NotImplementedError

    def set_memory(self, summaries: dict[str, torch.Tensor]) -> None:
        """Keep in `learner` what `summarise` gave of all N images of the training data, each (N, ...)."""
        raise NotImplementedError

    def optimizer(self) -> torch.optim.Optimizer | None:
        """Adam as in AnomalyCLIP and VAND; None if `learner` has a memory and no parameters: there are no epochs."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.Adam(trained, lr=self.settings["learning_rate"], betas=(0.5, 0.999)) if trained else None

    def learning_rate(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        """The learning rate of a step (from 0) in an epoch (from 1) of this many steps."""
        return self.settings["learning_rate"]

    # testing

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Fill `learner` with a checkpoint's state dict; InputError if it does not fit."""
        own = self.learner.state_dict()
        unmatched = sorted(own.keys() ^ state.keys())
        if unmatched:
            raise InputError(f"the checkpoint does not fit this method: {unmatched[0]} is missing or unexpected")
        for key in own:
            shape, expected = tuple(state[key].shape), tuple(own[key].shape)
            if shape != expected:
                raise InputError(f"the checkpoint does not fit this model: {key} is {shape}, not {expected}")
            if state[key].is_floating_point() != own[key].is_floating_point() or state[key].dtype == torch.bool:
                raise InputError(f"the checkpoint does not fit this model: {key} holds {state[key].dtype}")
        self.learner.load_state_dict(state)

    @abstractmethod
    def set_classes(self, class_names: list[str]) -> None:
        """Compute once what depends on the class names alone, such as text features.

        Called through `features.set_classes`, without gradients.
        """

    def set_references(self, class_name: str, features: dict[str, torch.Tensor]) -> None:
        """Remember features of `num_references` normal images of a class."""
        raise NotImplementedError

    @abstractmethod
    def predict(self, features: dict[str, torch.Tensor], class_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (B,) and maps, not yet smoothed, of images of one class.

        Maps are (B, S, S), or (B, G, G) on the patches' grid, to be upsampled bilinearly. Called through
        `features.predict`, without gradients.
        """

    def image_scores(self, scores: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """The images' final scores (B,), from those of `predict` and the smoothed maps (B, S, S)."""
        return scores

    @classmethod
    def highest(cls, settings: dict) -> float:
        """The highest value that maps can have; by default they are sums over the tapped blocks."""
        return float(len(settings.get("features_list", [None])))
