"""The model folder: config.json, safetensors, the item table, the metrics, a model card. No pickle, nothing that runs.

config.json              the shape of everything, this module's `ModelConfig`
encoder.safetensors      the user encoder's weights
features.safetensors     how a text vector becomes an item vector
items.jsonl              the item table, one `Item` a line, in the order of the rows 1, 2, ...
items.safetensors        `vectors` (items, dim)
memory.safetensors       the online memory at the end of the training log
lexicon.json, lexicon.safetensors  the terms of item texts, and what they weigh
likeness.safetensors     the nearest items of each item
tokenizer.json           of a model that reads words: how a text falls into them
metrics.json, README.md  what training measured, and the model card
"""

import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta, Struct
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as save_arrays
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save as save_tensors
from tokenizers import Tokenizer
from torch.nn.functional import pad

from stream_rec.errors import UserError
from stream_rec.features.drift import Reference
from stream_rec.features.item_features import ItemFeatures, Vectors
from stream_rec.features.item_similarity import ItemSimilarity, NeighbourTable
from stream_rec.features.online_statistics import HalfLives, State
from stream_rec.features.tfidf import Tfidf
from stream_rec.messages import Item, Time
from stream_rec.models.user_encoder import EncoderConfig, UserEncoder, body_from
from stream_rec.models.validation import check_body, check_config, check_model
from stream_rec.ranking.blend import Blend

LIKENESS = ("text", "words")
FORMAT = 7
"""Of the model folder. Older ones are read too: in one of 6 items without a text are like each other, as the model was
trained, and the memory holds what followed each item, but not what each item followed; one of 5 is never private, one
of 4 tells nothing of drift, one of 3 has no goal either."""
READABLE = (3, 4, 5, 6, FORMAT)
LAST_TYPE = 4
"""The format since which the next event's type is told from the last one's too."""
ASIDE = ".saving-"
"""How the name of the folder begins that a model is written to before it takes the place of another."""
WRONG = (
    *(OSError, SafetensorError, msgspec.MsgspecError, RecursionError),
    *(KeyError, TypeError, ValueError, RuntimeError, AttributeError),  # what contradicts itself
)
"""What reading a folder may raise."""
HASHED = (
    "config.json",
    "encoder.safetensors",
    "features.safetensors",
    "items.jsonl",
    "items.safetensors",
    "memory.safetensors",
    "lexicon.json",
    "lexicon.safetensors",
    "likeness.safetensors",
    "tokenizer.json",
)
"""What the version is made of; the last is only where a model reads words."""


class Privacy(Struct, frozen=True):
    """The differential privacy of the encoder's weights: the chance of any outcome is at most exp(`epsilon`) times, and
    `delta` more, what it were without one of the users, whatever that one did."""

    epsilon: float
    delta: float
    clip: float
    """Norm of a user's gradient, at most."""
    noise: float
    """Standard deviation of what was added to a step's sum of gradients, as a multiple of `clip`."""
    rate: float
    """Chance of a user to be in a step."""
    steps: int
    users: int
    unit: str = "user"


class ModelConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """config.json."""

    format: int
    encoder: EncoderConfig
    body: dict[str, Any]
    """The decoder's transformers configuration."""
    event_types: tuple[str, ...]
    capacity: Annotated[int, Meta(ge=1, le=1 << 16)]
    """Events in the longest window that the model was trained on."""
    text_encoder: str
    blend: Blend
    horizons: HalfLives
    """Of the online memory."""
    trained_until: Time
    """Timestamp of the last training event, seconds; of a log without times the number of its row."""
    goal: str | None = None
    """The event type that `interest` is the probability of; None: the model tells no interest."""
    reference: Reference | None = None
    """What live events are compared with; None: nothing is said of drift."""
    privacy: Privacy | None = None
    """None: the model was trained without any."""
    has_time: bool = True
    """False: the log had no times. Then the online memory never forgets, and the time between events isn't read."""

    @property
    def remembers_until(self) -> float:
        """Timestamp of the last event that the online memory holds: that of a private model holds none."""
        return self.trained_until if self.privacy is None else -math.inf


class Model(NamedTuple):
    """All that a model folder holds, in memory."""

    config: ModelConfig
    encoder: UserEncoder
    features: ItemFeatures
    items: Sequence[Item]
    vectors: Vectors
    memory: State
    alike: ItemSimilarity
    version: str
    """The first 12 hexadecimal digits of a SHA-256 over the files; empty before the model is saved."""
    tokenizer: Tokenizer | None = None
    """Of a model that reads words."""


def save(model: Model, folder: Path) -> str:
    """Writes the model in place of the one in `folder`, if there is one. Returns the version.

    Everything is written aside first, so that a full disk leaves the former model whole. Then the files are renamed,
    config.json last: a folder without one is unfinished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=ASIDE, dir=folder) as aside:
        _write(model, Path(aside))
        written = sorted(path.name for path in Path(aside).iterdir() if path.name != "config.json")
        for name in {"config.json", *HASHED} - set(written):
            (folder / name).unlink(missing_ok=True)
        for name in (*written, "config.json"):
            (Path(aside) / name).replace(folder / name)
    return version_of(folder)


def _write(model: Model, folder: Path) -> None:
    alike = model.alike
    weights = {name: tensor.contiguous() for name, tensor in model.encoder.state_dict().items()}
    (folder / "encoder.safetensors").write_bytes(save_tensors(weights))
    for name, arrays in (
        ("features", model.features._asdict()),
        ("items", {"vectors": model.vectors}),
        ("memory", model.memory),
        ("lexicon", {"weights": alike.lexicon.weights, "directions": alike.lexicon.directions}),
        (
            "likeness",
            {f"{kind}.{name}": array for kind in LIKENESS for name, array in getattr(alike, kind)._asdict().items()},
        ),
    ):
        whole = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        (folder / f"{name}.safetensors").write_bytes(save_arrays(whole))
    (folder / "lexicon.json").write_bytes(msgspec.json.encode(alike.lexicon.terms) + b"\n")
    if model.tokenizer is not None:
        (folder / "tokenizer.json").write_text(model.tokenizer.to_str(), encoding="utf-8")
    (folder / "items.jsonl").write_bytes(msgspec.json.Encoder().encode_lines(model.items))
    (folder / "config.json").write_bytes(msgspec.json.format(msgspec.json.encode(model.config), indent=2) + b"\n")


def load(folder: Path) -> Model:
    """Reads a model folder. Raises `UserError` when it is missing, damaged, or of another format."""
    config = _config(folder)
    try:
        check_config(config, time.time())
        for name in HASHED:
            if (folder / name).exists() and not (folder / name).is_file():
                raise ValueError(f"{name} is no file")  # to open a pipe waits for a writer
        features = ItemFeatures(**load_file(folder / "features.safetensors"))
        items = msgspec.json.Decoder(Item).decode_lines((folder / "items.jsonl").read_bytes())
        vectors = load_file(folder / "items.safetensors")["vectors"]
        weights = load_tensors(folder / "encoder.safetensors")
        check_body(config.body, weights)
        if config.format < LAST_TYPE:
            weights["next_type.weight"] = pad(weights["next_type.weight"], (0, len(config.event_types) + 1))
        encoder = UserEncoder(
            config.encoder,
            body_from(config.body),
            items=len(weights["residual.weight"]),
            item_dim=features.dim,
            types=len(config.event_types) + 1,
            table=weights["inputs.table"] if config.encoder.words else None,
            goal=config.goal is not None,
        )
        encoder.load_state_dict(weights)
        memory = load_file(folder / "memory.safetensors")
        alike = _alike(folder)
        tokenizer = _tokenizer(folder / "tokenizer.json") if config.encoder.words else None
        version = version_of(folder)
        model = Model(config, encoder.eval(), features, items, vectors, memory, alike, version, tokenizer)
        check_model(model)
    except WRONG as error:
        reason, _, _ = str(error).partition("\n")
        raise UserError(f"the model in {folder} is damaged ({reason}): train it again") from error
    return model


def _alike(folder: Path) -> ItemSimilarity:
    terms = msgspec.json.decode((folder / "lexicon.json").read_bytes(), type=tuple[str, ...])
    lexicon = Tfidf(terms, **load_file(folder / "lexicon.safetensors"))
    arrays = load_file(folder / "likeness.safetensors")
    text, words = (NeighbourTable(arrays[f"{kind}.rows"], arrays[f"{kind}.cosines"]) for kind in LIKENESS)
    return ItemSimilarity(lexicon, text, words)


def _config(folder: Path) -> ModelConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"no model in {folder}: train one with 'stream-rec train EVENTS --out {folder}', or set model")
    try:
        text = path.read_bytes()
        form = msgspec.json.decode(text, type=dict[str, Any]).get("format")
        if form not in READABLE:
            raise UserError(
                f"the model in {folder} has format {form}, this version reads {READABLE[0]} to {FORMAT}: "
                "train it again, or install the version that wrote it"
            )
        return msgspec.json.decode(text, type=ModelConfig)
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): train the model again") from error


def _tokenizer(path: Path) -> Tokenizer:
    text = path.read_text(encoding="utf-8")
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001 - the library raises nothing more precise
        raise ValueError(f"{path.name}: {error}") from None


def version_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in HASHED:
        if name == "tokenizer.json" and not (folder / name).exists():
            continue
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
