"""Zero-shot classification (Radford et al. 2021, section 3.1): the class whose prompts are nearest, the embeddings of
several templates averaged into one (section 3.1.4)."""

from dataclasses import dataclass

import numpy as np

from mmtrain.errors import UserError
from mmtrain.evaluate.cases import Numbers
from mmtrain.evaluate.embedded import Embedded, EmbeddingMetric


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question with its possible answers.

    Attributes:
        of: where the right answer stands in a sample's facts, such as ``objects.0.colour``.
        names: of the classes; or the right answer by what a prompt calls it, where the two differ.
        templates: prompts with ``{}`` where the class's name goes.
    """

    of: str
    names: list[str] | dict[str, str]
    templates: list[str]


class ZeroShot(EmbeddingMetric):
    """Whether the nearest class is the right one, for each question.

    Args:
        questions: by the name under which the number is told.
    """

    def __init__(self, *, questions: dict[str, Question]) -> None:
        for name, question in questions.items():
            if not question.templates or any("{}" not in template for template in question.templates):
                came = f"templates {question.templates}"
                raise UserError(f"metric zero_shot, {name}", came, "prompts with {} in them", "write some")
        self.questions = questions

    def __call__(self, seen: Embedded) -> dict[str, list[Numbers]]:
        numbers: list[Numbers] = [{} for _ in seen.items]
        for name, question in self.questions.items():
            known = question.names if isinstance(question.names, dict) else {word: word for word in question.names}
            similarity = seen.visual @ class_embeddings(seen, list(known.values()), question.templates).T
            nearest = similarity.argmax(1)
            for item, number, i in zip(seen.items, numbers, nearest, strict=True):
                number[name] = list(known)[i] == item.fact(question.of)
        return {"zero-shot classes": numbers}


def class_embeddings(seen: Embedded, names: list[str], templates: list[str]) -> np.ndarray:
    """``[classes d]`` of unit length: each template's embedding has unit length, then their mean has."""
    prompts = [template.replace("{}", name) for name in names for template in templates]
    mean = seen.embed(prompts).reshape(len(names), len(templates), -1).mean(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)
