"""The two tables of the report on images: error of classifiers, and bits per dimension of flows."""

import json
import math
from pathlib import Path
from typing import Annotated, Any, TypeVar

import matplotlib.pyplot as plt
import torch
import typer
from torch import Tensor

from pyro_iresnet import Exact, Roulette
from pyro_iresnet.activations import ELU, Sine
from pyro_iresnet.blocks import Block
from pyro_iresnet.images import ImageFlow, IResNetClassifier
from pyro_iresnet.logdet import ConvergedSeries, LogDet
from pyro_iresnet.training import FlowModule

from ..harness.image_page import body, keep_runs, read_runs
from ..harness.measure import COMMIT, machine
from ..harness.report import RESULTS, Write, publish
from ..models.images import Batches, ClassModule, PlainClassifier, shifted, train
from ..peers.image_flows import makers, size_of
from ..targets.images import Images, digits, load

T = TypeVar("T")

app = typer.Typer(help="Train an image flow or a classifier, and measure it.")

Data = Annotated[Path | None, typer.Option(help="An .npz file of images; by default the digits.")]
Minutes = Annotated[float, typer.Option(help="Of processor time over threads, all sittings.")]
Out = Annotated[Path, typer.Option(help="The folder of checkpoint, pictures and figures.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Seed = Annotated[int, typer.Option(help="Of torch.")]
Rate = Annotated[float, typer.Option(help="The learning rate.")]
Size = Annotated[int, typer.Option(help="Rows of a batch.")]
HeldOut = Annotated[int, typer.Option(help="Measure this many training images, not the test's.")]
Progress = Annotated[bool, typer.Option(help="Show the progress.")]

MARGIN = 1e-4
ROWS = 250
ACTIVATIONS = {kind.__name__: kind for kind in (Sine, ELU)}


@app.command()
def density(
    out: Out,
    data: Data = None,
    flow: Annotated[str, typer.Option(help=", ".join(makers()))] = "i-ResNet",
    minutes: Minutes = 60.0,
    device: Device = "cpu",
    seed: Seed = 2,
    rate: Rate = 1e-2,
    batch: Size = 64,
    held_out: HeldOut = 0,
    series: Annotated[int, typer.Option(help="Images of the deterministic estimate.")] = 500,
    exact: Annotated[int, typer.Option(help="Images of the exact determinant.")] = 100,
    progress: Progress = True,
) -> None:
    """Train a flow of images, and measure its bits per dimension on the test images."""
    images = _images(data, held_out)
    make = _known("flow", flow, makers())
    settings = {"task": "density", "flow": flow, "data": images.name, "seed": seed, "rate": rate}
    settings = begun(out, settings | {"batch": batch, "held_out": held_out, "device": device})
    torch.manual_seed(seed)
    made = make(images.shape, images.levels, MARGIN)
    # ActNorms start from many images.
    made.log_prob(images.x_train[torch.randint(len(images.x_train), (512,))])
    seconds, steps = train(
        FlowModule(made, learning_rate=rate),
        Batches(images.x_train, size=batch),
        minutes=minutes,
        folder=out,
        device=device,
        progress=progress,
    )
    made.eval().to(device)
    drawn = bits(made, images.x_test, Roulette(), device)
    found: dict[str, Any] = {"bits": _mean(drawn)}
    if any(isinstance(m, Block) for m in made.modules()):
        for name, estimator, count in (
            ("series", ConvergedSeries(), series),
            ("exact", Exact(), exact),
        ):
            if count:
                found[name] = _mean(bits(made, images.x_test[:count], estimator, device))
                found[f"{name}_drawn"] = _mean(drawn[:count])
    _write(out, settings | found, made, seconds, steps)
    torch.manual_seed(seed)
    with torch.no_grad():
        picture(made.sample(64), images.levels, out / "samples.png")
        ends = images.x_test[:8].to(device), images.x_test[8:16].to(device)
        picture(made.interpolate(*ends, 8).flatten(0, 1), images.levels, out / "between.png")


@app.command()
def classify(
    out: Out,
    data: Data = None,
    lipschitz: Annotated[float, typer.Option(help="0 for a network without bounds.")] = 0.9,
    minutes: Minutes = 40.0,
    device: Device = "cpu",
    seed: Seed = 2,
    rate: Rate = 3e-3,
    batch: Size = 128,
    held_out: HeldOut = 0,
    activation: Annotated[str, typer.Option(help=", ".join(ACTIVATIONS))] = "Sine",
    rebuilt: Annotated[int, typer.Option(help="Test images to reconstruct.")] = 500,
    progress: Progress = True,
) -> None:
    """Train a classifier, and measure its error and that of its reconstructions."""
    images = _images(data, held_out)
    kind_of_activation = _known("activation", activation, ACTIVATIONS)
    settings = {"task": "classify", "lipschitz": lipschitz, "activation": activation}
    settings |= {"data": images.name, "seed": seed, "rate": rate, "batch": batch}
    settings = begun(out, settings | {"held_out": held_out, "device": device})
    torch.manual_seed(seed)
    classes = int(images.y_train.max()) + 1
    plain = lipschitz == 0
    kind = PlainClassifier if plain else IResNetClassifier
    net = kind(
        images.shape,
        classes,
        lipschitz=0.9 if plain else lipschitz,
        activation=kind_of_activation,
    )
    mirrored = images.shape[0] == 3
    scale = _Scale(images)
    net(scale(images.x_train[torch.randint(len(images.x_train), (512,))]))

    def augmented(x: Tensor) -> Tensor:
        by = 4 if mirrored else images.shape[1] // 14
        return scale(shifted(x, by, mirrored=mirrored))

    seconds, steps = train(
        ClassModule(net, learning_rate=rate),
        Batches(images.x_train, images.y_train, size=batch, change=augmented),
        minutes=minutes,
        folder=out,
        device=device,
        progress=progress,
    )
    net.eval().to(device)
    with torch.no_grad():
        logits = [net(scale(x).to(device)).cpu() for x in images.x_test.split(ROWS)]
    wrong = torch.cat(logits).argmax(1) != images.y_test
    # Features and reconstruction in float64.
    net.double().cpu()
    x = scale(images.x_test[:rebuilt]).double()
    with torch.no_grad():
        found = [net.reconstruct(net.features(part)) for part in x.split(ROWS)]
    back = torch.cat([f.images for f in found])
    error = (back - x).flatten(1)
    record = {
        "error": 100 * wrong.double().mean().item(),
        "proven": [] if plain else _bounds(net),
        "largest_entry": error.abs().max().item(),
        "largest_norm": error.norm(dim=1).max().item(),
        "error_bound": torch.cat([f.error_bound for f in found]).max().item(),
    }
    _write(out, settings | record, net, seconds, steps)
    picture(_levels(scale, x[:32], back[:32]), images.levels, out / "rebuilt.png")


def _known(argument: str, name: str, known: dict[str, T]) -> T:
    if name not in known:
        raise typer.BadParameter(f"{argument} is one of {list(known)}; got {name!r}.")
    return known[name]


def _images(data: Path | None, held_out: int) -> Images:
    images = digits() if data is None else load(data)
    return images.held_out(held_out) if held_out else images


class _Scale:
    """Grey levels to numbers of mean 0 and deviation 1 over the training images."""

    def __init__(self, images: Images) -> None:
        x = images.x_train[:10_000].float()
        self.mean, self.std = x.mean().item(), x.std().item()

    def __call__(self, x: Tensor) -> Tensor:
        return (x.to(torch.get_default_dtype()) - self.mean) / self.std


def _bounds(net: IResNetClassifier) -> list[float]:
    return [m.lipschitz_bound().item() for m in net.modules() if isinstance(m, Block)]


def bits(flow: ImageFlow, pixels: Tensor, estimator: LogDet, device: str) -> Tensor:
    """Return the bits per dimension of each image, by an estimator."""
    blocks = [m for m in flow.modules() if isinstance(m, Block)]
    before = [b.logdet for b in blocks]
    for block in blocks:
        block.logdet = estimator
    rows = 10 if isinstance(estimator, Exact) else ROWS
    torch.manual_seed(0)
    with torch.no_grad():
        found = torch.cat([flow.bits_per_dim(x.to(device)) for x in pixels.split(rows)])
    for block, logdet in zip(blocks, before, strict=True):
        block.logdet = logdet
    return found.cpu()


def _mean(values: Tensor) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def _levels(scale: _Scale, *parts: Tensor) -> Tensor:
    return torch.cat(parts) * scale.std + scale.mean


def picture(images: Tensor, levels: int, path: Path) -> None:
    """Draw images in rows of 8, from black for 0 to white for the last level."""
    rows = math.ceil(len(images) / 8)
    _, axes = plt.subplots(rows, 8, figsize=(8, rows), squeeze=False)
    top = levels - 1
    for axis, image in zip(axes.flat, images.cpu(), strict=False):
        pixels = image.nan_to_num(0).clamp(0, top).permute(1, 2, 0) / top
        grey = pixels.shape[-1] == 1
        axis.imshow(pixels.squeeze(-1) if grey else pixels, cmap="gray", vmin=0, vmax=1)
    for axis in axes.flat:
        axis.axis("off")
    plt.subplots_adjust(0, 0, 1, 1, 0.05, 0.05)
    # Colours take three times the bytes of grey levels.
    plt.savefig(path, dpi=80 if images.shape[1] == 1 else 50)
    plt.close()


def begun(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings and the commit of a folder's first sitting, and keep them there.

    A checkpoint goes on with the settings of its start, so other settings are refused.
    """
    settings = settings | {"threads": torch.get_num_threads()}
    file = out / "settings.json"
    if not file.exists():
        if (out / "last.ckpt").exists():
            raise typer.BadParameter(
                f"{out} has a checkpoint without settings.json; take a new one."
            )
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings | {"commit": COMMIT}) + "\n")
    kept = json.loads(file.read_text())
    other = [
        f"{key}={kept.get(key)}, now {new}" for key, new in settings.items() if kept.get(key) != new
    ]
    if other:
        raise typer.BadParameter(f"{out} has a run of {'; '.join(other)}. Take another folder.")
    return kept


def _write(
    out: Path, found: dict[str, Any], net: torch.nn.Module, seconds: float, steps: int
) -> None:
    record = {
        **found,
        "parameters": size_of(net),
        "minutes": round(seconds / 60, 2),
        "steps": steps,
        "machine": machine(),
    }
    (out / "figures.json").write_text(json.dumps(record) + "\n")
    print(json.dumps(record))


@app.command()
def page(
    folders: Annotated[list[Path] | None, typer.Argument(help="Folders of new runs.")] = None,
    log: Annotated[Path, typer.Option(help="The figures of all runs.")] = RESULTS / "images.jsonl",
    write: Write = False,
) -> None:
    """Make the page of all runs: a table for each data set, task, time and hardware."""
    runs = read_runs(log, folders or [])
    trials = [str(run.folder) for run in runs if run.figures["held_out"]]
    if trials:
        raise typer.BadParameter(
            f"The folders are of runs that measured the test images; {', '.join(trials)} held out "
            "training images to choose an option."
        )
    if write:
        keep_runs(log, runs)
    origin = f"{COMMIT}; each table names the machine of its runs"
    publish("images", "Images", body(runs), "page", fast=False, write=write, origin=origin)


if __name__ == "__main__":
    app()
