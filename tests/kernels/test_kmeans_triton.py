"""The steps of k-means for GPUs against plain PyTorch."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from retrolocal.kernels.kmeans import assign_reference, cluster_sums_reference
from retrolocal.kernels.kmeans_triton import assign_triton, cluster_sums_triton

pytestmark = [
    pytest.mark.usefixtures("triton_device"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
SHAPES = [
    pytest.param(1, 1, 1, 16, id="one token, one cluster"),
    pytest.param(2, 70, 5, 80, id="odd counts, dim 80"),
    pytest.param(1, 64, 65, 64, id="more clusters than tokens"),
    pytest.param(1, 40, 33, 256, id="dim 256"),
]


@pytest.mark.parametrize(("heads", "tokens", "clusters", "dim"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_token_gets_its_nearest_centroid(
    triton_device: torch.device,
    heads: int,
    tokens: int,
    clusters: int,
    dim: int,
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    # Small whole numbers: products are exact in any precision, and there are many ties.
    keys = torch.randint(-2, 3, (heads, tokens, dim), generator=generator).to(dtype)
    centroids = torch.randint(-1, 2, (heads, clusters, dim), generator=generator).to(dtype)
    # Views whose heads are apart, as the caches hand them out.
    keys, centroids = keys.to(triton_device), centroids.to(triton_device)
    apart = torch.cat((keys, torch.full_like(keys, torch.nan)), dim=1)[:, :tokens]
    found = assign_triton(apart, centroids)
    assert torch.equal(found, assign_reference(keys, centroids))


@pytest.mark.parametrize(("heads", "tokens", "clusters", "dim"), SHAPES)
def test_sums_are_those_of_the_members(
    triton_device: torch.device, heads: int, tokens: int, clusters: int, dim: int
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    rows = torch.randn(heads, tokens, dim, generator=generator).to(triton_device)
    labels = torch.randint(clusters, (heads, tokens), generator=generator)
    labels[labels == clusters // 2] = 0  # an empty cluster, where there are enough
    labels = labels.to(triton_device)
    found = cluster_sums_triton(rows, labels, clusters)
    expected = cluster_sums_reference(rows.double(), labels, clusters)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found, cluster_sums_triton(rows, labels, clusters))
