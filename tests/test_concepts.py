import numpy as np
import pytest
import torch
from models import tiny_images, tiny_model
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import binom

from secondlens.data.sources import InMemory
from secondlens.effects.value_paths import second_order
from secondlens.errors import SecondLensError
from secondlens.lens.fitting import fit
from secondlens.models.open_clip import from_open_clip
from secondlens.words.concepts import (
    ALIKE,
    RARE,
    Concept,
    Proof,
    binomial_tail,
    concepts_of,
    effective_number,
    group,
    prove,
    same_concept,
)


def unit_rows(count, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("threshold", [-0.1, 0.1, 0.4])
def test_group_equals_scipys_average_linkage(seed, threshold):
    rows = unit_rows(8, 5, seed)
    similarity = rows @ rows.T
    distance = (1 - similarity).numpy()
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average")
    labels = fcluster(tree, 1 - threshold, "distance")
    expected = {tuple(np.flatnonzero(labels == label)) for label in set(labels)}
    found = group(similarity.tolist(), threshold)
    assert {tuple(each) for each in found} == expected
    assert found == sorted(found)


def test_group_of_none_and_one():
    assert group([], 0.5) == []
    assert group([[1.0]], 0.5) == [[0]]


def test_same_concept_is_the_quantile_of_all_pairs():
    rows = unit_rows(60, 6)
    pairs = (rows @ rows.T)[np.triu_indices(60, 1)]
    assert same_concept(rows) == pytest.approx(np.quantile(pairs, ALIKE), abs=5e-3)
    assert same_concept(rows[:1]) == 1


def test_many_texts_are_sampled():
    rows = unit_rows(4500, 4)
    assert same_concept(rows) == same_concept(rows[::3])


def test_concepts_are_signed_and_ordered():
    near = torch.tensor([[1.0, 0.1, 0], [1, -0.1, 0], [0, 1, 0], [1, 0, 0]])
    texts = torch.nn.functional.normalize(near, dim=1)
    words = [("ship", 0.5), ("boat", 0.4), ("tree", 0.7), ("yacht", -0.3)]
    found = concepts_of(words, texts, threshold=0.5)
    assert [each.words for each in found] == [("ship", "boat"), ("tree",), ("yacht",)]
    assert [each.weight for each in found] == pytest.approx([0.9, 0.7, -0.3])
    assert found[0].direction.norm() == pytest.approx(1)
    assert found[0].direction[0] > 0.99
    assert found[2].direction[0] == 1
    assert concepts_of([], texts[:0], 0.5) == ()


def test_effective_number():
    assert effective_number([1.0, 1.0, 1.0]) == pytest.approx(3)
    assert effective_number([5.0]) == pytest.approx(1)
    assert effective_number([9.0, 1.0]) == pytest.approx(10 / 9**0.9)
    assert effective_number([]) == 0


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (3, 16), (5, 30), (100, 100)])
def test_binomial_tail_equals_scipys(successes, trials):
    expected = binom.sf(successes - 1, trials, 0.05)
    assert binomial_tail(successes, trials, 0.05) == pytest.approx(expected)


def test_a_concept_with_few_images_is_not_proven():
    proof = Proof(images=tuple(range(20)), concepts=(0,) * 8 + (1,) * 8 + (2,) * 3 + (-1,))
    assert proof.proven == [0, 1]
    assert proof.polysemy == pytest.approx(2)
    assert proof.showing(1) == list(range(8, 16))
    assert proof.showing(-1) == [19]
    assert Proof(images=(1, 2), concepts=(-1, -1)).polysemy == 0


@pytest.fixture(scope="module")
def clip():
    return from_open_clip(tiny_model(dtype=torch.float64, layers=4), name="tiny")


@pytest.fixture(scope="module", params=["exact", "official"])
def fitted(request, clip):
    images = tiny_images(clip, 60)
    return images, fit(clip, images, [0, 1], top=12, convention=request.param)


def test_prove_equals_its_definition(clip, fitted):
    images, lens = fitted
    weights = ((1.0,), (0.5,), (-0.8,))
    directions = {(layer, n): unit_rows(3, clip.dim, n) for layer, n in [(0, 1), (0, 5), (1, 2)]}
    concepts = {
        key: tuple(
            Concept(words=("x",), weights=weight, texts=row[None])
            for weight, row in zip(weights, rows, strict=True)
        )
        for key, rows in directions.items()
    }
    proofs = prove(clip, lens, InMemory(images), concepts)
    unit = 100 if lens.convention == "official" else 1
    embeddings = torch.nn.functional.normalize(clip.encode_image(images), dim=1)
    sides = set()
    for (layer, n), rows in directions.items():
        effect = second_order(clip, images, layer, lens.convention)[:, n]
        shown = (embeddings - effect / unit) @ rows.T
        centred = (effect - lens[layer].mean[n]) @ lens[layer].directions[n]
        top = lens[layer].top_images[n].tolist()
        random = [i for i in range(60) if i not in top]
        z = (shown - shown[random].mean(0)) / shown[random].std(0)
        expected = []
        for image in top:
            side = [0, 1] if centred[image] > 0 else [2]
            sides.add(len(side))
            limit = np.quantile(z[random][:, side].amax(1), RARE)
            best = max(side, key=lambda c, image=image: z[image, c])
            expected.append(best if z[image, best] > limit else -1)
        assert proofs[layer, n].images == tuple(top)
        assert proofs[layer, n].concepts == tuple(expected)
    assert sides == {1, 2}


def test_planted_concepts_are_proven(clip):
    """Kinds of pictures among noise, and a neuron that acts on two of them: each finds its own."""
    kind = torch.arange(80).clamp(max=40) // 8
    images = 0.15 * tiny_images(clip, 80)
    images[:40] += 2 * tiny_images(clip, 5, seed=7)[kind[:40]]
    lens = fit(clip, images, [1], top=20)
    counts = torch.stack([(kind[lens[1].top_images] == each).sum(1) for each in range(5)], dim=1)
    neuron = int(counts.sort(dim=1).values[:, -2].argmax())
    first, second = counts[neuron].argsort(descending=True)[:2].tolist()
    assert counts[neuron, second] == 8
    embeddings = torch.nn.functional.normalize(clip.encode_image(images), dim=1)
    targets = torch.nn.functional.one_hot(kind).double()
    # least squares: the texts that tell the kinds apart best
    texts = torch.linalg.lstsq(embeddings - embeddings.mean(0), targets - targets.mean(0)).solution
    effects = second_order(clip, images, 1)[:, neuron] - lens[1].mean[neuron]
    signs = (effects @ lens[1].directions[neuron]).sign()
    concepts = tuple(
        Concept(
            words=(str(each),),
            weights=(float(signs[kind == each].sum()),),
            texts=torch.nn.functional.normalize(texts[:, each], dim=0)[None],
        )
        for each in (first, second)
    )
    proof = prove(clip, lens, InMemory(images), {(1, neuron): concepts})[1, neuron]
    assert sorted(proof.proven) == [0, 1]
    assert proof.polysemy > 1.5
    noise = 5
    for concept, its in enumerate((first, second)):
        shown = kind[proof.showing(concept)].tolist()
        assert shown.count(its) == 8
        assert set(shown) <= {its, noise}


def test_images_must_be_those_of_the_fit(clip, fitted):
    images, lens = fitted
    concept = Concept(words=("x",), weights=(1.0,), texts=unit_rows(1, clip.dim))
    with pytest.raises(SecondLensError, match="which the lens was fitted on"):
        prove(clip, lens, InMemory(images[:10]), {(0, 1): (concept,)})

    class OneIsGone(InMemory):
        def load(self, index):
            if index == 7:
                raise OSError("gone")
            return super().load(index)

    with pytest.raises(SecondLensError, match=r"the picture '7' cannot be read: .*gone"):
        prove(clip, lens, OneIsGone(images), {(0, 1): (concept,)})


def test_without_other_images_nothing_is_proven(clip):
    """Where all images are top images, nothing says what chance gives."""
    images = tiny_images(clip, 6)
    concept = Concept(words=("x",), weights=(1.0,), texts=unit_rows(1, clip.dim))
    for top in (5, 6):
        lens = fit(clip, images, [1], top=top)
        proof = prove(clip, lens, InMemory(images), {(1, 0): (concept,)})[1, 0]
        assert set(proof.concepts) == {-1}


def test_neuron_without_concepts_has_no_proof(clip, fitted):
    images, lens = fitted
    proof = prove(clip, lens, InMemory(images), {(0, 1): ()})[0, 1]
    assert set(proof.concepts) == {-1}
