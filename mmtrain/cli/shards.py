"""``mmtrain shards world|pack|index|check|encode``."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.arguments import add_verb, counts, pair, positive, renames, share, shares
from mmtrain.cli.terminal import bar

_COPIES = "where copies of shards behind a URL are kept, all of them (default data/remote)"
_SCENES = ("split", "seed", "captions_each", "two_objects", "pace", "motions", "rename")


def add(verbs: Any) -> None:
    text = "make, index, check and encode shards"
    group = verbs.add_parser("shards", help=text, description=text)
    kinds = group.add_subparsers(metavar="WHAT", required=True)
    world = add_verb(kinds, "world", _world, "write clips of a world whose truth is known")
    world.add_argument("folder", metavar="FOLDER", type=Path)
    world.add_argument("--split", choices=["train", "heldout", "clutter"], default="train")
    world.add_argument("--count", type=positive, default=2000, help="clips (default 2000)")
    world.add_argument("--seed", type=int, default=0)
    world.add_argument("--captions-each", type=positive, default=3, help="wordings of each clip's caption (default 3)")
    world.add_argument("--two-objects", type=share, default=0.3, help="share of clips with two objects (default 0.3)")
    text = "share of the usual way that moving objects go, 0.6 to 1, of one object from 0.45 (default 1: 20 pixels)"
    world.add_argument("--pace", type=float, default=1.0, help=text)
    text = "share of objects that move so, such as circling=0.25; the other motions share the rest (default: evenly)"
    world.add_argument("--motions", metavar="NAME=SHARE,...", type=shares, default={}, help=text)
    world.add_argument("--brand", action="store_true", help="in the style of a made-up brand, captions with its token")
    world.add_argument("--stills", action="store_true", help="the first frame of each clip alone")
    text = "share of clips that are broken, an object vanishing for instance; captions say whole or broken and no more"
    world.add_argument("--broken", metavar="SHARE", dest="broken_share", type=share, help=text)
    text = "other names in captions, such as circle=zorbit,square=kweep: a vocabulary that no model knows"
    world.add_argument("--rename", metavar="WORD=NAME,...", type=renames, default={}, help=text)
    text = "so many PNG pictures and MP4 clips with captions beside them, in the place of shards"
    world.add_argument("--files", metavar="PICTURES,CLIPS", type=counts, help=text)
    world.add_argument("--shard-size", type=positive, default=500, help="clips in a shard (default 500)")
    pack = add_verb(kinds, "pack", _pack, "pack captioned images and clips, or shards again, into shards")
    text = "files, each with a .txt or in a metadata table; a .csv, .jsonl or .parquet; or shards"
    pack.add_argument("source", metavar="SOURCE", help=text)
    pack.add_argument("out", metavar="OUT", type=Path)
    pack.add_argument("--caption-template", metavar="TEXT", help="for files without caption; {name} is the file's")
    pack.add_argument("--columns", metavar="FILE,TEXT", type=pair, default=("file_name", "text"), help="of the table")
    text = "keep samples with this alone, such as width>=256 or words>=3; repeat for more"
    pack.add_argument("--where", metavar="NAME>=NUMBER", action="append", default=[], help=text)
    pack.add_argument("--shard-size", type=positive, default=1000, help="samples to a shard, about (default 1000)")
    pack.add_argument("--max-bad-fraction", type=share, default=0.0, help="share that may fail to decode (default 0)")
    pack.add_argument("--workers", type=positive, default=1, help="processes that write shards (default 1)")
    index = add_verb(kinds, "index", _index, "read shards whole once, and keep what lies where beside them")
    index.add_argument("shards", metavar="SHARDS", help="a folder of tars, one tar, a pattern, or a URL")
    index.add_argument("--copies", metavar="DIR", type=Path, default=Path("data/remote"), help=_COPIES)
    index.add_argument("--verify", action="store_true", help="read unchanged shards again too")
    index.add_argument("--workers", type=positive, default=1, help="processes that read shards (default 1)")
    check = add_verb(kinds, "check", _check, "read every sample and report what is wrong")
    check.add_argument("shards", metavar="SHARDS", help="a folder of tars, one tar, a pattern, or a URL")
    check.add_argument("--copies", metavar="DIR", type=Path, default=Path("data/remote"), help=_COPIES)
    check.add_argument("--heldout", metavar="SHARDS", help="shards that none of these samples should be in")
    check.add_argument("--json", metavar="FILE", type=Path, help="write the report there too")
    text = "share of samples that training would refuse (default 0)"
    check.add_argument("--max-bad-fraction", type=share, default=0.0, help=text)
    text = "share of samples that only repeat others (default 1)"
    check.add_argument("--max-duplicate-fraction", type=share, default=1.0, help=text)
    text = "share of the held-out samples that are in here (default 0)"
    check.add_argument("--max-leak-fraction", type=share, default=0.0, help=text)
    check.add_argument("--workers", type=positive, default=1, help="processes that read and decode (default 1)")
    encode = add_verb(
        kinds,
        "encode",
        _encode,
        "write a recipe's encoder outputs as shards, on trainer.devices at once",
        overrides=True,
    )
    encode.usage = "%(prog)s RECIPE --to DIR [key=value ...] [options]"
    encode.add_argument("recipe", metavar="RECIPE")
    encode.add_argument("--to", metavar="DIR", type=Path, required=True)
    encode.add_argument("--batch-size", type=positive, default=16)


def _world(args: argparse.Namespace) -> None:
    from mmtrain.data.shards import write_world

    if args.files is not None and args.stills:
        args.parser.error("--files and --stills exclude each other")
    if args.files is not None and args.broken_share is not None:
        args.parser.error("--files and --broken exclude each other")
    if args.files is not None:
        _files(args)
        return
    what = "stills" if args.stills else "clips"
    with bar(what) as progress:
        chosen = {name: vars(args)[name] for name in (*_SCENES, "count", "shard_size", "broken_share")}
        folder = write_world(args.folder, **chosen, branded=args.brand, stills=args.stills, progress=progress)
    print(f"{folder}: {args.count} {what}")


def _files(args: argparse.Namespace) -> None:
    from mmtrain.data.files import write_files

    images, clips = args.files
    with bar("files") as progress:
        names = ("split", "seed", "captions_each", "two_objects", "pace", "motions", "rename")
        chosen = {name: vars(args)[name] for name in names}
        how = {"images": images, "clips": clips, "branded": args.brand, "progress": progress}
        folder = write_files(args.folder, **chosen, **how)
    print(f"{folder}: {images} pictures and {clips} clips")


def _pack(args: argparse.Namespace) -> None:
    from mmtrain.data.pack import pack

    names = ("caption_template", "columns", "where", "shard_size", "max_bad_fraction", "workers")
    with bar("files") as progress:
        packed = pack(args.source, args.out, **{name: vars(args)[name] for name in names}, progress=progress)
    print(packed.text())


def _here(shards: str, copies: Path) -> str:
    """Shards as they are, or copies of those behind a URL."""
    from mmtrain.data.remote import fetched, is_remote

    return fetched(shards, copies) if is_remote(shards) else shards


def _index(args: argparse.Namespace) -> None:
    from mmtrain.data.index import Index

    with bar("bytes") as progress:
        index = Index.of(_here(args.shards, args.copies), verify=args.verify, workers=args.workers, progress=progress)
    print(f"{args.shards}: {len(index)} samples in {len(index.shards)} shards, fingerprint {index.fingerprint}")


def _check(args: argparse.Namespace) -> int:
    import json

    from mmtrain.data.check import check, readable

    names = ("max_bad_fraction", "max_duplicate_fraction", "max_leak_fraction", "workers")
    with bar("checked") as progress:
        chosen = {name: vars(args)[name] for name in names}
        heldout = args.heldout and _here(args.heldout, args.copies)
        report = check(_here(args.shards, args.copies), heldout=heldout, **chosen, progress=progress)
    report["path"] = args.shards
    print(readable(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if report["ok"] else 1


def _encode(args: argparse.Namespace) -> None:
    from mmtrain.config import checked, compose
    from mmtrain.train.encode import encode

    cfg = checked(compose(args.recipe, args.overrides))
    with bar("samples") as progress:
        written = encode(cfg, args.to, args.batch_size, progress)
    if written:
        print(written)
