"""What an explanation costs before it starts: slow parts stay out, and work when they are asked for."""

import subprocess
import sys

QUICK = """
import sys
from salmask.cli.quick import import_networks
import_networks()
import salmask.cli.explain_files, salmask.specs
slow = ("torch._dynamo", "matplotlib", "scipy.stats", "lightning", "transformers", "skimage", "pandas", "gradio")
print(*[name for name in slow if name in sys.modules])
import torch, torchvision
boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [3, 3, 4, 4]])
print(len(torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)))
from torchvision.ops import roi_align
pooled = roi_align(torch.arange(16.0).view(1, 1, 4, 4), [boxes[:1]], output_size=1)
print(float(pooled))
from torchvision import tv_tensors
print(type(tv_tensors.wrap(torch.zeros(3, 2, 2), like=tv_tensors.Image(torch.zeros(3, 2, 2)))).__name__)
import torch._dynamo
print(torch.compiler.disable.__module__, type(tv_tensors.wrap(boxes, like=tv_tensors.Mask(boxes))).__name__)
"""


def test_explaining_imports_no_more_than_it_needs_and_the_rest_still_works() -> None:
    done = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True, check=True)
    slow, *rest = done.stdout.splitlines()
    assert slow == ""
    assert rest[0] == "2" and 0 < float(rest[1]) < 15
    assert rest[2:] == ["Image", "torch.compiler Mask"]
