"""``mmtrain sample``: videos from prompts and images."""

import argparse
import sys
from pathlib import Path
from typing import Any

from mmtrain.cli.arguments import add_bits, add_verb, count, finite, positive
from mmtrain.cli.terminal import bar, quiet


def add(verbs: Any) -> None:
    verb = add_verb(verbs, "sample", _sample, "make a video from a prompt, an image, or both")
    verb.add_argument("artifact", metavar="ARTIFACT", help="an exported folder, or a pipeline's folder or hub id")
    verb.add_argument("--prompt", action="append", default=[], help="what to show; repeat for several videos")
    verb.add_argument("--prompts-file", metavar="FILE", type=Path, help="prompts, one a line")
    verb.add_argument("--image", metavar="FILE", type=Path, help="a first frame")
    text = "who draws one where there is none: sd (the shipped one), none (text alone), or a folder or hub id"
    verb.add_argument("--first-frame", metavar="sd|none|SD", help=text)
    verb.add_argument("--first-frame-guidance", type=finite, metavar="SCALE", help="its guidance (default: its own)")
    text = "CLIP whose text tower reads the prompts, for a plain Stable Video Diffusion"
    verb.add_argument("--text", metavar="CLIP", help=text)
    text = "prior that makes of a prompt the image embedding which a Stable Video Diffusion sees (the unCLIP way)"
    verb.add_argument("--prior", metavar="PRIOR", help=text)
    verb.add_argument("--negative-prompt", help="what to steer away from")
    verb.add_argument("--guidance-scale", type=finite, help="how hard to steer; 1 is not at all")
    text = "noise level below which nothing is steered (default of words: 5)"
    verb.add_argument("--guidance-above", type=finite, metavar="SIGMA", help=text)
    text = "of a clip (default: the model's); more are made in chunks, each begun from the end of the one before"
    verb.add_argument("--num-frames", "--frames", metavar="N", type=positive, help=text)
    verb.add_argument("--overlap", metavar="K", type=positive, help="frames that chunks share (default 1)")
    verb.add_argument("--decode-chunk-size", metavar="N", type=positive, help="frames decoded at once; saves memory")
    verb.add_argument("--strength", type=finite, default=1.0, help="of the style: 0 is the base (default 1)")
    text = "a further artifact on the same base, and its strength; repeat for more"
    verb.add_argument("--mix", metavar="ARTIFACT=STRENGTH", type=_weighted, action="append", default=[], help=text)
    add_bits(verb)
    verb.add_argument("--height", type=positive, help="pixels (default: the model's)")
    verb.add_argument("--width", type=positive, help="pixels (default: the model's)")
    verb.add_argument("--fps", type=positive, default=25, help="of the file that is written (default 25)")
    verb.add_argument("--steps", type=positive, help="inference steps")
    verb.add_argument("--seed", type=count, default=0, help="of the first video; the next ones count on (default 0)")
    verb.add_argument("--out", metavar="DIR", type=Path, help="default: samples/ and the time")
    verb.add_argument("--format", choices=["mp4", "gif", "webp", "png"], default="mp4", help="of a clip (default mp4)")
    verb.add_argument("--repeat", type=positive, default=1, help="times that each frame is shown (default 1)")
    marks = verb.add_argument_group("provenance", "every file says that it is AI-generated; `mmtrain verify` reads it")
    marks.add_argument("--watermark-key", metavar="KEY", help="a secret of your own (default: a public one)")
    marks.add_argument("--no-watermark", action="store_true", help="leave the invisible mark out")
    text = "chain, leaf first, that signs content credentials"
    marks.add_argument("--certificate", metavar="PEM", type=Path, help=text)
    marks.add_argument("--private-key", metavar="PEM", type=Path, help="of the certificate")


def _sample(args: argparse.Namespace) -> None:
    quiet()
    from mmtrain.sample.files import Files
    from mmtrain.sample.held import bits_that_pay
    from mmtrain.sample.write import sample

    sizes = ("num_frames", "height", "width", "overlap", "decode_chunk_size")
    names = ("negative_prompt", "guidance_scale", "guidance_above", "first_frame_guidance", *sizes)
    settings = {name: vars(args)[name] for name in names} | {"num_inference_steps": args.steps}
    options = ("prompts_file", "image", "first_frame", "text", "prior", "seed", "strength", "out")
    asked = {name: vars(args)[name] for name in options}
    asked["bits"] = bits_that_pay() if args.bits == "auto" else args.bits
    how = Files(format=args.format, fps=args.fps, repeat=args.repeat, provenance=_provenance(args))
    with bar("steps") as progress:
        given = {"prompts": args.prompt, "mix": dict(args.mix), "files": how, "settings": settings}
        made = sample(args.artifact, **asked, **given, progress=progress)
    print("\n".join(str(path) for path in made.files))
    if made.usual:
        words = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in made.usual.items())
        print(f"sampled as the model's own folder says: {words}", file=sys.stderr)
    if made.held is not None:
        before, after = (size / 1e6 for size in made.held)
        print(f"network held in {after:.1f} MB instead of {before:.1f} (--bits)", file=sys.stderr)
    if made.network is not None:
        print(f"network by ONNX Runtime ({made.network})", file=sys.stderr)
    print(made.marks, file=sys.stderr)


def _provenance(args: argparse.Namespace) -> Any:
    from mmtrain.sample.credentials import Signer
    from mmtrain.sample.provenance import Provenance
    from mmtrain.sample.watermark import KEY

    if (args.certificate is None) != (args.private_key is None):
        args.parser.error("--certificate and --private-key belong together")
    if args.no_watermark and args.watermark_key is not None:
        args.parser.error("--watermark-key and --no-watermark exclude each other")
    signer = None if args.certificate is None else Signer(args.certificate, args.private_key)
    return Provenance(key=None if args.no_watermark else args.watermark_key or KEY, signer=signer)


def _weighted(text: str) -> tuple[str, float]:
    folder, _, strength = text.rpartition("=")
    if not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder, an equals sign and a number")
    return folder, finite(strength)
