"""Trivial answers from the training split, which a model worth deploying beats. Pure functions."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import median

from fovea.metrics import Fields, Roles
from fovea.task import FieldValue, Task

MAJORITY_CATEGORY = "majority_category"
CATEGORY_MEDIAN_PRICE = "category_median_price"
NEAREST_NEIGHBOUR = "nearest_neighbour"


def trivial_answers(
    task: Task, training: Sequence[Fields], neighbours: Sequence[Fields]
) -> Mapping[str, Sequence[Fields]]:
    """Return what each baseline answers to each row.

    ``majority_category`` always says the same: the most frequent category and title, and the median price, of
    the whole training split. ``nearest_neighbour`` says what is true of the training picture that is most
    like the one that is asked about. ``category_median_price`` takes only the category from there, and says
    the category's most frequent title and its median price. Where answers state a currency, it is the most
    frequent one, and the median is of the prices in it.

    Args:
        task: Says which field is what.
        training: The truths of the training split; at least one.
        neighbours: For each row that is asked about, the truths of the training picture nearest to it.
    """
    roles = Roles.of(task)
    by_category: dict[FieldValue, list[Fields]] = defaultdict(list)
    for truth in training:
        by_category[truth[roles.category]].append(truth)
    typical = {category: _typical(roles, truths) for category, truths in by_category.items()}
    largest = _most_frequent([truth[roles.category] for truth in training])
    constant = _typical(roles, training) | {roles.category: largest}
    return {
        MAJORITY_CATEGORY: [constant] * len(neighbours),
        CATEGORY_MEDIAN_PRICE: [typical[neighbour[roles.category]] for neighbour in neighbours],
        NEAREST_NEIGHBOUR: list(neighbours),
    }


def _typical(roles: Roles, truths: Sequence[Fields]) -> dict[str, FieldValue]:
    answer: dict[str, FieldValue] = {
        roles.title: _most_frequent([truth[roles.title] for truth in truths]),
        roles.category: truths[0][roles.category],
    }
    if roles.currency is not None:
        answer[roles.currency] = _most_frequent([truth[roles.currency] for truth in truths])
        truths = [truth for truth in truths if truth[roles.currency] == answer[roles.currency]]
    return answer | {roles.price: median(float(truth[roles.price]) for truth in truths)}


def _most_frequent(values: Sequence[FieldValue]) -> FieldValue:
    counts = Counter(values)
    # Of equally frequent ones the first by name, whatever the order of the rows.
    return min(counts, key=lambda value: (-counts[value], value))
