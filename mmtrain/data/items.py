"""What is to be packed: a folder, a table or shards, as a list of items whose bytes are read later.

An item is a sample to be: its key, where its files' bytes lie, and the texts that go beside them. Writing is `pack.py`.
"""

import json
import operator
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mmtrain.data.decode import BadSample
from mmtrain.data.facts import FACTS, IMAGES, VIDEOS, measure
from mmtrain.data.index import Index
from mmtrain.data.mask import MASK
from mmtrain.data.tables import COLUMNS, KINDS, TABLES, captions, read_text
from mmtrain.errors import UserError, UserErrors

_STILLS = ("jpg", "jpeg", "png")  # one frame, whatever their bytes; a WebP may be a clip
_CLAUSE = re.compile(r"\s*(\w+)\s*(>=|<=|==|!=|>|<)\s*(-?[\d.]+)\s*")
_COMPARE: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Piece:
    """Bytes of a file that become a member."""

    suffix: str
    path: Path
    offset: int  # bytes
    size: int  # bytes
    crc32: int | None = None  # where it is known beforehand


@dataclass(frozen=True)
class Item:
    """A sample to be packed."""

    key: str
    name: str  # what its owner calls it
    pieces: tuple[Piece, ...]
    texts: Mapping[str, bytes] = field(default_factory=dict)  # further members by suffix
    unsaid: str = ""  # a fact that it was to be chosen by, and that its header does not tell

    @property
    def size(self) -> int:
        """Bytes of all members."""
        return sum(p.size for p in self.pieces) + sum(map(len, self.texts.values()))

    def read(self) -> dict[str, bytes]:
        """Its members by suffix. Raises BadSample if the bytes are not those that were listed."""
        members = dict(self.texts)
        for piece in self.pieces:
            with open(piece.path, "rb") as file:
                file.seek(piece.offset)
                data = file.read(piece.size)
            if len(data) < piece.size or piece.crc32 not in (None, zlib.crc32(data)):
                raise BadSample(f"the .{piece.suffix} changed since it was listed")
            members[piece.suffix] = data
        return members


@dataclass
class Listing:
    """The items of one source, in order."""

    where: str  # the source, for messages
    items: list[Item]
    ignored: list[str] = field(default_factory=list)  # files of other kinds, left out
    facts: np.ndarray | None = None  # FACTS [items], if they are known already
    missed: int = 0  # items left out by `keep`

    def keep(self, clauses: Sequence[str]) -> None:
        """Leaves out and counts the items that miss a clause such as ``width>=256``.

        One that cannot be judged, because its header is damaged, stays: it is for packing to name it as broken.

        Raises:
            UserError: none is left.
        """
        tests = [_parsed(clause) for clause in clauses]
        if not tests:
            return
        if self.facts is None:
            self.facts = np.array([measure(item.read())[0] for item in self.items], FACTS)
        facts = self.facts.copy()
        is_still = np.array([any(piece.suffix in _STILLS for piece in item.pieces) for item in self.items])
        facts["num_frames"][is_still] = 1
        mask, unsaid = np.ones(len(facts), bool), np.full(len(facts), "", "U10")
        for name, compare, value in tests:
            told = _told(facts, name)
            mask &= compare(facts[name], value) | ~told
            unsaid[~told] = name
        if not mask.any():
            fix = "ask for less"
            raise UserError("where", f"no sample of {self.where} has {', '.join(clauses)}", "at least one", fix)
        self.missed += int((~mask).sum())
        self.items = [replace(self.items[i], unsaid=str(unsaid[i])) for i in np.flatnonzero(mask)]
        self.facts = self.facts[mask]


def _told(facts: np.ndarray, name: str) -> np.ndarray:
    """Of which items a fact is their own, and not the 0 of a header that does not tell; bool ``[n]``."""
    if name == "fps":
        told: np.ndarray = (facts["fps"] > 0) | (facts["num_frames"] == 1)  # a still has none
        return told
    return facts[name] > 0 if name in ("width", "height", "num_frames") else np.ones(len(facts), bool)


def _parsed(clause: str) -> tuple[str, Callable[[np.ndarray, float], np.ndarray], float]:
    found = _CLAUSE.fullmatch(clause)
    try:
        value = float(found[3]) if found else 0.0
    except ValueError:
        found = None
    if not found or found[1] not in (FACTS.names or ()):
        wanted = f"a comparison with a number; names are {', '.join(FACTS.names or ())}"
        raise UserError("where", repr(clause), wanted, "write it like width>=256")
    return found[1], _COMPARE[found[2]], value


def listed(source: str | Path, template: str | None, columns: tuple[str, str] = COLUMNS) -> Listing:
    """The items of a folder of files, a table (.csv, .jsonl, .parquet) or shards.

    Args:
        template: caption of items that have none; ``{name}`` stands for the file's name in words. None: they are
            refused, except in shards.
        columns: of a table, the names of the files and the captions.

    Raises:
        UserError: for what does not fit together, all at once.
    """
    path = Path(source)
    if path.is_file() and path.suffix in KINDS:
        return _of_table(path, template, columns)
    if path.suffix == ".tar" or any(mark in str(source) for mark in "*?{"):
        return _of_shards(source, template)
    files, others = _files(path)
    if tars := [name for name in others if name.endswith(".tar") and "/" not in name]:
        if not files:
            return _of_shards(source, template)
        came = f"both shards ({tars[0]}) and files ({next(iter(files))})"
        raise UserError(f"folder {path}", came, "one or the other", "move one of them elsewhere")
    if not files:
        held = f"it holds only {', '.join(others[:5])}" if others else "the folder is empty"
        fix = "put images or clips into it, or point at another folder"
        raise UserError(f"folder {path}", held, f"files ending in {', '.join((*IMAGES, *VIDEOS))}", fix)
    told = _captions(path, files, template, columns)
    _refuse_orphans(path, files, others)
    ignored = [n for n in others if not n.lower().endswith((".txt", f".{MASK}")) and n not in TABLES]
    return Listing(f"folder {path}", _items(f"folder {path}", files, told), ignored)


def _of_table(path: Path, template: str | None, columns: tuple[str, str]) -> Listing:
    told = captions(path, columns)
    if not told:
        raise UserError(str(path), "the table is empty", "a row for each file", "write it again")
    files, errors = {}, []
    for name in told:
        fix = "mend the row, or remove it"
        if Path(name).is_absolute() or ".." in Path(name).parts:
            errors.append(UserError(str(path), f"{name!r} leaves the table's folder", "a file below it", fix))
        elif Path(name).suffix[1:].lower() not in (*IMAGES, *VIDEOS):
            wanted = f"a file ending in {', '.join((*IMAGES, *VIDEOS))}"
            errors.append(UserError(str(path), f"{name!r}", wanted, fix))
        elif (path.parent / name).is_file():
            files[name] = path.parent / name
    _raise(errors)
    return Listing(str(path), _items(str(path), files, _complete(str(path), told, files, template, "a text")))


def _of_shards(source: str | Path, template: str | None) -> Listing:
    index = Index.of(source)
    items: list[Item] = []
    owners: dict[str, Path] = {}
    for shard in index.shards:
        for j, key in enumerate(shard.keys):
            if key in owners:
                came = f"the key {key!r} is in {owners[key]} and {shard.path}"
                raise UserError(f"shards {source}", came, "each sample once", "give each sample its own key")
            owners[key] = shard.path
            members, texts = shard.members(j), {}
            if template is not None and not shard.facts[j]["captions"]:
                members.pop("txt", None)
                texts["txt"] = f"{_filled(template, key)}\n".encode()
            pieces = (Piece(s, shard.path, m.offset, m.size, m.crc32) for s, m in members.items())
            items.append(Item(key, f"{shard.path.name}, {key}", tuple(pieces), texts))
    return Listing(f"shards {source}", items, facts=None if template else index.facts)


def _files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Images and clips by relative name, sorted, and the names of all other files; hidden ones are passed over."""
    if not folder.is_dir():
        fix = "check the path; relative ones start at the working folder"
        raise UserError(
            f"folder {folder}", "there is no such folder", "a folder of images or clips, a table or shards", fix
        )
    found = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    shown = {name: path for name, path in found.items() if not any(part.startswith(".") for part in name.split("/"))}
    files = {name: path for name, path in shown.items() if path.suffix[1:].lower() in (*IMAGES, *VIDEOS)}
    files = {name: path for name, path in files.items() if not name.lower().endswith(f".{MASK}")}
    return files, [name for name in shown if name not in files]


def _items(where: str, files: dict[str, Path], told: dict[str, list[str]]) -> list[Item]:
    keys, items = _keys(where, files), []
    for name, path in files.items():
        texts = {
            "txt": "".join(f"{line}\n" for line in told[name]).encode(),
            "json": json.dumps({"file_name": name}, sort_keys=True).encode(),
        }
        mask = path.with_suffix(f".{MASK}")
        members = {path.suffix[1:].lower(): path, **({MASK: mask} if mask.is_file() else {})}
        pieces = (Piece(suffix, file, 0, file.stat().st_size) for suffix, file in members.items())
        items.append(Item(keys[name], name, tuple(pieces), texts))
    return items


def _refuse_orphans(folder: Path, files: dict[str, Path], others: list[str]) -> None:
    """Raises UserErrors for masks that lie beside no file."""
    owners = {path.with_suffix(f".{MASK}") for path in files.values()}
    _raise(
        [
            UserError(f"folder {folder}", f"{name} without its image or clip", "a file for each mask", "add or remove")
            for name in others
            if name.lower().endswith(f".{MASK}") and folder / name not in owners
        ]
    )


def _keys(where: str, files: dict[str, Path]) -> dict[str, str]:
    """File name → key: the name without its suffix, dots in its last part replaced, since a dot ends a key."""
    keys: dict[str, str] = {}
    owners: dict[str, str] = {}
    for name in files:
        parent, slash, stem = name.rpartition("/")
        key = parent + slash + stem.rpartition(".")[0].replace(".", "_")
        if key in owners:
            came = f"{owners[key]} and {name} would share the key {key!r}"
            raise UserError(where, came, "one file to a key", "rename one of them")
        keys[name], owners[key] = key, name
    return keys


def _captions(
    folder: Path, files: dict[str, Path], template: str | None, columns: tuple[str, str]
) -> dict[str, list[str]]:
    """Captions of each file of a folder, from its table if it has one. Raises all that is wrong at once."""
    tables = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(tables) > 1:
        came = f"both {' and '.join(path.name for path in tables)}"
        raise UserError(f"folder {folder}", came, "one table of captions", "remove one of them")
    if tables:
        return _complete(str(tables[0]), captions(tables[0], columns), files, template, "a row for each file")
    return _complete(f"folder {folder}", _beside(folder, files), files, template, "a .txt beside each file")


def _complete(
    place: str, found: dict[str, list[str]], files: dict[str, Path], template: str | None, wanted: str
) -> dict[str, list[str]]:
    """The captions that were found, or the template. Raises UserErrors for captions without file and the reverse."""
    errors = []
    for name in found:
        if name not in files:
            came, fix = f"a caption for {name!r} without its image or clip", "add the file, or remove the caption"
            errors.append(UserError(place, came, "a file for each caption", fix))
    for name in files:
        if not found.get(name):
            if template is None:
                fix = "write it, or give caption_template for files without one"
                errors.append(UserError(place, f"{name} has no caption", wanted, fix))
            else:
                found[name] = [_filled(template, name)]
    _raise(errors)
    return found


def _raise(errors: list[UserError], limit: int = 10) -> None:
    if len(errors) > limit:
        rest = UserError(errors[0].where, f"{len(errors) - limit} more of these", errors[-1].wanted, errors[-1].fix)
        errors = [*errors[:limit], rest]
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)


def _filled(template: str, name: str) -> str:
    words = re.sub(r"[_-]+", " ", Path(name).stem)
    if unknown := set(re.findall(r"\{[^{}]*\}", template)) - {"{name}"}:
        raise UserError("caption_template", " ".join(sorted(unknown)), "no field but {name}", "use plain words")
    return template.replace("{name}", words)


def _beside(folder: Path, files: dict[str, Path]) -> dict[str, list[str]]:
    """Captions from .txt files, under the name of the file each stands beside (or its own, if it stands alone)."""
    owners: dict[Path, list[str]] = {}
    for name, path in files.items():
        owners.setdefault(path.with_suffix(""), []).append(name)
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.txt")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]
        for owner in owners.get(path.with_suffix(""), [path.relative_to(folder).as_posix()]):
            found[owner] = lines
    return found
