"""`salmask doctor`: what is here, and what an extra would add."""

import importlib.metadata
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from salmask import __version__
from salmask.cli.console import Command, say
from salmask.files import JSON, Facts

__all__ = ["EXTRAS", "DoctorCommand"]

EXTRAS: Mapping[str, str] = MappingProxyType(
    {
        "imagenet": "weights of a classifier of photographs, for `salmask explain photo.jpg` and `salmask serve`",
        "serve": "the page in the browser, `salmask serve`",
        "captum": "gradient explainers: integrated_gradients, smoothgrad, guided_backprop ...",
        "audio": "classifiers of sounds: WAV, FLAC, OGG and MP3 files",
        "datasets": "data sets of Hugging Face, hf-dataset:PATH",
        "heic": "HEIC pictures",
        "dicom": "DICOM pictures",
        "export": "ONNX graphs, `salmask export`",
        "cluster": "studies on a Slurm cluster, `salmask study --slurm`",
        "docs": "the documentation as a site",
        "dev": "tests and checks",
    }
)
"""What each extra adds."""
_PACKAGES = ("torch", "torchvision", "timm", "lightning", "numpy", "opencv-python-headless", "tyro")


@dataclass(frozen=True, kw_only=True)
class DoctorCommand(Command):
    """Print versions, devices, the precision that `auto` stands for, and what each extra would add."""

    def __call__(self) -> Facts:
        """Run the command."""
        versions = {"salmask": __version__, "python": platform.python_version()}
        versions |= {name: _version(name) or "missing" for name in _PACKAGES}
        facts: JSON = {"system": platform.platform(), "versions": versions, **_machine(), "extras": _extras()}
        for line in _lines(facts):
            say(line)
        return facts


def _machine() -> JSON:
    import torch

    from salmask.training.precision import automatic

    named = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
    devices = [f"cuda:{k}, {one.name}, {one.total_memory / 2**30:.0f} GiB" for k, one in enumerate(named)]
    if torch.backends.mps.is_available():
        devices.append("mps")
    device = torch.device("cuda" if named else "mps" if devices else "cpu")
    precision, reason = automatic(device)
    return {
        "devices": [*devices, f"cpu, {platform.processor() or platform.machine()}"],
        "threads": torch.get_num_threads(),
        "precision": {"auto": precision, "because": reason},
    }


def _extras() -> dict[str, JSON]:
    """Return, of each extra, the packages that are missing, what it adds and how it is installed."""
    try:
        needed = importlib.metadata.requires("salmask") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, JSON] = {}
    for name, adds in EXTRAS.items():
        wanted = [line for line in needed if re.search(rf"extra\s*==\s*['\"]{name}['\"]", line)]
        packages = {package: _version(package) for line in wanted if (package := re.split(r"[^\w.-]", line)[0])}
        found[name] = {
            "installed": None not in packages.values(),
            "packages": packages,
            "adds": adds,
            "install": f"pip install 'salmask[{name}]'",
        }
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _lines(facts: Facts) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        versions,
        f"system: {facts['system']}",
        *(f"device: {device}" for device in facts["devices"]),
        f"threads: {facts['threads']} (OMP_NUM_THREADS sets them)",
        f"precision auto: {facts['precision']['auto']}, {facts['precision']['because']}",
        "extras:" if facts["extras"] else "extras: unknown, salmask is not installed as a package (pip install .)",
    ]
    for name, extra in facts["extras"].items():
        absent = [package for package, version in extra["packages"].items() if version is None]
        state = f"missing {', '.join(absent)}: {extra['install']}" if absent else "installed"
        lines.append(f"  {name:<9} {extra['adds']}: {state}")
    return lines
