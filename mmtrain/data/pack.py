"""A folder of images and clips with captions → shards. The files' own bytes are kept; nothing is re-encoded.

Captions come from ``metadata.csv`` or ``metadata.jsonl`` (columns ``file_name`` and ``text``) if the folder has one,
and otherwise from a .txt beside each file, one caption a line. What shards hold afterwards is told by `check.py`.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmtrain.data.decode import BadSample, probe
from mmtrain.data.index import IMAGES, VIDEOS
from mmtrain.data.shards import ShardWriter
from mmtrain.errors import UserError, UserErrors

TABLES = ("metadata.csv", "metadata.jsonl")


@dataclass
class Packed:
    """What packing did."""

    folder: Path
    samples: int = 0
    bad: dict[str, str] = field(default_factory=dict)  # file left out → why it does not decode
    ignored: list[str] = field(default_factory=list)  # files of other kinds, left out

    def text(self) -> str:
        lines = [f"{self.samples} samples in {self.folder}"]
        lines += [f"left out {name}: {why}" for name, why in self.bad.items()]
        if self.ignored:
            named = ", ".join(self.ignored[:8]) + (", …" if len(self.ignored) > 8 else "")
            lines.append(f"not images or clips, ignored: {len(self.ignored)} ({named})")
        return "\n".join(lines)


def pack(
    folder: str | Path,
    out: str | Path,
    *,
    caption_template: str | None = None,
    shard_size: int = 1000,
    max_bad_fraction: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Packs the images (jpg, jpeg, png, webp) and clips (mp4, webm) of a folder, subfolders included, into shards.

    Every file is decoded once, whole, before it goes in. Keys are the files' relative names.

    Args:
        caption_template: caption of files that have none; ``{name}`` stands for the file's name in words.
        max_bad_fraction: share of the files that may fail to decode; they are left out, and named in the result.
        progress: called with (files done, files).

    Raises:
        UserError: for an empty folder, an output that exists, captions without files, files without captions, two
            files of one name, or too many that do not decode; nothing is left behind.
    """
    folder = Path(folder)
    files, others = _files(folder)
    captions = _captions(folder, files, caption_template)
    keys = _keys(folder, files)
    done = Packed(Path(out), ignored=[name for name in others if not name.endswith(".txt") and name not in TABLES])
    with ShardWriter(out, max_samples=shard_size) as writer:
        for number, (name, path) in enumerate(files.items()):
            members = {
                path.suffix[1:].lower(): path.read_bytes(),
                "txt": "".join(f"{line}\n" for line in captions[name]).encode(),
                "json": json.dumps({"file_name": name}, sort_keys=True).encode(),
            }
            try:
                probe(path.suffix[1:].lower(), members)
                writer.write(keys[name], members)
            except BadSample as why:
                done.bad[name] = str(why)
            if progress:
                progress(number + 1, len(files))
        _refuse_bad(folder, done.bad, len(files), max_bad_fraction)
        done.samples = writer.count
    return done


def _refuse_bad(folder: Path, bad: dict[str, str], total: int, max_bad_fraction: float) -> None:
    if len(bad) > max_bad_fraction * total or len(bad) == total:
        named = "; ".join(f"{name}: {why}" for name, why in list(bad.items())[:5])
        came = f"{len(bad)} of {total} files do not decode ({named})"
        fix = "mend or remove them, or raise max_bad_fraction to leave them out"
        raise UserError(f"folder {folder}", came, f"at most a share of {max_bad_fraction:g}", fix)


def _files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Images and clips by relative name, sorted, and the names of all other files; hidden ones are passed over."""
    if not folder.is_dir():
        fix = "check the path; relative ones start at the working folder"
        raise UserError(f"folder {folder}", "there is no such folder", "a folder of images or clips", fix)
    found = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    shown = {name: path for name, path in found.items() if not any(part.startswith(".") for part in name.split("/"))}
    files = {name: path for name, path in shown.items() if path.suffix[1:].lower() in (*IMAGES, *VIDEOS)}
    others = [name for name in shown if name not in files]
    if not files:
        held = f"it holds only {', '.join(others[:5])}" if others else "the folder is empty"
        fix = "put images or clips into it, or point at another folder"
        raise UserError(f"folder {folder}", held, f"files ending in {', '.join((*IMAGES, *VIDEOS))}", fix)
    return files, others


def _keys(folder: Path, files: dict[str, Path]) -> dict[str, str]:
    """File name → key: the name without its suffix, dots in its last part replaced, since a dot ends a key."""
    keys: dict[str, str] = {}
    owners: dict[str, str] = {}
    for name in files:
        parent, slash, stem = name.rpartition("/")
        key = parent + slash + stem.rpartition(".")[0].replace(".", "_")
        if key in owners:
            came = f"{owners[key]} and {name} would share the key {key!r}"
            raise UserError(f"folder {folder}", came, "one file to a key", "rename one of them")
        keys[name], owners[key] = key, name
    return keys


def _captions(folder: Path, files: dict[str, Path], template: str | None) -> dict[str, list[str]]:
    """Captions of each file. Raises all that is wrong at once (UserErrors)."""
    tables = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(tables) > 1:
        fix = "remove one of them"
        raise UserError(f"folder {folder}", f"both {' and '.join(TABLES)}", "one table of captions", fix)
    found = _table(tables[0]) if tables else _beside(folder, files)
    place = str(tables[0]) if tables else f"folder {folder}"
    errors = [_orphan(place, name) for name in found if name not in files]
    for name in files:
        if not found.get(name):
            if template is None:
                wanted = "a row for each file" if tables else "a .txt beside each file"
                fix = "write it, or give caption_template for files without one"
                errors.append(UserError(place, f"{name} has no caption", wanted, fix))
            else:
                found[name] = [_filled(template, name)]
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(_shortened(errors))
    return found


def _orphan(place: str, name: str) -> UserError:
    fix = "add the file, or remove the caption"
    return UserError(place, f"a caption for {name!r} without its image or clip", "a file for each caption", fix)


def _shortened(errors: list[UserError], limit: int = 10) -> list[UserError]:
    if len(errors) <= limit:
        return errors
    rest = UserError(errors[0].where, f"{len(errors) - limit} more of these", errors[-1].wanted, errors[-1].fix)
    return [*errors[:limit], rest]


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
        lines = [line.strip() for line in _text(path).split("\n") if line.strip()]
        for owner in owners.get(path.with_suffix(""), [path.relative_to(folder).as_posix()]):
            found[owner] = lines
    return found


def _table(path: Path) -> dict[str, list[str]]:
    """Captions from a table; several rows for one file are several captions, and so is a list in a JSON row."""
    rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
    found: dict[str, list[str]] = {}
    for line, row in rows:
        name, text = row.get("file_name"), row.get("text")
        texts: list[Any] = text if isinstance(text, list) else [text]
        if not isinstance(name, str) or not all(isinstance(t, str) for t in texts):
            came = f"{dict(row)}"[:120]
            raise UserError(
                f"{path}, line {line}", came, "text in columns file_name and text", "mend the row or the header"
            )
        captions = [" ".join(t.split()) for t in texts if t.strip()]
        found.setdefault(Path(name).as_posix(), []).extend(captions)
    return found


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    for row in reader:
        yield reader.line_num, {str(name): value for name, value in row.items()}


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as why:
                raise UserError(
                    f"{path}, line {number}", f"not JSON ({why})", "one object a line", "mend the line"
                ) from why
            if not isinstance(row, dict):
                raise UserError(
                    f"{path}, line {number}", line[:60], "an object with file_name and text", "mend the line"
                )
            yield number, row


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as why:
        raise UserError(str(path), f"not UTF-8 ({why})", "UTF-8 text", "save it again as UTF-8") from why
