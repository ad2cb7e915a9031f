"""Frozen networks, one file a family.

transformers and diffusers announce on import which package they would rather have had, and report keys
that `weights.load` accounts for itself: they speak up here for errors only, unless the user asks for more.
"""

import os

from diffusers.utils import logging as _diffusers
from transformers.utils import logging as _transformers

if "TRANSFORMERS_VERBOSITY" not in os.environ:
    _transformers.set_verbosity_error()
if "DIFFUSERS_VERBOSITY" not in os.environ:
    _diffusers.set_verbosity_error()
