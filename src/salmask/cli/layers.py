"""`salmask layers`: what would be read of a network."""

from dataclasses import dataclass

import tyro

from salmask.cli.console import Command, say
from salmask.cli.options import SightOptions
from salmask.files import Facts

__all__ = ["LayersCommand"]


@dataclass(frozen=True, kw_only=True)
class LayersCommand(Command, SightOptions):
    """Print the layers that are read of a network, shallow to deep: name, shape (C, h, w) and stride in pixels."""

    spec: tyro.conf.Positional[str]
    """timm:NAME, torchvision:NAME, hf:NAME_OR_FOLDER, module.py:function, or a run's folder."""
    layers: tuple[str, ...] | None = None
    """Names of modules to read instead of those that would be chosen."""

    def __call__(self) -> Facts:
        """Run the command."""
        from salmask.training.run import load_classifier

        loaded = load_classifier(self.spec, layers=self.layers, **self.pictures())
        classifier = loaded.classifier
        read = classifier.describe()
        for layer in read:
            shape = "x".join(map(str, layer.shape))
            strides = " by ".join(f"{stride:g}" for stride in dict.fromkeys(layer.stride))
            say(f"{layer.name}\t{shape}\tstride {strides}")
        kind = "labels" if classifier.multilabel else "classes"
        say(
            f"{classifier.num_classes} {kind}, pictures of {classifier.channels_in} channels and "
            f"{classifier.image_size}x{classifier.image_width} pixels, outputs: {classifier.outputs.kind}"
        )
        if not classifier.layers:
            say("no layer is read: explainers that ask for logits alone can be used, such as rise and occlusion")
        if not classifier.differentiable:
            say("no gradients come back from the network: explainers that need them refuse it")
        return {
            "layers": [{"name": one.name, "shape": one.shape, "stride": one.stride} for one in read],
            "classes": classifier.num_classes,
            "multilabel": classifier.multilabel,
            "channels": classifier.channels_in,
            "image_size": classifier.image_size,
            "outputs": classifier.outputs.kind,
            "differentiable": classifier.differentiable,
        }
