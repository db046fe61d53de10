"""Class names and colours, and what the values of a mask mean.

A mask value is the class index plus one, and 0 is background. Up to 254 classes masks have 8 bits and 255 is
ignore; with more (ILSVRC has 1,000) they have 16 bits, are called wide, and 65535 is ignore. In either case
ignore is the largest value that the mask's type holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_rt.errors import UsageError, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

BACKGROUND = 0
IGNORE = 255
WIDE_IGNORE = 65_535
# what masks hold beside background and ignore
NARROW_CLASSES = 254
MAX_CLASSES = 65_534

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
# in the order of the category ids, which run from 1 to 90 with ten gaps
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase",
    "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
SCENE_CLASSES = (
    "stripes", "dots", "checks", "rings", "zigzag", "crosses", "stars", "waves", "bricks", "triangles",
)  # fmt: skip
NAMED_SETS = {"voc": VOC_CLASSES, "coco": COCO_CLASSES, "scenes": SCENE_CLASSES}


def voc_palette() -> tuple[tuple[int, int, int], ...]:
    """The 256 RGB colours of PASCAL VOC masks, by the devkit's bit-interleaving rule.

    Entry 0 is black (background), entry 255 the pale tone that VOC draws for ignore.
    """
    return tuple(voc_color(value) for value in range(256))


def voc_color(value: int) -> tuple[int, int, int]:
    """RGB of a mask value by the devkit's rule, which gives every value of 24 bits a colour of its own."""
    channels = [0, 0, 0]
    for shift in range(7, -1, -1):
        for channel in range(3):
            channels[channel] |= ((value >> channel) & 1) << shift
        value >>= 3
    return (channels[0], channels[1], channels[2])


def is_wide(classes: int) -> bool:
    """Whether masks of this many classes need 16 bits."""
    return classes > NARROW_CLASSES


def ignore_value(mask: NDArray[Any]) -> int:
    """What ignored pixels hold: 65535 in a mask of 16 bits, else 255."""
    return WIDE_IGNORE if mask.dtype.name == "uint16" else IGNORE


@dataclass(frozen=True)
class ClassSet:
    """Ordered class names with their colours; background is not among the names.

    Attributes:
        names: in the order of the model's outputs.

    Raises:
        UsageError: no class, a name twice, an empty name, or more than ``MAX_CLASSES``.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise UsageError("the class list is empty", fix="name at least one class")
        if len(self.names) > MAX_CLASSES:
            raise UsageError(
                f"{len(self.names)} classes do not fit a 16-bit mask",
                why=f"0 is background and {WIDE_IGNORE} is ignore, which leaves {MAX_CLASSES}",
            )
        counts = Counter(self.names)
        repeated = sorted(name for name, count in counts.items() if count > 1)
        if repeated or not all(name.strip() for name in self.names):
            raise UsageError(
                "class names must be unique and not empty",
                why=f"repeated: {', '.join(repeated)}" if repeated else "one of them is empty",
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def wide(self) -> bool:
        """Whether masks of these classes have 16 bits."""
        return is_wide(len(self.names))

    @property
    def ignore(self) -> int:
        """The mask value of ignored pixels: 255, or 65535 in wide masks."""
        return WIDE_IGNORE if self.wide else IGNORE

    def index(self, name: str) -> int:
        """0-based index of a class; an unknown name is a UsageError that offers the nearest."""
        if name not in self.names:
            raise UsageError(f"unknown class {name!r}", fix=nearest(name, self.names))
        return self.names.index(name)

    def color(self, index: int) -> tuple[int, int, int]:
        """RGB colour (0..255) of the class with this 0-based index."""
        return voc_color(index + 1)

    def mask_names(self) -> dict[int, str]:
        """Mask value to name, background and ignore included."""
        named = dict(enumerate(self.names, start=1))
        return {BACKGROUND: "background", **named, self.ignore: "ignore"}


def load_classes(source: str | Path | Sequence[str]) -> ClassSet:
    """Classes by the name of a known set, from a text file, or from the names themselves.

    A text file holds a name per line, in the order of the model's outputs; ``0 background`` style
    numbering and a background line are understood.

    Raises:
        UsageError: no such set or file, or an invalid list.
    """
    if not isinstance(source, (str, Path)):
        return ClassSet(tuple(source))
    if isinstance(source, str) and source in NAMED_SETS:
        return ClassSet(NAMED_SETS[source])
    path = Path(source)
    if not path.is_file():
        raise UsageError(
            f"no class set or file named {str(source)!r}",
            fix=f"give a text file with a class name per line, or one of: {', '.join(sorted(NAMED_SETS))}",
        )
    names = []
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split(maxsplit=1)
        if not words:
            continue
        name = words[1] if len(words) == 2 and words[0].isdigit() else line
        names.append(name.strip())
    if names and names[0].lower() in {"background", "__background__", "_background_"}:
        names = names[1:]
    return ClassSet(tuple(names))
