"""Words that are alike, in groups."""

from collections.abc import Sequence
from itertools import combinations


def group(similarity: Sequence[Sequence[float]], threshold: float) -> list[list[int]]:
    """Words in groups, by agglomerative clustering with average linkage.

    The two groups with the highest mean similarity between their words are joined until it is not
    above `threshold`. Groups and their words keep the order of their first words.

    Parameters
    ----------
    similarity
        Of each word with each, [words][words].
    """

    def mean_similarity(pair: tuple[int, int]) -> float:
        one, other = groups[pair[0]], groups[pair[1]]
        return sum(similarity[i][j] for i in one for j in other) / (len(one) * len(other))

    groups = [[word] for word in range(len(similarity))]
    while len(groups) > 1:
        closest = max(combinations(range(len(groups)), 2), key=mean_similarity)
        if mean_similarity(closest) <= threshold:
            break
        groups[closest[0]] = sorted(groups[closest[0]] + groups.pop(closest[1]))
    return groups
