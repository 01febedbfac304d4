"""The steps of k-means against loops."""

from __future__ import annotations

import math

import pytest
import torch

from retrolocal.kernels.kmeans import BLOCK, assign, cluster_sizes, cluster_sums


def test_assign_takes_the_largest_product_and_the_first_of_equals() -> None:
    keys = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]])
    centroids = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    assert assign(keys, centroids).tolist() == [[0, 1, 0]]


def test_assign_is_of_every_block() -> None:
    """More tokens than a block, the last one short; whole numbers, so products are exact."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(-9, 10, (2, 2 * BLOCK + 5, 16), generator=generator).float()
    centroids = torch.randint(-9, 10, (2, 33, 16), generator=generator).float()
    expected = (keys @ centroids.mT).max(dim=2).values
    found = torch.gather(keys @ centroids.mT, 2, assign(keys, centroids)[..., None])
    assert torch.equal(found[..., 0], expected)


def test_sums_and_sizes_match_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 41, 5, generator=generator)
    labels = torch.randint(0, 7, (3, 41), generator=generator)
    sums, sizes = cluster_sums(rows, labels, 8), cluster_sizes(labels, 8)
    for head in range(3):
        for cluster in range(8):
            members = rows[head, labels[head] == cluster]
            assert sizes[head, cluster] == len(members)
            torch.testing.assert_close(sums[head, cluster], members.sum(0))


def test_sums_are_the_same_every_time() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(2, 5000, 64, generator=generator)
    labels = torch.randint(0, 300, (2, 5000), generator=generator)
    first = cluster_sums(rows, labels, 300)
    assert all(torch.equal(first, cluster_sums(rows, labels, 300)) for _ in range(5))


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 200])
def test_the_first_of_the_largest_products_is_taken(columns: int) -> None:
    """Few different numbers, so that there are equals in one part and in several."""
    pytest.importorskip("numba")
    from retrolocal.kernels.kmeans_numba import first_highest

    generator = torch.Generator().manual_seed(columns)
    products = torch.randint(-3, 2, (300, columns), generator=generator).float()
    products[7] = -math.inf
    expected = [row.index(max(row)) for row in products.tolist()]
    assert first_highest(products).tolist() == expected
