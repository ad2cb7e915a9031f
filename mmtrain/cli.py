"""The command line: verbs and their options. Each verb imports what it needs when it runs, so that help is instant.

Holds no work of its own: a verb is a thin call. Exit status 0 done, 1 `shards check` found too much, 2 a user's
mistake (one block, no stack trace), 130 interrupted; anything else is our bug and shows its trace.
"""

import argparse
import contextlib
import difflib
import errno
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmtrain.errors import UserError, UserErrors
from mmtrain.threads import keep_pages

Verb = Callable[[argparse.Namespace], int | None]
_PLACES = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)
"""What the system says about a path or a disk, and a user can mend."""


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors like any other."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        where = self.prog.removeprefix("mmtrain").strip() or "command line"
        raise UserError(where, message, f"what `{self.prog} --help` lists", _fix(message) or "correct it")


def _fix(message: str) -> str | None:
    """A suggestion for argparse's "invalid choice: 'trian' (choose from 'check', 'train')"."""
    came, *known = re.findall(r"'([^']+)'", message) if "invalid choice" in message else ("",)
    close = difflib.get_close_matches(came, known, n=1)
    return f"perhaps you meant {close[0]}" if close else None


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    trace = "--trace" in words
    try:
        args = _parse(words)
        keep_pages()
        status: int | None = args.run(args)
    except UserError as error:
        if trace:
            raise
        print(_block(error), file=sys.stderr)
        return 2
    except OSError as error:
        if trace or error.errno not in _PLACES:
            raise
        print(
            f"mmtrain: {error.filename or 'files'}: {error.strerror}; a place that can be read and written; "
            "choose another, or mend this one.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        if trace:
            raise
        print("mmtrain: interrupted", file=sys.stderr)
        return 130
    return status or 0


def _block(error: UserError) -> str:
    if isinstance(error, UserErrors) and len(error.errors) > 1:
        lines = "".join(f"\n  {e}" for e in error.errors)
        return f"mmtrain: {len(error.errors)} mistakes{lines}"
    return f"mmtrain: {error}"


def _parse(words: list[str]) -> argparse.Namespace:
    args, extras = parser().parse_known_args([word for word in words if word != "--trace"])
    loose = [word for word in extras if word.startswith("-") or not args.takes_overrides]
    if loose:
        args.parser.error(f"unrecognised: {' '.join(loose)}")
    args.overrides = extras
    return args


def parser() -> argparse.ArgumentParser:
    """The whole surface; a test holds it frozen."""
    top = _Parser(prog="mmtrain", description="Train adapters on frozen backbones, and make video with them.")
    top.add_argument("--trace", action="store_true", help="show the stack trace of a mistake")
    verbs = top.add_subparsers(metavar="VERB", required=True)
    _add_check(verbs)
    _add_train(verbs)
    _add_shards(verbs)
    _add_export(verbs)
    _add_sample(verbs)
    _add_evaluate(verbs)
    return top


def _add(verbs: Any, name: str, run: Verb, text: str, overrides: bool = False) -> argparse.ArgumentParser:
    usage = f"mmtrain {name} RECIPE [key=value ...] [options]" if overrides else None
    added: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text, usage=usage)
    added.set_defaults(run=run, parser=added, takes_overrides=overrides)
    return added


# check and train ------------------------------------------------------------------------------------------------------


def _add_check(verbs: Any) -> None:
    verb = _add(verbs, "check", _check, "check a recipe's whole config; build nothing", overrides=True)
    verb.add_argument("recipe", metavar="RECIPE", help="a name from recipes/, or a path to a .yaml file")


def _check(args: argparse.Namespace) -> None:
    from mmtrain import config

    cfg = config.checked(config.compose(args.recipe, args.overrides))
    nodes = [f"{key} {cfg[key]._target_}" for key in ("dataset", "backbone", "objective")]
    print(f"{args.recipe}: no fault found ({', '.join(nodes)}; adapters {', '.join(cfg.adapters) or 'none'})")


def _add_train(verbs: Any) -> None:
    verb = _add(verbs, "train", _train, "train what a recipe says; a full Hydra application", overrides=True)
    verb.add_argument("recipe", metavar="RECIPE", nargs="?", help="a name from recipes/, or a path to a .yaml file")
    verb.add_argument("--resume", metavar="RUN", help="continue a run: its folder, the start of its id, or `latest`")
    hydra = verb.add_argument_group("Hydra")
    hydra.add_argument("-m", "--multirun", action="store_true", help="one run per combination of key=a,b,c")
    hydra.add_argument("-c", "--cfg", choices=["job", "hydra", "all"], help="print the config and stop")
    hydra.add_argument("--resolve", action="store_true", help="with --cfg: resolve interpolations")
    hydra.add_argument("-p", "--package", help="with --cfg: print this part only")
    hydra.add_argument("-i", "--info", nargs="?", const="all", metavar="WHAT", help="print how the config came about")
    hydra.add_argument("-cd", "--config-dir", metavar="DIR", help="a folder of your own beside conf/")


def _train(args: argparse.Namespace) -> None:
    """Hand the recipe to Hydra, which calls ``job`` once, or once per combination of a sweep."""
    if args.recipe is None:
        return _resume(args)
    from hydra._internal.utils import _run_hydra, get_args_parser
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from mmtrain.config import checked, recipe

    own: list[Exception] = []

    def job(cfg: Any) -> str | None:
        try:
            checked(cfg)
            from mmtrain.run import Run
            from mmtrain.train.fit import fit

            return str(fit(cfg, resume=Run.find(args.resume, cfg.folder).path if args.resume else None))
        except Exception as error:
            own.append(error)
            if HydraConfig.get().mode is not RunMode.RUN:
                raise  # through the sweep's launcher, which may bring it back from another machine
            return None

    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, where Hydra would print and exit by itself
    reader = get_args_parser()
    hydra_args = reader.parse_args(_hydra_flags(args) + recipe.hydra_words(args.recipe, args.overrides))
    try:
        _run_hydra(hydra_args, reader, job, str(recipe.CONF), "config")
    except Exception as error:
        if own or not recipe.is_users(error):
            raise
        raise recipe.explain(error) from error
    if own:
        raise own[0]
    return None


def _resume(args: argparse.Namespace) -> None:
    """Continue a run from its own manifest, which holds its whole config."""
    if args.resume is None:
        args.parser.error("a RECIPE is required, or --resume RUN")
    from mmtrain.config import checked
    from mmtrain.run import Run
    from mmtrain.train.fit import fit

    run = Run.find(args.resume)
    fit(checked(run.cfg), resume=run.path)


def _hydra_flags(args: argparse.Namespace) -> list[str]:
    flags = [f"--{name}" for name in ("multirun", "resolve") if vars(args)[name]]
    for name in ("cfg", "package", "info", "config_dir"):
        if vars(args)[name] is not None:
            flags += [f"--{name.replace('_', '-')}", vars(args)[name]]
    return flags


# shards ---------------------------------------------------------------------------------------------------------------


def _add_shards(verbs: Any) -> None:
    text = "make, index, check and encode shards"
    group = verbs.add_parser("shards", help=text, description=text)
    kinds = group.add_subparsers(metavar="WHAT", required=True)
    world = _add(kinds, "world", _shards_world, "write clips of a world whose truth is known")
    world.add_argument("folder", metavar="FOLDER", type=Path)
    world.add_argument("--split", choices=["train", "heldout", "clutter"], default="train")
    world.add_argument("--count", type=_positive, default=2000, help="clips (default 2000)")
    world.add_argument("--seed", type=int, default=0)
    world.add_argument("--captions-each", type=_positive, default=3, help="wordings of each clip's caption (default 3)")
    world.add_argument("--two-objects", type=_share, default=0.3, help="share of clips with two objects (default 0.3)")
    world.add_argument("--shard-size", type=_positive, default=500, help="clips in a shard (default 500)")
    pack = _add(kinds, "pack", _shards_pack, "pack captioned images and clips, or shards again, into shards")
    text = "files, each with a .txt or in a metadata table; a .csv, .jsonl or .parquet; or shards"
    pack.add_argument("source", metavar="SOURCE", help=text)
    pack.add_argument("out", metavar="OUT", type=Path)
    pack.add_argument("--caption-template", metavar="TEXT", help="for files without caption; {name} is the file's")
    pack.add_argument("--columns", metavar="FILE,TEXT", type=_pair, default=("file_name", "text"), help="of the table")
    text = "keep samples with this alone, such as width>=256 or words>=3; repeat for more"
    pack.add_argument("--where", metavar="NAME>=NUMBER", action="append", default=[], help=text)
    pack.add_argument("--shard-size", type=_positive, default=1000, help="samples to a shard, about (default 1000)")
    pack.add_argument("--max-bad-fraction", type=_share, default=0.0, help="share that may fail to decode (default 0)")
    pack.add_argument("--workers", type=_positive, default=1, help="processes that write shards (default 1)")
    index = _add(kinds, "index", _shards_index, "read shards whole once, and keep what lies where beside them")
    index.add_argument("shards", metavar="SHARDS", help="a folder of tars, one tar, or a pattern")
    index.add_argument("--verify", action="store_true", help="read unchanged shards again too")
    index.add_argument("--workers", type=_positive, default=1, help="processes that read shards (default 1)")
    check = _add(kinds, "check", _shards_check, "read every sample and report what is wrong")
    check.add_argument("shards", metavar="SHARDS", help="a folder of tars, one tar, or a pattern")
    check.add_argument("--heldout", metavar="SHARDS", help="shards that none of these samples should be in")
    check.add_argument("--json", metavar="FILE", type=Path, help="write the report there too")
    text = "share of samples that training would refuse (default 0)"
    check.add_argument("--max-bad-fraction", type=_share, default=0.0, help=text)
    text = "share of samples that only repeat others (default 1)"
    check.add_argument("--max-duplicate-fraction", type=_share, default=1.0, help=text)
    text = "share of the held-out samples that are in here (default 0)"
    check.add_argument("--max-leak-fraction", type=_share, default=0.0, help=text)
    check.add_argument("--workers", type=_positive, default=1, help="processes that read and decode (default 1)")
    encode = _add(kinds, "encode", _shards_encode, "write a recipe's encoder outputs as shards", overrides=True)
    encode.add_argument("recipe", metavar="RECIPE")
    encode.add_argument("--to", metavar="DIR", type=Path, required=True)
    encode.add_argument("--batch-size", type=_positive, default=16)


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, as the (done, total) callback that the data room takes."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _shards_world(args: argparse.Namespace) -> None:
    from mmtrain.data.shards import write_world

    names = ("split", "count", "seed", "captions_each", "two_objects", "shard_size")
    with _bar("clips") as progress:
        folder = write_world(args.folder, **{name: vars(args)[name] for name in names}, progress=progress)
    print(f"{folder}: {args.count} clips")


def _shards_pack(args: argparse.Namespace) -> None:
    from mmtrain.data.pack import pack

    names = ("caption_template", "columns", "where", "shard_size", "max_bad_fraction", "workers")
    with _bar("files") as progress:
        packed = pack(args.source, args.out, **{name: vars(args)[name] for name in names}, progress=progress)
    print(packed.text())


def _shards_index(args: argparse.Namespace) -> None:
    from mmtrain.data.index import Index

    with _bar("bytes") as progress:
        index = Index.of(args.shards, verify=args.verify, workers=args.workers, progress=progress)
    print(f"{args.shards}: {len(index)} samples in {len(index.shards)} shards, fingerprint {index.fingerprint}")


def _shards_check(args: argparse.Namespace) -> int:
    import json

    from mmtrain.data.check import check, readable

    names = ("heldout", "max_bad_fraction", "max_duplicate_fraction", "max_leak_fraction", "workers")
    with _bar("checked") as progress:
        report = check(args.shards, **{name: vars(args)[name] for name in names}, progress=progress)
    print(readable(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if report["ok"] else 1


def _shards_encode(args: argparse.Namespace) -> None:
    from mmtrain.config import build, checked, compose
    from mmtrain.data.cache import encode_shards

    cfg = checked(compose(args.recipe, args.overrides))
    source, backbone = build(cfg.dataset), build(cfg.backbone)
    how = {"encode": backbone.encode, "encoder_id": backbone.encoder_id, "batch_size": args.batch_size}
    with _bar("samples") as progress:
        print(encode_shards(source, args.to, **how, progress=progress))


# export, sample, evaluate, report -------------------------------------------------------------------------------------


def _add_export(verbs: Any) -> None:
    verb = _add(verbs, "export", _export, "write a run's artifact and a folder that vanilla diffusers opens")
    verb.add_argument("run_folder", metavar="RUN", help="a run's folder, the start of its id, or `latest`")
    verb.add_argument("--to", metavar="DIR", type=Path, help="where to (default: exports/ and the run's name)")
    verb.add_argument("--dtype", choices=["fp16", "fp32"], default="fp32")


def _export(args: argparse.Namespace) -> None:
    _quiet()
    from mmtrain.export.diffusers import export

    print(export(args.run_folder, args.to, args.dtype))


def _quiet() -> None:
    """The libraries' own bars and advice to their developers; they read this when they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)


def _add_sample(verbs: Any) -> None:
    verb = _add(verbs, "sample", _sample, "make a video from a prompt, an image, or both")
    verb.add_argument("artifact", metavar="ARTIFACT", help="an exported folder, or a pipeline's folder or hub id")
    verb.add_argument("--prompt", action="append", default=[], help="what to show; repeat for several videos")
    verb.add_argument("--prompts-file", metavar="FILE", type=Path, help="prompts, one a line")
    verb.add_argument("--image", metavar="FILE", type=Path, help="a first frame")
    text = "who draws one where there is none: sd (the shipped one), none (text alone), or a folder or hub id"
    verb.add_argument("--first-frame", metavar="sd|none|SD", help=text)
    text = "CLIP whose text tower reads the prompts, for a plain Stable Video Diffusion"
    verb.add_argument("--text", metavar="CLIP", help=text)
    verb.add_argument("--negative-prompt", help="what to steer away from")
    verb.add_argument("--guidance-scale", type=_finite, help="how hard to steer; 1 is not at all")
    verb.add_argument("--num-frames", type=_positive, help="of a clip (default: the model's)")
    verb.add_argument("--height", type=_positive, help="pixels (default: the model's)")
    verb.add_argument("--width", type=_positive, help="pixels (default: the model's)")
    verb.add_argument("--fps", type=_positive, default=25, help="of the file that is written (default 25)")
    verb.add_argument("--steps", type=_positive, help="inference steps")
    verb.add_argument("--seed", type=_count, default=0, help="of the first video; the next ones count on (default 0)")
    verb.add_argument("--out", metavar="DIR", type=Path, help="default: samples/ and the time")


def _sample(args: argparse.Namespace) -> None:
    _quiet()
    from mmtrain.sample.write import sample

    names = ("negative_prompt", "guidance_scale", "num_frames", "height", "width")
    settings = {name: vars(args)[name] for name in names} | {"num_inference_steps": args.steps}
    asked = {n: vars(args)[n] for n in ("prompts_file", "image", "first_frame", "text", "seed", "fps", "out")}
    with _bar("steps") as progress:
        made = sample(args.artifact, prompts=args.prompt, **asked, settings=settings, progress=progress)
    print("\n".join(str(path) for path in made))


def _add_evaluate(verbs: Any) -> None:
    evaluate = _add(verbs, "evaluate", _evaluate, "compare base and adapted on held-out prompts, with intervals")
    evaluate.add_argument("artifact", metavar="ARTIFACT", type=Path, help="an exported folder")
    text = "heldout: scenes of the world (default); or a .txt of prompts, one a line, or a .jsonl"
    evaluate.add_argument("--prompts-from", metavar="FILE", default="heldout", help=text)
    evaluate.add_argument("--count", type=_positive, default=48, help="held-out prompts of one object (default 48)")
    evaluate.add_argument("--two-objects", type=_count, default=16, help="and of two objects (default 16)")
    text = "first frame by Stable Diffusion, none, the true one; several with commas (default sd)"
    evaluate.add_argument("--ways", metavar="sd,none,image", default="sd", help=text)
    evaluate.add_argument("--metrics", default="fulfilment", help="names in conf/metric, with commas")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--guidance-scale", type=float)
    evaluate.add_argument("--steps", type=_positive, help="inference steps")
    evaluate.add_argument("--negative-prompt", default="", help="what to steer away from")
    evaluate.add_argument("--num-frames", type=_positive, help="of a clip (default: the model's)")
    evaluate.add_argument("--height", type=_positive, help="pixels (default: the model's)")
    evaluate.add_argument("--width", type=_positive, help="pixels (default: the model's)")
    evaluate.add_argument("--first-frame", metavar="SD", help="draws first frames (default: the shipped one)")
    evaluate.add_argument("--batch", type=_positive, default=8, help="clips made at once (default 8)")
    evaluate.add_argument("--out", metavar="DIR", type=Path, help="default: evaluations/ and the artifact's name")
    report = _add(verbs, "report", _report, "write one self-contained HTML page about a run and its evaluation")
    report.add_argument("run_folder", metavar="RUN", help="a run's folder, the start of its id, or `latest`")
    report.add_argument("--evaluation", metavar="DIR", type=Path, help="default: the newest in evaluations/")
    report.add_argument("--out", metavar="FILE", type=Path, help="default: reports/ and the run's name")


def _evaluate(args: argparse.Namespace) -> None:
    from mmtrain.config import shipped
    from mmtrain.evaluate.arms import Settings
    from mmtrain.evaluate.run import evaluate

    names = ("guidance_scale", "negative_prompt", "num_frames", "height", "width")
    chosen: dict[str, Any] = {"num_inference_steps": args.steps} if args.steps is not None else {}
    chosen |= {name: vars(args)[name] for name in names}
    settings = Settings(first_frame=args.first_frame or shipped("sd"), **chosen)
    asked = {name: vars(args)[name] for name in ("prompts_from", "count", "two_objects", "seed", "batch", "out")}
    asked |= {name: [word for word in vars(args)[name].split(",") if word] for name in ("ways", "metrics")}
    print(evaluate(args.artifact, settings=settings, **asked))


def _report(args: argparse.Namespace) -> None:
    from mmtrain.evaluate.report import report

    print(report(args.run_folder, evaluation=args.evaluation, out=args.out))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number below 2^63")
    return int(text)


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def _pair(text: str) -> tuple[str, str]:
    names = text.split(",")
    if len(names) != 2 or not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not two names with a comma between")
    return names[0], names[1]


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1")
    return value
