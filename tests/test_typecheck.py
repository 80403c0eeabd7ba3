"""The check of annotations is on while tests run."""

import pytest
import torch
from jaxtyping import TypeCheckError

from salmask.masking import MeanColour
from salmask.terms import variation


def test_a_wrong_shape_is_refused_by_its_annotation() -> None:
    with pytest.raises(TypeCheckError, match="batch masks height width"):
        variation(torch.rand(2, 4, 4))
    with pytest.raises(TypeCheckError, match="batch channels height width"):
        MeanColour()(torch.rand(3, 4, 4), torch.rand(3, 1, 4, 4))
