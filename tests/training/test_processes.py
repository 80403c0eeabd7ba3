"""Two processes on one machine, through gloo: what one process would have done, and what happens when one is lost.

Run as a script, this file is the command of the two processes; as a test, it starts them and compares.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from PIL import Image
from test_shards import jpeg, write_tar

from conftest import SmallNet
from salmask import Classifier, Masker
from salmask.cli.main import main as cli
from salmask.data import training_batches
from salmask.data.streams import DataStream, Share
from salmask.data.tensors import TensorPictures
from salmask.evaluation.evaluate import Rules, evaluate_explainers
from salmask.evaluation.masks import INDEX, Throughput, explain_data
from salmask.explain.learned import Learned
from salmask.files import read_json
from salmask.masking import Noise
from salmask.specs import load_explainer, load_metrics, load_recipe
from salmask.training.joint import joint_normalisation
from salmask.training.processes import average, launched, share_of
from salmask.training.run import Loaded, Sight
from salmask.training.settings import Settings
from salmask.training.train import train_masker

STEPS, BATCH, PICTURES = 6, 4, 14
MOVING = ("reader", "ca")
SETTINGS = Settings(batch_size=BATCH, epochs=STEPS * BATCH / PICTURES, save_every=3, log_every=2, precision="32-true")


class Still(Masker):
    """A masker whose normalisation does not move, so that a batch may be split."""

    def train(self, mode: bool = True) -> "Still":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(SmallNet(), mean=(0.5,) * 3, std=(0.2,) * 3, layers=None, image_size=16)


def pictures() -> TensorPictures:
    images = torch.rand(PICTURES, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return TensorPictures(images, [n % 4 for n in range(PICTURES)], classes=list("abcd"))


def train(
    out: Path, recipe: str, fabric: object = None, *, steps: int = STEPS, kind: type[Masker] = Still, **options: object
) -> Masker:
    """Train a few steps; of fewer than all, leave the checkpoint of a run that was ended."""
    known = classifier()
    generator = torch.Generator().manual_seed(0)
    share = Share() if fabric is None else share_of(fabric)
    data = pictures()

    def batches(start: int) -> object:
        stream = training_batches(data, batch_size=BATCH, seed=0, start=start, share=share)
        for number, batch in enumerate(stream, start):
            if number == steps:
                raise InterruptedError
            yield batch

    masker = kind.for_classifier(known, generator=generator)
    try:
        train_masker(
            masker,
            known,
            batches,
            len(data),
            recipe=load_recipe(recipe),
            settings=SETTINGS,
            out=out,
            fabric=fabric,
            **options,
        )
    except InterruptedError:
        assert steps < STEPS
    return masker


def evaluate(out: Path, masker: Masker, fabric: object = None) -> None:
    known = classifier()
    loaded = Loaded(known, "", Sight(16))
    evaluate_explainers(
        {"masker": Learned(masker), "rise": load_explainer("rise:masks=4", loaded=loaded)[1], "odd": odd},
        load_metrics(["average_drop", "mask_mean", "insertion"]),
        DataStream(pictures(), 3),
        known,
        rules=Rules(target="label", normalize="range"),
        out=out,
        pictures=2,
        fabric=fabric,
    )


def explain(out: Path, fabric: Fabric, *, form: str = "array", batches: int = 99) -> Throughput:
    """Write masks of all pictures; of fewer batches than there are, leave what a run that was ended leaves."""

    def until(items: Iterable[object]) -> Iterator[object]:
        for number, item in enumerate(items):
            if number == batches:
                raise InterruptedError
            yield item

    known = classifier()
    masker = Masker.for_classifier(known, generator=torch.Generator().manual_seed(0)).eval()
    options = {"how": {"class": None, "normalize": None}, "about": {}, "batch_size": 3, "progress": until}
    return explain_data(Learned(masker), known, pictures(), out=out, fabric=fabric, form=form, **options)


def odd(known: Classifier, images: Tensor, targets: Tensor) -> object:
    """Fail on one picture, of the batch of the second process."""
    explained = load_explainer("center", loaded=Loaded(known, "", Sight(16)))[1](known, images, targets)
    if any(torch.equal(image, pictures()[4].image / 255) for image in images):
        raise RuntimeError("a picture that it does not like")
    return explained


JUDGED = torch.linspace(-1, 2, 8, dtype=torch.float64).view(1, 8, 1, 1).expand(1, 8, 5, 4)


def joint_images() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return 1e3 + torch.randn(6, 4, 5, 4, dtype=torch.float64, generator=generator)


def nets() -> tuple[nn.Module, nn.Module]:
    """Return torch's layer, and timm's, which calls the function itself; one does not remember, all are cubed after."""
    torch.manual_seed(3)
    plain = nn.Sequential(nn.BatchNorm2d(4, momentum=None), Cubed(), nn.BatchNorm2d(4, affine=False, eps=1e-3), Cubed())
    timms = nn.Sequential(BatchNormAct2d(4, act_layer=nn.Tanh), nn.BatchNorm2d(4, track_running_stats=False), Cubed())
    for parameter in [*plain.parameters(), *timms.parameters()]:
        nn.init.normal_(parameter)
    return plain.double(), timms.double()


class Cubed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**3


def layers(fabric: Fabric) -> dict[str, object]:
    """Return what a process sees of its share of a batch: answers, gradients, and what the layers remember."""
    plain, timms = nets()
    images = joint_images()[fabric.global_rank :: fabric.world_size].requires_grad_()
    with joint_normalisation(fabric):
        answers = torch.cat([plain(images), timms(images)], 1)
        (answers * JUDGED).mean(0).sum().backward()
    gradients = [parameter.grad for parameter in [*plain.parameters(), *timms.parameters()]]
    average(fabric, gradients)
    state = torch.nn.ModuleList([plain, timms]).state_dict()
    return {"answers": answers.detach(), "gradients": images.grad, "state": state, "weights": gradients}


def main(out: Path) -> None:
    fabric = launched(2)
    train(out / "fix", "fix", fabric)
    for recipe in MOVING:
        train(out / recipe, recipe, fabric, kind=Masker)
    if fabric.is_global_zero:
        torch.save(layers(fabric), out / "layers.pt")
    else:
        layers(fabric)
    noise = Noise(torch.Generator().manual_seed(0))
    train(out / "noise", "fix", fabric, infill=noise)
    drawn = [round(float(torch.rand((), generator=noise.generator)), 6)]
    numbers = fabric.all_gather(torch.tensor(drawn)).flatten().tolist()
    masker = train(out / "gone on", "fix", fabric, resume=True)
    evaluate(out / "measured", masker, fabric)
    done = [explain(out / f"masks {form}", fabric, form=form) for form in ("png", "array")]
    explained = [[one.pictures, one.before] for one in done]
    own = [float(value.double().sum()) for value in masker.state_dict().values()]
    together = fabric.all_gather(torch.tensor(own, dtype=torch.float64)).tolist()
    if fabric.is_global_zero:
        facts = {"noise": numbers, "weights": together, "explained": explained}
        (out / "said.json").write_text(json.dumps(facts))


def weights(folder: Path, part: str = "masker") -> dict[str, Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=False)[part]


def together(out: Path, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what two processes did; one has trained the first half of "gone on"."""
    out = tmp_path_factory.mktemp("both")
    train(out / "gone on", "fix", steps=4)
    with pytest.raises(InterruptedError):
        explain(out / "masks array", alone(), batches=2)
    done = together(out, __file__, str(out))
    assert done.returncode == 0, done.stderr
    return out


def test_a_masker_of_two_processes_is_that_of_one(both: Path, tmp_path: Path) -> None:
    train(tmp_path, "fix")
    for folder in (both / "fix", both / "gone on"):  # the latter: half by one process, half by two
        for name, value in weights(tmp_path).items():
            assert torch.allclose(weights(folder)[name], value, atol=1e-5), name
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        expected = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        for line, one in zip(lines, expected, strict=True):
            assert line == pytest.approx(one, abs=1e-4)  # means over both shares


def test_a_lost_process_ends_the_other_with_one_line_and_one_process_goes_on(tmp_path: Path) -> None:
    for number, image in enumerate(pictures().images):
        folder = tmp_path / "data" / "train" / "abcd"[number % 4]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    (tmp_path / "mortal.py").write_text(MORTAL)
    command = ["train", "--data", str(tmp_path / "data"), "--classifier", f"{tmp_path / 'mortal.py'}:build"]
    command += ["--mean", "0", "0", "0", "--std", "1", "1", "1", "--size", "16", "--recipe", "fix", "--batch-size", "4"]
    command += ["--epochs", "3", "--save-every", "2", "--log-every", "1", "--out", str(tmp_path / "run")]
    ended = together(tmp_path, "-m", "salmask", *command, "--devices", "2", environment={"DIES_AFTER": "7"})
    assert ended.returncode == 1
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("salmask: process 0 of 2 has lost another one"), ended.stderr
    step = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=False)["step"]
    reached = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert step >= 2 and reached[-1] - step < 2
    assert cli([*command, "--resume"]) == 0
    after = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert after == list(range(1, 11)) and (tmp_path / "run" / "run.json").is_file()


MORTAL = f"""
import os, signal, sys, torch
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from conftest import SmallNet

class Mortal(SmallNet):
    steps = 0
    def forward(self, x):
        self.steps += self.steps is not None and len(x) == 4  # the kept and the removed picture of two
        if os.environ.get("LOCAL_RANK") == "1" and self.steps == int(os.environ.get("DIES_AFTER", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)

def build():
    torch.manual_seed(0)
    return Mortal()
"""


def test_more_processes_than_shards_is_said_once_before_any_is_started(tmp_path: Path, capsys, monkeypatch) -> None:
    write_tar(
        tmp_path / "train.tar",
        [(f"{n}.{kind}", one) for n in range(4) for kind, one in (("cls", b"1"), ("jpg", jpeg(n)))],
    )
    (tmp_path / "mortal.py").write_text(MORTAL)
    monkeypatch.setattr("salmask.training.processes.launched", None)
    command = ["train", "--data", f"wds:{tmp_path}/train.tar", "--classifier", f"{tmp_path / 'mortal.py'}:build"]
    command += ["--mean", "0", "0", "0", "--std", "1", "1", "1", "--size", "16", "--out", str(tmp_path / "run")]
    assert cli([*command, "--batch-size", "4", "--devices", "2"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "salmask: 2 processes for 1 shards: write more shards, or start fewer processes"
    ]


@pytest.mark.parametrize("recipe", ["reader", "ca"])
def test_opponents_of_two_processes_learn_what_that_of_one_does(both: Path, tmp_path: Path, recipe: str) -> None:
    """Their batch statistics are those of the joint batch: with each process's own they are .01 to .3 apart."""
    train(tmp_path, recipe, kind=Masker)
    start, state = classifier().network.state_dict(), weights(both / recipe, "opponent")
    moved = {name for name, value in state.items() if not torch.equal(value, start[name])}
    assert {"stem.1.running_mean", "stem.0.weight", "head.weight"} <= moved
    for name, value in weights(tmp_path, "opponent").items():
        assert torch.allclose(state[name].double(), value.double(), rtol=1e-4, atol=1e-5), name
    statistics = {name: value for name, value in weights(tmp_path).items() if "running" in name}
    assert len(statistics) > 2
    for name, value in statistics.items():
        assert torch.allclose(weights(both / recipe)[name], value, rtol=1e-3, atol=1e-4), name


def test_layers_normalise_over_the_joint_batch_and_send_gradients_back(both: Path) -> None:
    """Against torch's own batch normalisation of the whole batch, in double precision; the mean is far from 0."""
    together = torch.load(both / "layers.pt")
    images = joint_images().requires_grad_()
    plain, timms = nets()
    answers = torch.cat([plain(images), timms(images)], 1)
    (answers * JUDGED).mean(0).sum().backward()
    assert torch.allclose(together["answers"], answers[0::2], atol=1e-10)
    assert torch.allclose(together["gradients"], images.grad[0::2] * 2, atol=1e-10)  # each process means over its half
    for name, value in together["state"].items():
        assert torch.allclose(value, torch.nn.ModuleList([plain, timms]).state_dict()[name], atol=1e-10), name
    for mine, theirs in zip(together["weights"], [*plain.parameters(), *timms.parameters()], strict=True):
        assert torch.allclose(mine, theirs.grad, atol=1e-10)


def test_processes_draw_noise_of_their_own_and_hold_one_masker(both: Path) -> None:
    said = read_json(both / "said.json", {"noise": [float], "weights": [[float]]}, remedy="")
    assert len(set(said["noise"])) == 2
    assert said["weights"][0] == said["weights"][1]


def test_rows_of_two_processes_are_those_of_one(both: Path, tmp_path: Path) -> None:
    masker = Still.for_classifier(classifier(), generator=torch.Generator().manual_seed(0))
    masker.load_state_dict(weights(both / "gone on"))
    with pytest.warns(UserWarning, match="odd failed on 1 image, first on 000004"):
        evaluate(tmp_path, masker)

    def rows(folder: Path) -> list[str]:
        lines = (folder / "rows.jsonl").read_text().splitlines()
        return [line for line in lines if '"metric": "seconds"' not in line]

    assert rows(both / "measured") == rows(tmp_path) and len(rows(tmp_path)) > 100
    failures = [(folder / "failures.jsonl").read_text() for folder in (both / "measured", tmp_path)]
    assert failures[0].replace("ExplainerFailed", "") == failures[1].replace("ExplainerFailed", "")
    assert failures[0].count("\n") == 1
    drawn = [sorted(path.name for path in (f / "pictures").rglob("*.png")) for f in (both / "measured", tmp_path)]
    assert drawn[0] == drawn[1] and drawn[0]


def alone() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def test_masks_of_two_processes_are_those_of_one(both: Path, tmp_path: Path) -> None:
    """Of the array, one process has written the first two batches before it was ended."""
    done = {form: explain(tmp_path / form, alone(), form=form) for form in ("png", "array")}
    assert {one.pictures for one in done.values()} == {PICTURES}
    for form in done:
        folder = both / f"masks {form}"
        assert (folder / INDEX).read_text() == (tmp_path / form / INDEX).read_text()
        files = [path.relative_to(tmp_path / form) for path in sorted((tmp_path / form).rglob("*.[np][np][yg]"))]
        assert len(files) == (PICTURES if form == "png" else 1)
        for file in files:
            assert (folder / file).read_bytes() == (tmp_path / form / file).read_bytes(), file
        assert sorted(path.name for path in folder.glob("index*")) == [INDEX]
    said = read_json(both / "said.json", {"explained": [[int]]}, remedy="")
    assert said["explained"] == [[PICTURES, 0], [PICTURES - 6, 6]]  # pictures of both, and those that were there


def test_a_lost_process_ends_explaining_with_one_line_and_another_number_goes_on(tmp_path: Path) -> None:
    for number, image in enumerate(pictures().images):
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "data" / f"{number:02d}.png")
    (tmp_path / "mortal.py").write_text(MORTAL)
    command = ["explain", "--data", str(tmp_path / "data"), "--classifier", f"{tmp_path / 'mortal.py'}:build"]
    command += ["--mean", "0", "0", "0", "--std", "1", "1", "1", "--size", "16", "--explainer", "gradcam"]
    command += ["--batch-size", "4", "--form", "array", "--out", str(tmp_path / "masks")]
    ended = together(tmp_path, "-m", "salmask", *command, "--devices", "2", environment={"DIES_AFTER": "1"})
    assert ended.returncode == 1
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("salmask: process 0 of 2 has lost another one"), ended.stderr
    before = sum(len(path.read_text().splitlines()) for path in (tmp_path / "masks").glob("index*"))
    assert before >= 4
    assert cli(command) == 0
    rows = [json.loads(line)["row"] for line in (tmp_path / "masks" / INDEX).read_text().splitlines()]
    assert rows == list(range(PICTURES))
    assert (np.load(tmp_path / "masks" / "masks.npy").reshape(PICTURES, -1).max(1) > 0).all()


@pytest.mark.parametrize(
    "told",
    [{"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}, {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_NAME": "train"}],
)
def test_processes_that_know_nothing_of_each_other_do_not_start(told: dict[str, str], monkeypatch) -> None:
    """Each of two that were started for one device would write every row."""
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="2 processes were started, and 1 asked for"):
        launched(1)
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # of a shell, processes are started as anywhere
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launched(1).world_size == 1


def test_a_process_that_waits_for_nobody_ends_too_where_another_one_is_lost(tmp_path: Path) -> None:
    script = (
        "import time\nfrom salmask.training import processes\nprocesses._GRACE = processes._LOOK = 0.1\n"
        "started = time.monotonic()\n"
        "processes._watch(lambda: 'process 1' if time.monotonic() > started + 0.3 else None, [])\ntime.sleep(60)\n"
    )
    done = together(tmp_path, "-c", script)
    assert done.returncode == 1
    assert done.stderr.startswith("salmask: a process has lost process 1; what was saved is whole")
    assert done.stderr.count("\n") == 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
