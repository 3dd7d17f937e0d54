"""An encoder that is made when it is first needed: options, backbone and engine."""

from dataclasses import dataclass
from pathlib import Path

from pipeline import backbones, engines
from pipeline.backbones import Backbone, forms, frozen, identity, quantized_file
from pipeline.backbones.forms import KERAS, ONNX
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.config.options import ExtractOptions
from pipeline.engines import int8
from pipeline.engines.base import require_apart
from pipeline.engines.encoder import Encoder
from pipeline.errors import StaleFeaturesError
from pipeline.extract import calibration
from pipeline.images import views
from pipeline.images.manifest import Manifest
from pipeline.store.store import Store
from pipeline.system.progress import Reporter
from pipeline.system.wording import counted


@dataclass(slots=True)
class LazyEncoder:
    """The backbone and its engine, each loaded when first needed.

    Attributes:
        options: What was asked for.
        reporter: Where notes go.
        spec: The row of the table, or of a file.
        token: A text that is equal when the weights are.
        is_loaded: Whether the network was built.
    """

    options: ExtractOptions
    reporter: Reporter
    spec: Backbone
    token: str
    is_loaded: bool = False
    _choice: tuple[str, str] | None = None
    _backbone: FrozenBackbone | None = None
    _encoder: Encoder | None = None

    @classmethod
    def of(cls, options: ExtractOptions, reporter: Reporter) -> "LazyEncoder":
        """Check options and find out what they ask for, loading nothing.

        Raises:
            ConfigError: A name is unknown, or options do not go together.
            WeightsUnavailableError: The weights file is not one.
            EngineUnavailableError: The engine is not installed.
        """
        form = forms.of_file(options.backbone) or KERAS
        engines.require(options.engine, form)
        if options.precision == int8.PRECISION:
            int8.require(options.engine)
            engines.require(int8.ENGINE, form)
        views.check(options.views)
        spec = backbones.find(options.backbone, options.preprocessing, options.output)
        token = identity.source_token(spec, weights=options.weights, seed=options.seed)
        return cls(options, reporter, spec, token)

    @property
    def engine(self) -> str:
        """The engine that ``auto`` stands for, or the one asked for."""
        return self._resolved()[0]

    def attach(self, store: Store) -> None:
        """Use what a store, whose identity is the one asked for, keeps of the network."""
        if self._backbone is None:
            digest = store.identity.weights_sha256
            self._backbone = FrozenBackbone(
                lambda: self._load_again(store).built,
                name=self.options.backbone,
                image_size=self.options.image_size,
                pooling=self.options.pooling,
                dim=store.dim,
                weights_sha256=digest,
                form=self.spec.form,
            )
        folder = store.encoder_folder
        self._backbone.converted = folder
        self._backbone.quantized = quantized_file.of_store(folder, store.identity.quantized)

    def backbone(self) -> FrozenBackbone:
        """Return the network; loads it, unless a store knows it."""
        if self._backbone is None:
            self._backbone = self._load(None)
        return self._backbone

    @property
    def is_quantized(self) -> bool:
        """Whether features are those of a network in int8, which is made of the data's images."""
        return self.options.precision == int8.PRECISION

    def quantized(self, listing: Manifest) -> bytes:
        """Make the network in int8 for a new store, of the images that it is for.

        Returns:
            What ``quantized_file`` keeps.

        Raises:
            EngineUnavailableError: What makes it is not installed.
            ManifestError: No image can be read.
        """
        int8.require_nncf()
        keys, images = calibration.sample(listing, self.options, int8.CALIBRATION_IMAGES)
        few = "; more are better" if len(keys) < int8.FEW_IMAGES else ""
        self.reporter.say(f"Calibrating int8 on {counted(len(keys), 'image')} of the data{few}")
        return int8.quantize(self.backbone(), images, keys)

    def encoder(self) -> Encoder:
        """Return the network on its engine, compiled."""
        if self._encoder is None:
            options = self.options
            self._encoder = engines.create(
                self.engine,
                self.backbone(),
                batch_size=options.batch_size,
                precision=options.precision,
            )
            self.reporter.say(
                f"Encoding with {self.engine} ({self._resolved()[1]}) in {options.precision} on "
                f"{self._encoder.device}"
            )
            if self.spec.form is ONNX:
                require_apart(self._encoder, options.image_size)
        return self._encoder

    def _load(self, saved: Path | None) -> FrozenBackbone:
        options = self.options
        self.reporter.say(f"Loading {options.backbone} (weights: {_weights_text(options)})")
        self.is_loaded = True
        return frozen.load(
            options.backbone,
            weights=options.weights,
            seed=options.seed,
            image_size=options.image_size,
            pooling=options.pooling,
            saved=saved if saved and saved.exists() else None,
            preprocessing=options.preprocessing,
            output=options.output,
        )

    def _load_again(self, store: Store) -> FrozenBackbone:
        """Load the network of a store, from the weights that it keeps or from their source."""
        expected = store.identity.weights_sha256
        loaded = self._load(store.encoder_path(expected))
        if loaded.weights_sha256 != expected:
            raise StaleFeaturesError(
                f"The store {str(store.place)!r} holds features of weights_sha256 = {expected!r}. "
                f"Received: {loaded.weights_sha256!r} from --weights {self.options.weights}.",
                hint="Choose another --store, or replace the store with --force.",
            )
        return loaded

    def _resolved(self) -> tuple[str, str]:
        if self._choice is None:
            asked = int8.ENGINE if self.is_quantized else self.options.engine
            self._choice = engines.resolve(asked, self.spec.form)
        return self._choice


def _weights_text(options: ExtractOptions) -> str:
    if options.preprocessing:
        return "its own"
    if options.weights == "random":
        return f"random, seed {options.seed}: an untrained network, for trying things out"
    return options.weights
