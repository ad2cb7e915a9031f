"""Tables that name files and captions: CSV, JSON lines, parquet. What the files hold, nothing here asks."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmtrain.errors import UserError

KINDS = (".csv", ".jsonl", ".parquet")
TABLES = tuple(f"metadata{kind}" for kind in KINDS)
"""What a folder's own table may be called."""
COLUMNS = ("file_name", "text")

_ROWS = 4096  # read from a parquet file at once


def captions(path: Path, columns: tuple[str, str] = COLUMNS) -> dict[str, list[str]]:
    """Captions by file name, in the table's order.

    Several rows for one file are several captions, and so is a list in one row; a row without text gives none.

    Raises:
        UserError: naming the row, for one without file name or with something other than text; for a table that cannot
            be read.
    """
    found: dict[str, list[str]] = {}
    for where, row in _rows(path, columns):
        name, text = row.get(columns[0]), row.get(columns[1])
        texts: list[Any] = text if isinstance(text, list) else [text]
        if not isinstance(name, str) or not all(isinstance(t, str) for t in texts):
            came = f"{dict(row)}"[:120]
            wanted = f"text in columns {columns[0]} and {columns[1]}"
            raise UserError(f"{path}, {where}", came, wanted, "mend the row or the header")
        found.setdefault(Path(name).as_posix(), []).extend(" ".join(t.split()) for t in texts if t.strip())
    return found


def read_text(path: Path) -> str:
    """A text file, which must be UTF-8. Raises UserError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as why:
        raise UserError(str(path), f"not UTF-8 ({why})", "UTF-8 text", "save it again as UTF-8") from why


def _rows(path: Path, columns: tuple[str, str]) -> Iterator[tuple[str, dict[str, object]]]:
    if path.suffix == ".parquet":
        return _parquet_rows(path, columns)
    return _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    for row in reader:
        yield f"line {reader.line_num}", {str(name): value for name, value in row.items()}


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            row = json.loads(line)
        except ValueError as why:
            raise UserError(f"{path}, {where}", f"not JSON ({why})", "one object a line", "mend the line") from why
        if not isinstance(row, dict):
            raise UserError(f"{path}, {where}", line[:60], "an object a line", "mend the line")
        yield where, row


def _parquet_rows(path: Path, columns: tuple[str, str]) -> Iterator[tuple[str, dict[str, object]]]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        fix = "install it with: pip install 'mmtrain[parquet]'"
        raise UserError(str(path), "pyarrow is not installed", "pyarrow, which reads parquet", fix) from None
    try:
        with parquet.ParquetFile(path) as file:
            held = file.schema_arrow.names
            if missing := [name for name in columns if name not in held]:
                came = f"no column {' and '.join(missing)} (it has {', '.join(held)})"
                raise UserError(str(path), came, f"columns {', '.join(columns)}", "name the columns that it has")
            number = 0
            for batch in file.iter_batches(_ROWS, columns=list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (arrow.ArrowException, OSError) as why:
        reason = str(why).split("\n")[0]
        raise UserError(str(path), f"does not open as parquet ({reason})", "a parquet file", "write it again") from why
