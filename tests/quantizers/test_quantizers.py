import numpy as np
import pytest

from tiger_jax.errors import InputError
from tiger_jax.quantizers.hashing import Lsh, RandomCodes
from tiger_jax.quantizers.kmeans import fit_kmeans
from tiger_jax.quantizers.quantizer import ENCODE_CHUNK, reconstruction_errors
from tiger_jax.quantizers.residual_kmeans import FlatVq, ResidualKMeans
from tiger_jax.quantizers.store import load_quantizer, save_quantizer

CONFIGS = [
    ResidualKMeans((16, 8, 4)),
    FlatVq(32),
    Lsh(num_levels=3, num_hyperplanes=4),
    RandomCodes((15, 255)),
]


def make_embeddings(num_items=400, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(12, 10)) * 3
    points = centers[rng.integers(12, size=num_items)]
    return (points + rng.normal(size=(num_items, 10))).astype(np.float32)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
def test_every_quantizer_keeps_the_protocol(config, tmp_path):
    embeddings = make_embeddings()
    quantizer = config.fit(embeddings, seed=3)
    codes = quantizer.encode(embeddings)

    assert codes.dtype == np.int32
    assert codes.shape == (len(embeddings), len(quantizer.codebook_sizes))
    assert (codes >= 0).all()
    assert (codes < np.array(quantizer.codebook_sizes)).all()
    # The same again, from a second fit and from the file.
    np.testing.assert_array_equal(
        config.fit(embeddings, seed=3).encode(embeddings), codes
    )
    save_quantizer(quantizer, tmp_path)
    loaded = load_quantizer(tmp_path)
    np.testing.assert_array_equal(loaded.encode(embeddings), codes)
    assert loaded.codebook_sizes == quantizer.codebook_sizes
    # An item's codes don't depend on the company it is encoded in.
    order = np.random.default_rng(1).permutation(len(embeddings))
    np.testing.assert_array_equal(quantizer.encode(embeddings[order]), codes[order])
    np.testing.assert_array_equal(quantizer.encode(embeddings[7:8]), codes[7:8])
    assert quantizer.encode(embeddings[:0]).shape == (0, codes.shape[1])


def test_residual_codebooks_choose_as_nested_loops_do():
    embeddings = make_embeddings(60)
    quantizer = ResidualKMeans((8, 4)).fit(embeddings, seed=0)
    codes = quantizer.encode(embeddings)
    for item, embedding in enumerate(embeddings):
        residual = embedding.astype(np.float64)
        for level, codebook in enumerate(quantizer.codebooks):
            distances = [((residual - e) ** 2).sum() for e in codebook.astype(float)]
            # Near-ties may fall either way: compare the distance, not the index.
            chosen = codes[item, level]
            assert distances[chosen] == pytest.approx(min(distances), abs=1e-4)
            residual = residual - codebook[chosen]


def test_more_levels_leave_less_over():
    embeddings = make_embeddings()
    quantizer = ResidualKMeans((16, 16, 16)).fit(embeddings)
    codes = quantizer.encode(embeddings)
    errors = reconstruction_errors(quantizer, embeddings, codes)
    assert 1 > errors[0] > errors[1] > errors[2] > 0
    # The first level, computed from its definition.
    guess = quantizer.codebooks[0][codes[:, 0]]
    spread = embeddings - embeddings.mean(0)
    expected = ((embeddings - guess) ** 2).sum() / (spread**2).sum()
    assert errors[0] == pytest.approx(expected, rel=1e-5)


def test_hash_quantizers_reconstruct_nothing():
    embeddings = make_embeddings(20)
    for config in (Lsh(), RandomCodes()):
        quantizer = config.fit(embeddings)
        codes = quantizer.encode(embeddings)
        assert reconstruction_errors(quantizer, embeddings, codes) is None


def test_lsh_codewords_are_the_signs_of_projections():
    embeddings = make_embeddings(30)
    lsh = Lsh(num_levels=2, num_hyperplanes=3, center=False).fit(embeddings, seed=5)
    codes = lsh.encode(embeddings)
    for item in range(len(embeddings)):
        for level in range(2):
            bits = [int(embeddings[item] @ n > 0) for n in lsh.normals[level]]
            assert codes[item, level] == 4 * bits[0] + 2 * bits[1] + bits[2]


def test_similar_items_share_more_lsh_bits_than_others():
    embeddings = make_embeddings(300)
    near = embeddings + np.float32(0.05)
    lsh = Lsh(num_levels=4).fit(embeddings)
    codes = lsh.encode(embeddings)
    same_near = (codes == lsh.encode(near)).mean()
    same_other = (codes == np.roll(codes, 1, axis=0)).mean()
    assert same_near > 0.7
    assert same_other < 0.3


def test_random_codes_are_spread_evenly_whatever_the_embeddings():
    num_items, size = 20_000, 50
    # Items that differ in one dimension only, by one part in 20,000.
    embeddings = np.ones((num_items, 3), np.float32)
    embeddings[:, 1] = np.arange(num_items)
    codes = RandomCodes((size, size)).fit(embeddings, seed=2).encode(embeddings)
    expected = num_items / size**2
    counts = np.bincount(codes[:, 0] * size + codes[:, 1], minlength=size**2)
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    # Mean size^2 - 1, standard deviation sqrt(2 (size^2 - 1)); six of them.
    assert abs(chi_squared - (size**2 - 1)) < 6 * np.sqrt(2 * (size**2 - 1))


def test_another_seed_gives_other_codes():
    embeddings = make_embeddings()
    for config in CONFIGS:
        first, second = (config.fit(embeddings, seed=s) for s in (0, 1))
        assert (first.encode(embeddings) != second.encode(embeddings)).any()


def test_many_items_are_encoded_in_chunks():
    embeddings = make_embeddings(50)
    many = np.tile(embeddings, (ENCODE_CHUNK // 50 + 2, 1))
    for config in CONFIGS:
        quantizer = config.fit(embeddings[:40], seed=0)
        np.testing.assert_array_equal(
            quantizer.encode(many),
            np.tile(quantizer.encode(embeddings), (len(many) // 50, 1)),
        )


def test_kmeans_needs_as_many_items_as_codewords():
    with pytest.raises(InputError, match="codebook of 16 codewords .* 5 items"):
        ResidualKMeans((16,)).fit(make_embeddings(5))


def test_kmeans_of_few_distinct_points_still_ends():
    points = np.repeat(make_embeddings(4), 5, axis=0)
    centroids = fit_kmeans(points, 8, seed=0)
    assert centroids.shape == (8, 10)
    distances = np.abs(points[:, None] - centroids[None]).sum(-1).min(1)
    np.testing.assert_allclose(distances, 0, atol=1e-4)


def test_kmeans_finds_separate_clusters():
    rng = np.random.default_rng(0)
    centers = np.array([[0.0, 0], [0, 10], [10, 0]], np.float32)
    points = np.repeat(centers, 50, axis=0) + rng.normal(size=(150, 2)) * 0.01
    found = fit_kmeans(points, 3, seed=0)
    np.testing.assert_allclose(
        found[np.argsort(found @ [2.0, 1.0])], centers, atol=0.02
    )


def test_kmeans_on_a_part_of_many_points_is_the_same_every_time():
    points = make_embeddings(3000)
    first, second = (fit_kmeans(points, 8, seed=1, max_points=500) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    distances = ((points[:, None] - first[None]) ** 2).sum(-1).min(1)
    assert distances.mean() < ((points - points.mean(0)) ** 2).sum(-1).mean() / 2


@pytest.mark.parametrize("name", ["quantizer.json", "arrays/codebook_0.npy"])
def test_a_damaged_quantizer_is_an_input_error(tmp_path, name):
    quantizer = ResidualKMeans((4,)).fit(make_embeddings(20))
    save_quantizer(quantizer, tmp_path / "rqvae")
    (tmp_path / "rqvae" / name).write_bytes(b"{")
    with pytest.raises(InputError, match="train_rqvae again"):
        load_quantizer(tmp_path / "rqvae")
