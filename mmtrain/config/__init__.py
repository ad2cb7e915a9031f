"""Config, from the shell's words to built objects: compose, check everything, build.

The constructor is the schema: keyword-only, annotated, no default for what is required. This package holds no settings
of its own; the root's schema is the constructor of ``mmtrain.run.Run``, which ``conf/config.yaml`` names like any other
target.
"""

from mmtrain.config.faults import SUPPLIED, check, checked, checked_node, checked_parts
from mmtrain.config.node import build
from mmtrain.config.recipe import compose, explain, recipes, shipped
from mmtrain.config.target import ALLOWED, locate

__all__ = [
    "ALLOWED",
    "SUPPLIED",
    "build",
    "check",
    "checked",
    "checked_node",
    "checked_parts",
    "compose",
    "explain",
    "locate",
    "recipes",
    "shipped",
]
