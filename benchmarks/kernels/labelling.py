"""`wsss-rt label` with maps that stay on the GPU, beside the published pipeline on the same card; one call.

    python benchmarks/kernels/labelling.py --images VOC/JPEGImages --tags VOC/labels.csv \\
        [--count 256] [--peer-count 8] [--precision bfloat16] [--minutes 5] [--name labelling-gpu]

MCTformer-V2 on DeiT-S, 20 classes, K = 3, seeded weights; native size, scale 1 and mirror image, tags given.
The peer is ``benchmarks/pipeline/peer.py``'s model in eager float32 on the card, an image at a time, its maps
upsampled and merged there, then pydensecrf2 on the host. The labeller runs an AOTInductor package, and is
measured with the CRF and without, with kernels and without, and with maps that come to the host. Turns
alternate, so that a neighbour's load falls on all; the first turn of each side does not count. The result is
written after every turn, and no turn begins after ``--minutes``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from PIL import Image

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]
from commands import wsss_rt  # noqa: E402
from record import write_result  # noqa: E402

from benchmarks.pipeline.peer import EPSILON, MEAN, STD, Peer, crf_mask  # noqa: E402
from wsss_rt.kernels import use_kernels  # noqa: E402
from wsss_rt.label_plan import Job  # noqa: E402
from wsss_rt.label_run import label_folder  # noqa: E402
from wsss_rt.options import LabelOptions  # noqa: E402
from wsss_rt.refine.params import crf_params  # noqa: E402
from wsss_rt.run_record import read_run  # noqa: E402

TURNS = 3
# what the issue of this benchmark asks for
AIM = 100.0
Photo = tuple[Path, list[int]]


@dataclass(frozen=True)
class Side:
    """One way to label.

    Attributes:
        options: how.
        kernels: mode of ``use_kernels`` around it.
    """

    options: LabelOptions
    kernels: str = "triton"


def sides(base: LabelOptions) -> dict[str, Side]:
    """All ways that are compared; ``base`` has the CRF."""
    plain = replace(base, refine="none")
    return {
        "device, crf": Side(replace(base, localization="torch")),
        "device, crf, no kernels": Side(replace(base, localization="torch"), "reference"),
        "host, crf": Side(replace(base, localization="numpy")),
        "device": Side(replace(plain, localization="torch")),
        "device, no kernels": Side(replace(plain, localization="torch"), "reference"),
        "host": Side(replace(plain, localization="numpy")),
    }


@torch.inference_mode()
def maps_on_card(peer: Peer, image: NDArray[np.uint8], present: Sequence[int]) -> NDArray[np.float32]:
    """What ``peer.class_maps`` computes, in the same order, where the peer's weights are.

    Args:
        peer: the model.
        image: (H, W, 3) uint8 RGB.
        present: 0-based classes that the tags name.

    Returns:
        (len(present), H, W) in 0..1.
    """
    height, width = image.shape[:2]
    device = peer.weights["cls_token"].device
    pixels = torch.from_numpy(image.copy()).to(device).float().div(255).permute(2, 0, 1)
    mean, deviation = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
    normal = ((pixels - mean) / deviation)[None]
    tags = torch.zeros(peer.classes, 1, 1, device=device)
    tags[list(present)] = 1
    total = torch.zeros(peer.classes, height, width, device=device)
    for index, view in enumerate((normal, normal.flip(3))):
        grown = F.interpolate(peer(view)[None], (height, width), mode="bilinear", align_corners=False)
        maps = grown[0] * tags
        total += maps.flip(2) if index else maps
    kept = total[list(present)]
    low, high = kept.amin((1, 2), keepdim=True), kept.amax((1, 2), keepdim=True)
    return np.asarray(((kept - low) / (high - low + EPSILON)).cpu().numpy(), np.float32)


def label_by_peer(peer: Peer, photo: Photo, out: Path, background: float, *, crf: bool) -> None:
    """One photograph to its mask, from file to file."""
    path, present = photo
    with Image.open(path) as opened:
        image = np.asarray(opened.convert("RGB"))
    maps = maps_on_card(peer, image, present)
    if crf:
        mask = crf_mask(image, maps, present, background)
    else:
        stacked = np.concatenate([np.full((1, *maps.shape[1:]), background, np.float32), maps])
        mask = np.array([0, *(index + 1 for index in present)], np.uint8)[stacked.argmax(axis=0)]
    Image.fromarray(mask).save(out)


def measure(
    photos: Sequence[Photo],
    ways: Mapping[str, Side],
    label: Callable[[Side, Sequence[Photo], Path], dict[str, Any]],
    peers: Mapping[str, Callable[[Photo, Path], None]],
    work: Path,
    *,
    peer_count: int,
    turns: int = TURNS,
    until: float = math.inf,
) -> Iterator[dict[str, Any]]:
    """All sides in turns.

    Args:
        photos: what to label.
        ways: by name.
        label: labels photographs into a folder, and gives at least ``seconds``.
        peers: by name, each one photograph into a file; every way is held against the one whose name ends as
            its own: with the CRF or without.
        work: folder for masks.
        peer_count: photographs of a peer's turn, the first ones.
        turns: that count, at most.
        until: no turn but the first that counts begins after this moment of ``time.monotonic``.

    Yields:
        After each turn that counts: per side its images per second, and per way the ratio to its peer, the
        share of equal pixels and what run.json says of the turn's stages.
    """
    seconds: dict[str, float] = dict.fromkeys((*ways, *peers), 0.0)
    told: dict[str, dict[str, Any]] = {}
    few = list(photos)[:peer_count]
    for turn in range(turns + 1):
        if turn > 1 and time.monotonic() > until:
            return
        for name, way in ways.items():
            told[name] = label(way, photos, work / _slug(name) / str(turn))
            seconds[name] += told[name]["seconds"] if turn else 0.0
        for name, one in peers.items():
            folder = work / _slug(name)
            folder.mkdir(parents=True, exist_ok=True)
            began = time.perf_counter()
            for photo in few:
                one(photo, folder / f"{photo[0].stem}.png")
            seconds[name] += time.perf_counter() - began if turn else 0.0
        if turn:
            counts = {name: turn * len(photos if name in ways else few) for name in seconds}
            rates = {name: counts[name] / spent for name, spent in seconds.items()}
            yield _rows(rates, ways, peers, told, work, few, turn)


def _rows(
    rates: Mapping[str, float],
    ways: Iterable[str],
    peers: Iterable[str],
    told: Mapping[str, Mapping[str, Any]],
    work: Path,
    few: Sequence[Photo],
    turn: int,
) -> dict[str, Any]:
    found: dict[str, Any] = {name: {"images_per_second": rates[name]} for name in peers}
    for name in ways:
        against = next(peer for peer in peers if ("crf" in peer) == ("crf" in name))
        last = work / _slug(name) / str(turn) / "masks"
        equal = [_equal(last, work / _slug(against), photo) for photo in few]
        found[name] = {
            "images_per_second": rates[name],
            "against": against,
            "ratio": rates[name] / rates[against],
            "pixels_equal_mean": float(np.mean(equal)),
            "pixels_equal_least": min(equal),
            **{key: value for key, value in told[name].items() if key != "seconds"},
        }
    return found


def labeller(engine: Any, model: Path, tags: Path) -> Callable[[Side, Sequence[Photo], Path], dict[str, Any]]:
    """Labels by ``wsss-rt label``'s own function, with an engine that stays open."""

    def label(side: Side, photos: Sequence[Photo], out: Path) -> dict[str, Any]:
        job = Job(
            inputs=[str(path) for path, _ in photos], out=out, model=model, tags=tags, formats=("png",),
            options=side.options, resume=False,
        )  # fmt: skip
        with use_kernels(side.kernels):
            done = label_folder(job, engine=engine)
        if done.labelled != len(photos):
            raise SystemExit(f"labelled {done.labelled} of {len(photos)}: {dict(done.errors)}")
        run = read_run(out)
        assert run is not None
        session = run["session"]
        return {
            "seconds": done.wall_seconds,
            "localization": run["engine"]["localization"],
            "bottleneck": session["bottleneck"],
            "stages_ms": {name: stage["mean"] for name, stage in session["stages_ms"].items()},
        }

    return label


def _slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def _equal(masks: Path, peer: Path, photo: Photo) -> float:
    found, wanted = (np.asarray(Image.open(folder / f"{photo[0].stem}.png")) for folder in (masks, peer))
    if found.shape != wanted.shape:
        raise ValueError(f"masks of {found.shape} and {wanted.shape}")
    return float((found == wanted).mean())


def main() -> None:
    """Export, measure, store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--tags", type=Path, required=True)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--peer-count", type=int, default=8)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--name", default="labelling-gpu")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    if not torch.cuda.is_available():
        sys.exit("no GPU; the parts that need none are tested in tests/kernels/test_labelling_script.py")
    from benchmarks.pipeline.compare import SCALE, seeded_state, tagged
    from wsss_rt.engines import open_engine
    from wsss_rt.training.models import create_model, official_shapes

    work = options.work or Path(tempfile.mkdtemp(prefix="wsss-rt-"))
    work.mkdir(parents=True, exist_ok=True)
    photos = tagged(options.images, options.tags, options.count)
    state = seeded_state(official_shapes(create_model("mctformer-v2", num_classes=20, img_size=224)))
    package = work / f"seeded-{options.precision}.pt2"
    if not package.exists():
        torch.save(state, work / "seeded.pth")
        wsss_rt(
            "export", work / "seeded.pth", "--official", "--method", "mctformer-v2", "--classes", "voc",
            "--layers-fused", 3, "--to", "aotinductor", "--device", "cuda", "--precision", options.precision,
            "--out", package,
        )  # fmt: skip
    engine = open_engine(package, backend="aotinductor", device="cuda", cache=False)
    base = LabelOptions(
        scales=(1.0,), flip=True, refine="crf", crf=crf_params("mctformer"), batch=options.batch
    )
    background = base.resolved(engine.card).background or 0.0
    peer = Peer({name: value.cuda() for name, value in state.items()})
    content = {
        "device": torch.cuda.get_device_name(),
        "photographs": len(photos),
        "peer_photographs": options.peer_count,
        "model": {"method": "mctformer-v2", "backbone": "deit_small_patch16_224", "scale": SCALE},
        "precision": engine.precision,
        "aim": AIM,
    }
    for turn, rows in enumerate(
        measure(
            photos,
            sides(base),
            labeller(engine, package, options.tags),
            {
                "peer, crf": lambda photo, out: label_by_peer(peer, photo, out, background, crf=True),
                "peer": lambda photo, out: label_by_peer(peer, photo, out, background, crf=False),
            },
            work / "masks",
            peer_count=options.peer_count,
            until=until,
        )
    ):
        content |= {"turns": turn + 1, "sides": rows}
        print(f"wrote {write_result(options.name, content)}", flush=True)
    print(json.dumps(content["sides"], indent=1))


if __name__ == "__main__":
    main()
