"""No adapter at all: the backbone's own weights train, by an ordered list of name patterns."""

from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from mmtrain.errors import UserError


class Full(nn.Module):
    """Weights of the backbone's network, chosen by patterns.

    Args:
        train: names that train (shell patterns), in order: the last that matches a name decides, and one that begins
            with ``!`` leaves it frozen.
        freeze: names that stay frozen although ``train`` matches them.
    """

    def __init__(self, *, train: list[str], freeze: list[str]) -> None:
        super().__init__()
        self.train_patterns, self.freeze_patterns = train, freeze
        self._chosen: dict[str, nn.Parameter] = {}

    def attach(self, backbone: Any) -> None:
        """Choose the weights.

        Raises:
            UserError: a pattern matches no weight.
        """
        names = dict(backbone.network.named_parameters())
        for pattern in [*self.train_patterns, *self.freeze_patterns]:
            if not any(fnmatchcase(name, pattern.removeprefix("!")) for name in names):
                raise UserError(
                    "adapter full", f"the pattern {pattern!r} matches no weight", "a weight's name", "correct it"
                )
        for name, weight in names.items():
            matching = [p for p in self.train_patterns if fnmatchcase(name, p.removeprefix("!"))]
            wanted = bool(matching) and not matching[-1].startswith("!")
            if wanted and not any(fnmatchcase(name, p) for p in self.freeze_patterns):
                self._chosen[name] = weight.requires_grad_(True)

    def named_weights(self) -> dict[str, nn.Parameter]:
        """What trains, by name."""
        return self._chosen

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Fill what trains; strict."""
        load_weights(self._chosen, weights, "adapter full")


def load_weights(own: dict[str, nn.Parameter], given: dict[str, Tensor], where: str) -> None:
    """Copy tensors into parameters of the same names and shapes.

    Raises:
        UserError: names or shapes differ.
    """
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    wrong = [n for n in own.keys() & given.keys() if own[n].shape != given[n].shape]
    if missing or unexpected or wrong:
        raise UserError(
            where,
            f"missing {missing[:3]}, unexpected {unexpected[:3]}, of another shape {wrong[:3]}",
            f"the {len(own)} tensors of this adapter",
            "use weights made with the same adapter settings",
        )
    for name, parameter in own.items():
        parameter.data.copy_(given[name])
