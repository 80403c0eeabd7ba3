"""Networks that save memory by gradient checkpoints are read as the same networks without."""

import pytest
import timm
import torch
from test_matrix import MEAN, SIZE, STD, hugging_face, pictures
from torch import Tensor, nn
from torch.utils import checkpoint
from torch.utils.checkpoint import checkpoint as checkpointed

from conftest import SmallNet
from salmask.classifier import Classifier
from salmask.explain import EXPLAINERS


class Saving(SmallNet):
    """A network whose two deeper stages are checkpointed."""

    reentrant: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.reentrant is None:
            x = self._deeper(x)
        else:
            x = checkpointed(self._deeper, x, use_reentrant=self.reentrant)
        return self.head(x.mean((2, 3)))

    def _deeper(self, x: Tensor) -> Tensor:
        return self.relu(self.deep(self.relu(self.middle(x))))


def around(network: nn.Module) -> Classifier:
    return Classifier(network, mean=MEAN, std=STD, layers=None, image_size=SIZE)


def seeded(make: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


METHODS = {"gradcam": {}, "layercam": {}, "gradient": {}, "meaningful": {"iterations": 2}}


@pytest.mark.parametrize("reentrant", [True, False])
def test_maps_are_those_without_checkpoints(reentrant) -> None:
    plain, saving = seeded(Saving), seeded(Saving)
    saving.reentrant = reentrant
    own = vars(checkpoint).copy()
    for name, settings in METHODS.items():
        maps = [
            EXPLAINERS[name](**settings)(around(network), pictures(), torch.tensor([0, 2])).masks
            for network in (plain, saving)
        ]
        torch.testing.assert_close(*maps)
    assert vars(checkpoint) == own  # checkpoints are back, also those of other networks
    assert around(saving).layers == around(plain).layers


def test_libraries_ways_to_switch_checkpoints_on_are_met() -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=3, img_size=SIZE).eval()
    maps = [EXPLAINERS["gradcam"]()(around(network), pictures(), torch.tensor([0, 2])).masks]
    network.set_grad_checkpointing(True)
    maps.append(EXPLAINERS["gradcam"]()(around(network), pictures(), torch.tensor([0, 2])).masks)
    torch.testing.assert_close(*maps)
    assert network.grad_checkpointing
    torch.manual_seed(0)
    network = hugging_face("vit").train()
    maps = [EXPLAINERS["gradcam"]()(around(network), pictures(), torch.tensor([0, 2])).masks]
    network.gradient_checkpointing_enable()
    maps.append(EXPLAINERS["gradcam"]()(around(network), pictures(), torch.tensor([0, 2])).masks)
    torch.testing.assert_close(*maps)


def test_checkpoints_stay_in_force_after_a_failure() -> None:
    own = vars(checkpoint).copy()
    network = seeded(Saving)
    network.reentrant = False
    classifier = around(network)
    with pytest.raises(ValueError, match="targets run from"):
        EXPLAINERS["gradcam"]()(classifier, pictures(), torch.tensor([0, 9]))
    assert vars(checkpoint) == own
