"""Each recipe with expected numbers gives them: to the bit on the same machine and code, else within its interval."""

from pathlib import Path

import pytest

from mmtrain import cli
from mmtrain.config.recipe import RECIPES

MEASURED = sorted(path.name.removesuffix(".expected.json") for path in RECIPES.glob("*.expected.json"))


@pytest.mark.parametrize("recipe", MEASURED)
def test_a_recipe_gives_what_is_expected(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    status = cli.main(["reproduce", recipe, "--out", str(tmp_path)])
    assert status == 0, capsys.readouterr().out
