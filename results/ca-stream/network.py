"""The ImageNet network of the extra `imagenet`, its head cut down to the 20 classes of the pictures.

So that neither head may gain by learning which 20 of 1,000 classes occur: the rows of the last layer are those of
the 20 classes, and nothing else of the network is changed.
"""

from torch import nn

from salmask import Classifier
from salmask.classifier.imagenet import synsets

CLASSES = (
    "n01440764",
    "n02086240",
    "n02087394",
    "n02088364",
    "n02089973",
    "n02093754",
    "n02096294",
    "n02099601",
    "n02102040",
    "n02105641",
    "n02111889",
    "n02115641",
    "n02979186",
    "n03000684",
    "n03028079",
    "n03394916",
    "n03417042",
    "n03425413",
    "n03445777",
    "n03888257",
)


def network() -> tuple[nn.Module, dict[str, object]]:
    """Return the network and how it wants its pictures."""
    whole = Classifier.from_timm("tf_efficientnet_lite0", pretrained=True).network
    rows = [synsets().index(name) for name in CLASSES]
    head = nn.Linear(whole.classifier.in_features, len(rows))
    head.weight.data, head.bias.data = whole.classifier.weight.data[rows], whole.classifier.bias.data[rows]
    whole.classifier = head
    sight = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "image_size": 224, "interpolation": "bicubic", "crop_pct": 0.875}
    return whole, {**sight, "classes": CLASSES}
