"""The stages that one training loop serves, as equals: what each starts from, reads, minimizes and leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from terrazzo.corpus.loader import Members
from terrazzo.corpus.store import Corpus
from terrazzo.models.base import FoundationModel
from terrazzo.systems.stalign import stages as align_data
from terrazzo.systems.stalign.objective import SpotNiche
from terrazzo.systems.stimage import stages as patch_data
from terrazzo.systems.stimage.objective import MaskedPatches
from terrazzo.systems.stofm import stages as data
from terrazzo.systems.stofm.objectives import DomainAdaptation, MultiScale
from terrazzo.training.recipe import PretrainConfig
from terrazzo.training.stage import Collated, Objective


class Stage:
    """What a run must know of a stage. Models are those of the stage's own kind."""

    objective: ClassVar[type[Objective]]

    def initial_model(self, config: PretrainConfig, corpus: Corpus) -> Any:
        """Return the model that training starts from."""
        raise NotImplementedError

    def loader(
        self, config: PretrainConfig, corpus: Corpus, model: Any, split: str, rank: int, world: int
    ) -> Collated[Any]:
        """Return batches of a split as tensors, this rank's share of them."""
        raise NotImplementedError

    def story(self, config: PretrainConfig, model: Any) -> dict[str, str]:
        """Return what the model card says of the stage."""
        raise NotImplementedError

    def prepare(
        self, config: PretrainConfig, corpus: Corpus, model: Any, progress: bool | None
    ) -> None:
        """Store what will be read; called in the first process alone."""

    def start(self, objective: Any, config: PretrainConfig, corpus: Corpus, model: Any) -> None:
        """Set what is trained beside the model, before the first step; a resumed run has it in its checkpoint."""

    def finish(self, config: PretrainConfig, corpus: Corpus, model: Any) -> None:
        """Change a trained model before it is written."""

    def members(self, config: PretrainConfig, corpus: Corpus, split: str) -> list[str]:
        """Return the slices of a split that are read."""
        return Members(corpus, split, config.data.share if split == "train" else 1.0).ids


class Adapt(Stage):
    """Domain adaptation of SToFM's cell encoder."""

    objective = DomainAdaptation

    def initial_model(self, config: PretrainConfig, corpus: Corpus) -> Any:
        """Return SToFM."""
        return data.initial_model(config, corpus)

    def loader(
        self, config: PretrainConfig, corpus: Corpus, model: Any, split: str, rank: int, world: int
    ) -> Collated[Any]:
        """Return random cells."""
        return data.cell_loader(config, corpus, model, split, rank, world)

    def story(self, config: PretrainConfig, model: Any) -> dict[str, str]:
        """Say that the SE(2) Transformer was not touched."""
        return {
            "objective": "domain adaptation",
            "se2": str(model.provenance.get("se2", "trained")),
        }

    def finish(self, config: PretrainConfig, corpus: Corpus, model: Any) -> None:
        """Take off what training added to all cells' vectors alike."""
        data.centered(config, corpus, model)


class MultiScalePretraining(Stage):
    """SToFM's SE(2) Transformer on sub-slices."""

    objective = MultiScale

    def initial_model(self, config: PretrainConfig, corpus: Corpus) -> Any:
        """Return SToFM."""
        return data.initial_model(config, corpus)

    def loader(
        self, config: PretrainConfig, corpus: Corpus, model: Any, split: str, rank: int, world: int
    ) -> Collated[Any]:
        """Return whole sub-slices."""
        return data.scene_loader(config, corpus, model, split, rank, world)

    def story(self, config: PretrainConfig, model: Any) -> dict[str, str]:
        """Say which objective it was."""
        return {"objective": config.pretrain.objective, "se2": "trained"}

    def prepare(
        self, config: PretrainConfig, corpus: Corpus, model: Any, progress: bool | None
    ) -> None:
        """Encode every cell once."""
        data.encode(config, corpus, model, progress)

    def start(self, objective: Any, config: PretrainConfig, corpus: Corpus, model: Any) -> None:
        """Let the heads start from trivial answers."""
        objective.start(data.references(config, corpus, model))


class Patches(Stage):
    """ST as images on windows, in any of its four schemes."""

    objective = MaskedPatches

    def initial_model(self, config: PretrainConfig, corpus: Corpus) -> Any:
        """Return ST as images."""
        return patch_data.initial_model(config, corpus)

    def loader(
        self, config: PretrainConfig, corpus: Corpus, model: Any, split: str, rank: int, world: int
    ) -> Collated[Any]:
        """Return windows."""
        return patch_data.window_loader(config, corpus, model, split, rank, world)

    def story(self, config: PretrainConfig, model: Any) -> dict[str, str]:
        """Say which scheme it was."""
        goal = config.patches
        return {
            "objective": f"{goal.scheme}, {goal.mask} masking, target {goal.target}",
            "scheme": goal.scheme,
        }

    def prepare(
        self, config: PretrainConfig, corpus: Corpus, model: Any, progress: bool | None
    ) -> None:
        """Measure every slice once."""
        patch_data.measure(config, corpus, model, progress)


class Align(Stage):
    """ST-Align on spots and their histology."""

    objective = SpotNiche

    def initial_model(self, config: PretrainConfig, corpus: Corpus) -> Any:
        """Return ST-Align."""
        return align_data.initial_model(config, corpus)

    def loader(
        self, config: PretrainConfig, corpus: Corpus, model: Any, split: str, rank: int, world: int
    ) -> Collated[Any]:
        """Return random spots."""
        return align_data.spot_loader(config, corpus, model, split, rank, world)

    def story(self, config: PretrainConfig, model: Any) -> dict[str, str]:
        """Say what was contrasted, and what the frozen encoders were."""
        goal, source, before = config.align, config.model, model.provenance
        weights = f"{goal.spot_weight:g} spot, {goal.niche_weight:g} niche, {goal.cross_weight:g} spot-niche"
        return {
            "objective": f"contrast, {weights}, modality {goal.modality}",
            "image encoder": Path(source.image_encoder).name
            or before.get("image encoder", "small, random weights"),
            "gene encoder": Path(source.gene_encoder).name
            or before.get("gene encoder", "principal components"),
        }

    def prepare(
        self, config: PretrainConfig, corpus: Corpus, model: Any, progress: bool | None
    ) -> None:
        """Read crops and features of every slice once."""
        align_data.prepare(config, corpus, model, progress)

    def start(self, objective: Any, config: PretrainConfig, corpus: Corpus, model: Any) -> None:
        """Take means and deviations of features from the training slices."""
        align_data.standardize(config, corpus, model)

    def members(self, config: PretrainConfig, corpus: Corpus, split: str) -> list[str]:
        """Return those with histology."""
        return align_data.members(config, corpus, split)


STAGES: dict[str, Stage] = {
    "adapt": Adapt(),
    "pretrain": MultiScalePretraining(),
    "patches": Patches(),
    "align": Align(),
}


def initial_model(config: PretrainConfig, corpus: Corpus) -> FoundationModel:
    """Return the model that a recipe starts from.

    Raises
    ------
    ConfigError
        A checkpoint of another kind; no such preset.
    """
    model: FoundationModel = STAGES[config.stage].initial_model(config, corpus)
    return model


def prepare(
    config: PretrainConfig, corpus: Corpus, model: Any, progress: bool | None = None
) -> None:
    """Store what a run will read, and does not make while it reads."""
    STAGES[config.stage].prepare(config, corpus, model, progress)


def loaders(
    config: PretrainConfig, corpus: Corpus, model: Any, *, rank: int = 0, world: int = 1
) -> tuple[Collated[Any], Collated[Any] | None]:
    """Return the loader of the training split, and of the validation split where there is one.

    Validation draws the same every time, so that its losses can be compared.
    """
    stage = STAGES[config.stage]
    train = stage.loader(config, corpus, model, "train", rank, world)
    held_out = (
        stage.loader(config, corpus, model, "validation", rank, world)
        if corpus.ids("validation")
        else None
    )
    return train, held_out


def make_objective(config: PretrainConfig, model: Any) -> Objective:
    """Return the LightningModule of a recipe's stage, in training mode."""
    return STAGES[config.stage].objective(model, config).train()
