"""Sources of methods: a run, a model, or a model with its earlier weights.

All methods take a *source*. `as_source` gives each kind the same functions:
the network, the weights of saved epochs, and the check of the examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import keras
import numpy as np

from tfmemloc import configs, graph
from tfmemloc.data.examples import Examples, require_examples
from tfmemloc.evaluation import inference_models
from tfmemloc.runs import Run, check_saved


@dataclasses.dataclass(frozen=True, eq=False)
class Snapshots:
    """A trained model, and the weights that it had after earlier epochs.

    Attributes:
        network: as trained; it is not changed.
        saved: epoch -> values in the order of `model.weights`; 0 is the
            initialization.

    Example:
        >>> snapshots = Snapshots(model, {0: model.get_weights()})
        >>> snapshots.epochs
        (0,)
    """

    network: keras.Model
    saved: Mapping[int, Sequence[np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    # Attributes that a `Run` has; a model does not know them.
    training: configs.TrainConfig | None = None
    model_config: configs.ModelConfig | None = None
    fingerprint: Mapping | None = None

    def model(self, inference: str | None = None) -> keras.Model:
        """The network as trained.

        Args:
            inference: behaviour of tied layers; None leaves the model's.
        """
        if inference is None:
            return self.network
        return graph.with_inference(self.network, inference)

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs whose weights are known."""
        return tuple(sorted(self.saved))

    def check_epochs(self, epochs: Sequence[int]) -> None:
        """Refuses epochs of which no weights are known.

        Raises:
            ValueError: one is missing, or none was given.
        """
        check_saved(f"Model '{self.network.name}'", epochs, self.epochs)

    def weights(self, epoch: int) -> list[np.ndarray]:
        """The weights of an epoch."""
        self.check_epochs([epoch])
        return list(self.saved[epoch])

    def check(self, examples: Examples) -> None:
        """A model does not know its examples: all are accepted."""
        require_examples(examples)


Source = Run | Snapshots | keras.Model


def as_source(source: Source) -> Run | Snapshots:
    """A run or snapshots as they are; a model as snapshots without epochs.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(source, keras.Model):
        return Snapshots(source)
    if not isinstance(source, Run | Snapshots):
        raise TypeError(
            "Expected a Run, a Keras model, or Snapshots of one. Received: "
            f"{type(source).__name__}. `Run.open(directory)` opens a run."
        )
    return source


def model_of(
    source: Source, examples: Examples, inference: str | None = None
) -> keras.Model:
    """The network of a source, whose examples these are.

    Raises:
        ValueError: the examples are not those of the run.
    """
    source = as_source(source)
    source.check(examples)
    return source.model(inference=inference)


def behaviours(
    sources: Mapping[str, Source], examples: Examples
) -> Iterator[tuple[tuple[str, str], keras.Model]]:
    """The networks of some sources, each in the behaviours that it has.

    Args:
        sources: name -> a source of these examples.
        examples: whose they are.

    Yields:
        (name, behaviour), the network in it; see `inference_models`.
    """
    for name, source in sources.items():
        model = model_of(source, examples)
        for inference, network in inference_models(model).items():
            yield (name, inference), network
