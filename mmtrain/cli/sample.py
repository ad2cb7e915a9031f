"""``mmtrain sample``: videos from prompts and images."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.arguments import add_verb, count, finite, positive
from mmtrain.cli.terminal import bar, quiet


def add(verbs: Any) -> None:
    verb = add_verb(verbs, "sample", _sample, "make a video from a prompt, an image, or both")
    verb.add_argument("artifact", metavar="ARTIFACT", help="an exported folder, or a pipeline's folder or hub id")
    verb.add_argument("--prompt", action="append", default=[], help="what to show; repeat for several videos")
    verb.add_argument("--prompts-file", metavar="FILE", type=Path, help="prompts, one a line")
    verb.add_argument("--image", metavar="FILE", type=Path, help="a first frame")
    text = "who draws one where there is none: sd (the shipped one), none (text alone), or a folder or hub id"
    verb.add_argument("--first-frame", metavar="sd|none|SD", help=text)
    text = "CLIP whose text tower reads the prompts, for a plain Stable Video Diffusion"
    verb.add_argument("--text", metavar="CLIP", help=text)
    verb.add_argument("--negative-prompt", help="what to steer away from")
    verb.add_argument("--guidance-scale", type=finite, help="how hard to steer; 1 is not at all")
    verb.add_argument("--num-frames", type=positive, help="of a clip (default: the model's)")
    verb.add_argument("--height", type=positive, help="pixels (default: the model's)")
    verb.add_argument("--width", type=positive, help="pixels (default: the model's)")
    verb.add_argument("--fps", type=positive, default=25, help="of the file that is written (default 25)")
    verb.add_argument("--steps", type=positive, help="inference steps")
    verb.add_argument("--seed", type=count, default=0, help="of the first video; the next ones count on (default 0)")
    verb.add_argument("--out", metavar="DIR", type=Path, help="default: samples/ and the time")


def _sample(args: argparse.Namespace) -> None:
    quiet()
    from mmtrain.sample.write import sample

    names = ("negative_prompt", "guidance_scale", "num_frames", "height", "width")
    settings = {name: vars(args)[name] for name in names} | {"num_inference_steps": args.steps}
    asked = {n: vars(args)[n] for n in ("prompts_file", "image", "first_frame", "text", "seed", "fps", "out")}
    with bar("steps") as progress:
        made = sample(args.artifact, prompts=args.prompt, **asked, settings=settings, progress=progress)
    print("\n".join(str(path) for path in made))
