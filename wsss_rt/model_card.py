"""What an artifact says of itself, and the seal that shows that nobody changed a byte of it.

An artifact is one ONNX file. The card is JSON under the metadata key ``wsss_rt``; the SHA-256 of everything
before the seal stands under ``wsss_rt_sha256``, as the last entry of the file. ONNX is protobuf, where fields
may be appended, so sealing and checking need no protobuf library and no second file. The other form, a zip of
code compiled from the same model, is read by :mod:`wsss_rt.model_package`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from wsss_rt.errors import WsssError

SCHEMA_VERSION = 1
CARD_KEY = "wsss_rt"
SEAL_KEY = "wsss_rt_sha256"
# field number of ModelProto.metadata_props, with the wire type of a length-delimited field
_METADATA_TAG = (14 << 3) | 2
# how a package of compiled code begins
_ZIP = b"PK\x03\x04"

SizePolicy = Literal["native", "short_side", "fixed"]
Kind = Literal["localizer", "segmenter", "affinity"]
KINDS: tuple[Kind, ...] = ("localizer", "segmenter")
Upsample = Literal["bilinear", "aligned", "bicubic"]
Normalise = Literal["minmax", "peak"]


@dataclass(frozen=True)
class InputSpec:
    """How pixels become the input tensor.

    Attributes:
        mean, std: per channel, for RGB in 0..1.
        patch: side of a token in input pixels.
        size_policy: ``native`` keeps the image's size, ``short_side`` resizes its shorter side to ``size``,
            ``fixed`` resizes to ``size`` x ``size``.
        size: pixels; None for ``native``.
        max_pixels: a larger input is scaled down to this many pixels first, and the record says so.
        window: side of the square windows that slide over a larger input, pixels; None runs it whole.
        stride: between windows, pixels, 1 to ``window``; None is ``window``.
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    patch: int = 16
    size_policy: SizePolicy = "native"
    size: int | None = None
    max_pixels: int = 1_048_576
    window: int | None = None
    stride: int | None = None


@dataclass(frozen=True)
class Recommended:
    """Settings that validation chose, and where they come from.

    Attributes:
        background: constant score of the background, 0..1, against min-max normalised maps.
        tag_thresholds: per class, probability from which a class counts as present.
        scales: image scales, the first one 1.0.
        flip: whether each scale also runs mirrored.
        provenance: the data and rule by which these values were chosen.
    """

    background: float = 0.4
    tag_thresholds: tuple[float, ...] = ()
    scales: tuple[float, ...] = (1.0,)
    flip: bool = True
    provenance: str = "defaults, not tuned on any data"


@dataclass(frozen=True)
class MapRule:
    """How a localizer's maps become scores of pixels: what the official code of its method does.

    Attributes:
        upsample: how they come to the image's size, see :func:`wsss_rt.resize.resize_map`.
        normalise: of each class's sum over the passes: ``minmax`` to 0..1, or ``peak``, which rectifies it
            and divides by its largest value.

    Raises:
        ValueError: a rule that this version does not know.
    """

    upsample: Upsample = "bilinear"
    normalise: Normalise = "minmax"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("upsample", self.upsample, get_args(Upsample)),
            ("normalise", self.normalise, get_args(Normalise)),
        ):
            if value not in choices:
                raise ValueError(f"{name} {value!r} of maps is none of {', '.join(choices)}")


@dataclass(frozen=True)
class ModelCard:
    """Everything that the runtime needs to know about a model.

    Attributes:
        kind: ``localizer`` (maps from tags), ``segmenter`` (a class per pixel) or ``affinity`` (what
            neighbouring cells have in common, for the random walk; it knows no classes). A segmenter's maps
            are class scores of every pixel, at least 0, of which the largest one wins.
        method: name as in ``create_model``, e.g. ``mctformer-v2``.
        classes: names in output order, without background.
        colors: RGB per class, same order.
        input: see :class:`InputSpec`.
        outputs: names of the graph's outputs.
        recommended: see :class:`Recommended`.
        maps: see :class:`MapRule`.
        precision: of the stored computation, e.g. ``float32``.
        options: method options that are baked into the graph.
        training: data, seed, images seen, recipe.
        quality: measured figures, each with the data it was measured on.
        has_background: whether the first of a segmenter's maps is the background's; without it every pixel
            gets a class.
        weights_sha256: of the graph with its weights, the file without card and seal.
    """

    method: str
    classes: tuple[str, ...]
    kind: Kind = "localizer"
    colors: tuple[tuple[int, int, int], ...] = ()
    input: InputSpec = field(default_factory=InputSpec)
    outputs: tuple[str, ...] = ("scores", "maps")
    recommended: Recommended = field(default_factory=Recommended)
    maps: MapRule = field(default_factory=MapRule)
    precision: str = "float32"
    options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    has_background: bool = False
    weights_sha256: str = ""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """The card as compact JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, *, source: str = "model card") -> ModelCard:
        """Parse a card.

        Args:
            text: JSON as :meth:`to_json` writes it.
            source: what to name in errors.

        Raises:
            WsssError: not JSON, a newer schema, or fields that don't fit.
        """
        try:
            raw = json.loads(text)
            version = raw["schema_version"]
            if version > SCHEMA_VERSION:
                raise WsssError(
                    f"{source} has schema version {version}",
                    why=f"this wsss-rt reads up to version {SCHEMA_VERSION}",
                    fix="upgrade wsss-rt",
                    code="newer_schema",
                )
            raw["input"] = InputSpec(**_tuples(raw["input"]))
            raw["recommended"] = Recommended(**_tuples(raw["recommended"]))
            raw["maps"] = MapRule(**raw.get("maps", {}))
            raw["colors"] = tuple(tuple(color) for color in raw["colors"])
            raw["classes"], raw["outputs"] = tuple(raw["classes"]), tuple(raw["outputs"])
            return cls(**raw)
        except (ValueError, KeyError, TypeError) as error:
            raise WsssError(
                f"{source} holds a card that cannot be read", why=str(error), code="bad_card"
            ) from error


def refuse_kind(card: ModelCard, source: str) -> None:
    """Refuse a model of a kind that labelling does not know.

    Args:
        card: of the model.
        source: what to name in the error.

    Raises:
        WsssError: code ``wrong_kind``.
    """
    if card.kind not in KINDS:
        raise WsssError(
            f"{source} is a {card.kind}",
            why=f"label needs a {' or a '.join(KINDS)}",
            fix="give it as --affinity, with --refine walk"
            if card.kind == "affinity"
            else "upgrade wsss-rt, or choose another model",
            code="wrong_kind",
        )


def _tuples(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}


def seal(model: bytes, card: ModelCard) -> bytes:
    """Append card and seal to a serialised ONNX model that carries neither yet.

    Args:
        model: ``ModelProto`` bytes.
        card: its ``weights_sha256`` is set here.

    Returns:
        The bytes of the artifact.
    """
    fields = asdict(card) | {"weights_sha256": hashlib.sha256(model).hexdigest()}
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    body = model + _metadata_field(CARD_KEY, text)
    return body + _metadata_field(SEAL_KEY, hashlib.sha256(body).hexdigest())


def is_package(data: bytes) -> bool:
    """Whether these are the bytes of compiled code in a zip, and not of an ONNX file."""
    return data.startswith(_ZIP)


def read_card(path: Path) -> ModelCard:
    """Check an artifact's seal and read its card.

    Raises:
        WsssError: no such file, not an artifact of wsss-rt, cut short, or changed since it was sealed.
    """
    return read_artifact(path)[0]


def broken_seal(source: str | Path, *, has_card: bool, writer: str = "wsss-rt export") -> WsssError:
    """The error for a file without its seal: a model that was changed, or what ``writer`` did not write."""
    if not has_card:
        return WsssError(
            f"{source} is not a wsss-rt model",
            why="it carries no model card: it comes from elsewhere, or it was cut short",
            fix=f"write one with `{writer}`, or copy it again",
            code="no_card",
        )
    return WsssError(
        f"the model {source} is damaged or was changed",
        why="its bytes do not match the SHA-256 that it was sealed with",
        fix="copy it again from where it came, or run `wsss-rt export` again",
        code="model_damaged",
    )


def read_artifact(path: Path) -> tuple[ModelCard, bytes]:
    """Card and bytes of an artifact whose seal is intact; engines load the very bytes that were checked.

    Raises:
        WsssError: as :func:`read_card`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WsssError(
            f"cannot read the model {path}",
            why=error.strerror or str(error),
            fix="see `wsss-rt models` for what is installed",
            code="model_unreadable",
        ) from error
    if is_package(data):
        from wsss_rt.model_package import read_package

        return read_package(data, str(path))[0], data
    seal_length = len(_metadata_field(SEAL_KEY, "0" * 64))
    body, tail = data[:-seal_length], data[-seal_length:]
    if tail != _metadata_field(SEAL_KEY, hashlib.sha256(body).hexdigest()):
        raise broken_seal(path, has_card=CARD_KEY.encode() in data)
    card = ModelCard.from_json(_card_text(body, path), source=str(path))
    return card, data


def _card_text(body: bytes, path: Path) -> str:
    """Text of the last metadata entry of ``body``, found by walking the top-level protobuf fields."""
    position, last = 0, -1
    while position < len(body):
        last = position
        tag, position = _read_varint(body, position)
        wire = tag & 7
        if wire == 2:
            length, position = _read_varint(body, position)
            position += length
        elif wire == 0:
            _, position = _read_varint(body, position)
        else:
            break
    prefix = _metadata_field(CARD_KEY, "")
    key_part = prefix[2:-2]
    entry = body[last:]
    start = entry.find(key_part)
    if last < 0 or start < 0:
        raise WsssError(f"{path} is not a wsss-rt model", why="it carries no model card", code="no_card")
    value_at = start + len(key_part) + 1
    length, value_at = _read_varint(entry, value_at)
    return entry[value_at : value_at + length].decode("utf-8")


def _metadata_field(key: str, value: str) -> bytes:
    """One ``metadata_props`` entry (StringStringEntryProto) of a serialised ModelProto."""
    key_bytes, value_bytes = key.encode(), value.encode()
    entry = b"\x0a" + _varint(len(key_bytes)) + key_bytes + b"\x12" + _varint(len(value_bytes)) + value_bytes
    return _varint(_METADATA_TAG) + _varint(len(entry)) + entry


def _varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
