"""Trivial baselines: answers that need no training, which a model worth deploying beats."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from fovea.task import Fields, FieldValue, Task

MAJORITY_CATEGORY = "majority_category"
CATEGORY_MEDIAN_PRICE = "category_median_price"
NEAREST_NEIGHBOUR = "nearest_neighbour"


def baselines_of(task: Task) -> tuple[str, ...]:
    """Return the names of a task's baselines; without a field of categories there is none by category."""
    by_category = (CATEGORY_MEDIAN_PRICE,) if _category(task) else ()
    return (MAJORITY_CATEGORY, *by_category, NEAREST_NEIGHBOUR)


def trivial_answers(
    task: Task, training: Sequence[Fields], neighbours: Sequence[Fields]
) -> Mapping[str, Sequence[Fields]]:
    """Return each baseline's answer to each row.

    ``majority_category`` is the same for all rows: the typical answer of the whole training split, such as
    the most frequent category and title and the median price. ``nearest_neighbour`` is the truth of the
    training picture that is most like the row's. ``category_median_price`` takes only the category from
    there, and is the typical answer of that category. Where answers state a currency, it is the most frequent
    one, and medians are of the prices in it.

    Args:
        task: The task, whose fields say what is typical.
        training: The truths of the training split; at least one.
        neighbours: For each row, the truths of the training picture nearest to it.
    """
    answers: dict[str, Sequence[Fields]] = {MAJORITY_CATEGORY: [task.typical(training)] * len(neighbours)}
    category = _category(task)
    if category is not None:
        groups: dict[FieldValue, list[Fields]] = defaultdict(list)
        for truth in training:
            groups[truth[category]].append(truth)
        typical = {name: task.typical(truths) for name, truths in groups.items()}
        answers[CATEGORY_MEDIAN_PRICE] = [typical[neighbour[category]] for neighbour in neighbours]
    answers[NEAREST_NEIGHBOUR] = list(neighbours)
    return answers


def _category(task: Task) -> str | None:
    return next((name for name, field in task.fields.items() if field.is_category), None)
