"""Attention pooling beside a frozen network: a learned query takes the place of the pooled vector (CA-Stream).

    a_l = softmax(F_l q_l / sqrt(d_l)) over positions;    q_{l+1} = W_l (F_l^T a_l) + b_l;    logits = head(q_{L+1})

F_l (positions, d_l) is the map of stage l, read as keys and as values alike; q_1 is learned, nothing is added back
(no residual), and the head is the network's own, frozen. a_L is the raw attention: a map that no class enters.
F^T a is a weighted mean of positions as global average pooling is one, so that any class activation map can be
taken through either head: `Pooled.average` is the network as it was, on the same weights. A stream that begins as the
average (`begin="average"`: q_L = 0, which attends to all positions alike, W_L = 1, b_L = 0) gives the network's own
logits before it has learned anything.

Differs from the released code: 1, every weight of the stream learns and nothing else, by construction and not by the
names of parameters; 2, the backbone's statistics stay as they are. Source: Torres, Zhang, Sicre, Ayache & Avrithis
(2024).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from salmask.classifier import Classifier
from salmask.classifier.neck import Neck, Reheaded, find_neck, options_of, rebuilt
from salmask.classifier.weights import load_module, read_config, save_module, saved_in
from salmask.files import JSON, Maybe, Several, Within, Word, plain_arguments
from salmask.types import Images, Logits

__all__ = ["BEGINNINGS", "Attended", "Pooled", "QueryStream", "read_stream"]

LEAST_STRIDE = 4  # of the stages that are read unless some are named: the source's first map is that after the stem

BEGINNINGS = ("source", "average")
_SIZES = {"channels": [Within(1, 1_000_000)], "width": Within(1, 1_000_000)}
StageMap = Float[Tensor, "_ _ _ _"]  # of one picture where only later stages have many


@dataclass(frozen=True)
class Attended:
    """What a stream makes of a batch of maps: the last query (B, width), and, of each stage, shallow to deep,

    attentions (B, 1, h, w), which sum to 1, and the scores F q / sqrt d (B, 1, h, w) that they are the softmax of.
    A stage may have one picture where later ones have many: those that differ from there on.
    """

    query: Float[Tensor, "batch width"]
    attentions: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]
    logits: Logits | None = None


class QueryStream(nn.Module):
    """The learned part: the first query and one projection a stage.

    channels: of the maps, shallow to deep, the last one that which the head pools. width: length of the head's vector.
    layers: names of the modules that give the maps. neck: name of the module that takes the vector. classifier:
    fingerprint of the network that it was trained beside. generator: where the first weights are drawn from:
    q_1 ~ N(1, 1), W Xavier-uniform, b = 0, as in the source. begin: "average" then makes the last projection the
    identity, and what gives the last query 0. Errors: ValueError for another one, and where the head's vector is not
    as long as the last map has channels.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        *,
        layers: Sequence[str] = (),
        neck: str = "",
        classifier: str | None = None,
        generator: Generator | None = None,
        begin: str = "source",
    ) -> None:
        super().__init__()
        if begin not in BEGINNINGS:
            raise ValueError(f"a stream begins as one of {', '.join(BEGINNINGS)}, got {begin!r}")
        given = plain_arguments("a QueryStream", _SIZES, channels=channels, width=width)
        channels, width = given["channels"], given["width"]
        if not channels:
            raise ValueError("a stream attends to one stage at least, got none: name layers of the network")
        self.channels, self.width = tuple(channels), width
        self.layers, self.neck, self.classifier = tuple(layers), neck, classifier
        self.start = nn.Parameter(torch.empty(self.channels[0]).normal_(1, 1, generator=generator))
        sizes = [*self.channels, width]
        projections = [nn.Linear(own, following) for own, following in pairwise(sizes)]
        self.projections = nn.ModuleList(projections)
        for projection in projections:
            nn.init.xavier_uniform_(projection.weight, generator=generator)
            nn.init.zeros_(projection.bias)
        if begin == "average":
            self._begin_as_average(projections)

    def _begin_as_average(self, projections: Sequence[nn.Linear]) -> None:
        if self.width != self.channels[-1]:
            raise ValueError(
                f"a stream begins as the average where the head's vector is as long as the last map has channels, got "
                f"{self.width} and {self.channels[-1]}: begin as the source does"
            )
        nn.init.eye_(projections[-1].weight)
        nn.init.zeros_(projections[-2].weight if len(projections) > 1 else self.start)

    @classmethod
    def for_classifier(
        cls,
        classifier: Classifier,
        *,
        layers: Sequence[int] | None = None,
        generator: Generator | None = None,
        begin: str = "source",
    ) -> "QueryStream":
        """Build a stream sized from a classifier's channels. generator, begin: of its first weights.

        layers: which of the classifier's layers are attended to, by index; None: all of a stride of 4 or more. The map
        that the head pools is always the last stage, and takes the place of the deepest layer where that has as many
        channels; [] is the one-block variant.
        Errors: ValueError for a network without a pooled head, and for layers that do not exist.
        """
        neck = find_neck(classifier)
        names = _stages(classifier, layers, rebuilt(classifier, classifier.network, [neck.layer]))
        channels = rebuilt(classifier, classifier.network, names).channels
        return cls(
            channels,
            neck.width,
            layers=names,
            neck=neck.name,
            classifier=classifier.fingerprint(),
            generator=generator,
            begin=begin,
        )

    def forward(self, maps: Sequence[StageMap]) -> Float[Tensor, "batch width"]:
        """Return the last query, in place of the pooled vector."""
        return self.attend(maps).query

    def attend(self, maps: Sequence[StageMap]) -> Attended:
        """Return the last query with the attention of every stage; maps (B, d_l, h, w), shallow to deep."""
        given = tuple(one.shape[1] for one in maps)
        if given != self.channels:
            raise ValueError(f"the stream reads maps with channels {self.channels}, got {given}: hand over its stages")
        query = self.start.expand(len(maps[0]), -1)
        scores, attentions = [], []
        for own, projection in zip(maps, self.projections, strict=True):
            features = own.flatten(2).to(query.dtype)  # (B, d, positions)
            score = torch.einsum("bdp,bd->bp", features, query) / math.sqrt(features.shape[1])
            attention = score.softmax(1)
            query = projection(torch.einsum("bdp,bp->bd", features, attention))
            scores.append(score.view(len(own), 1, *own.shape[2:]))
            attentions.append(attention.view(len(own), 1, *own.shape[2:]))
        return Attended(query, tuple(attentions), tuple(scores))

    def fits(self, classifier: Classifier) -> None:
        """Raise ValueError for another backbone than the one that the stream was trained beside."""
        own = classifier.fingerprint()
        if self.classifier not in (None, own):
            raise ValueError(
                f"the stream was trained beside the network {self.classifier}, and this one is {own}: use the "
                "classifier that it was trained beside, or train a stream for this one (salmask pooling)"
            )

    def settings(self) -> JSON:
        """Return the JSON-able settings that `config.json` holds."""
        return {
            "format": "salmask pooling 1",
            "channels": self.channels,
            "width": self.width,
            "layers": self.layers,
            "neck": self.neck,
            "classifier": self.classifier,
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors; each file appears whole or not at all."""
        save_module(self, self.settings(), folder)


class Pooled(Classifier):
    """A classifier whose frozen head reads the last query of a stream; `average` is the same network as it was.

    Both share the network and its weights, so that switching between them loads nothing. Its layers are those that
    `classifier` reads, by the same indices: every explainer that reads layers goes through this head as through the
    other. Errors: ValueError for a stream that was trained beside another network.
    """

    def __init__(self, classifier: Classifier, stream: QueryStream) -> None:
        stream.fits(classifier)
        reader = rebuilt(classifier, classifier.network, stream.layers)
        if reader.channels != stream.channels:
            raise ValueError(
                f"the stream reads maps with channels {stream.channels}, layers {', '.join(stream.layers)} give "
                f"{reader.channels}: train a stream for this network (salmask pooling)"
            )
        neck = Neck(stream.neck, stream.width, stream.layers[-1])
        stream.to(classifier.device)
        network = Reheaded(reader, neck, stream)
        layers = [f"backbone.{name}" for name in classifier.layers]
        super().__init__(network, layers=layers, **options_of(classifier))
        self._average = (classifier,)  # in a tuple, so that the network is not registered a second time

    @property
    def average(self) -> Classifier:
        """The classifier whose head reads what the network pools itself."""
        return self._average[0]

    @property
    def stream(self) -> QueryStream:
        """The learned part."""
        pool = self.network.pool
        assert isinstance(pool, QueryStream)
        return pool

    def attend(self, images: Images) -> Attended:
        """Return logits, last query and all attentions of images, from one pass."""
        maps: list[Tensor] = []

        def keep_maps(module: nn.Module, inputs: tuple[Sequence[Tensor], ...]) -> None:
            maps.extend(inputs[0])

        hook = self.stream.register_forward_pre_hook(keep_maps)
        try:
            logits = self.logits(images)
        finally:
            hook.remove()
        made = self.stream.attend(maps)
        return Attended(made.query, made.attentions, made.scores, logits)


def _stages(classifier: Classifier, layers: Sequence[int] | None, pooled: Classifier) -> list[str]:
    """Return the names of the stages, the pooled map last."""
    count = len(classifier.layers)
    if layers is None:
        chosen = [k for k, stride in enumerate(classifier.strides) if stride >= LEAST_STRIDE] or list(range(count))
    else:
        if wrong := [k for k in layers if not -count <= k < count]:
            raise ValueError(f"layer {wrong[0]} does not exist: the classifier reads {count}, 0 to {count - 1}")
        chosen = sorted({k % count for k in layers})
    deepest = chosen[-1:]  # the same map, at most before an activation or a normalisation, is read once
    if deepest and classifier.channels[deepest[0]] == pooled.channels[0]:
        chosen = chosen[:-1]
    return [*(classifier.layers[k] for k in chosen), *pooled.layers]


_SIZE = Within(1, 1_000_000)
_CONFIG = {
    "format": Word("salmask pooling 1"),
    "channels": Several(_SIZE, 1, 64),
    "width": _SIZE,
    "layers": Several(str, 1, 64),
    "neck": str,
    "classifier": Maybe(str),
}


def read_stream(folder: str | Path) -> QueryStream:
    """Load a stream from a folder, in eval mode.

    Errors: FileNotFoundError for a folder without its two files, ValueError for files of something else.
    """
    config, weights = saved_in(folder, "stream")
    settings = read_config(config, _CONFIG, "pooling")
    return load_module(lambda: QueryStream(**settings), config, weights)
