"""The generated shop: its law, its ceiling, and who can come near it."""

import dataclasses

import numpy as np
import pytest

from tiger_jax.data import synthetic
from tiger_jax.data.synthetic import NextItemProcess, SyntheticShopConfig, generate_shop
from tiger_jax.data.synthetic_catalogue import build_catalogue
from tiger_jax.errors import InputError

SMALL = SyntheticShopConfig(
    num_items=90, num_users=300, max_history=20, items_per_series=6.0
)


def histories_of(shop) -> tuple[list[str], list[list[int]], list[list[float]]]:
    """User ids, item rows in time order (ties as they stand), and their times."""
    row_of = {item: row for row, item in enumerate(shop.items["item_id"].to_pylist())}
    items: dict[str, list[int]] = {}
    times: dict[str, list[float]] = {}
    for event in shop.interactions.to_pylist():  # already in time order
        items.setdefault(event["user_id"], []).append(row_of[event["item_id"]])
        times.setdefault(event["user_id"], []).append(event["timestamp"])
    return list(items), list(items.values()), list(times.values())


def catalogue_of(config: SyntheticShopConfig, seed: int = 0):
    return build_catalogue(
        config.num_items,
        items_per_series=config.items_per_series,
        new_item_share=config.new_item_share,
        popularity_spread=config.popularity_spread,
        step_share=config.step_share,
        same_brand_share=config.same_brand_share,
        rng=np.random.default_rng(seed),
    )


def test_config_and_seed_decide_the_shop():
    """The same config gives the same shop, and another seed another."""
    first, again = generate_shop(SMALL), generate_shop(SMALL)
    assert first.items == again.items
    assert first.interactions == again.interactions
    assert first.ceiling_by_user == again.ceiling_by_user
    other = generate_shop(dataclasses.replace(SMALL, seed=1))
    assert other.interactions != first.interactions


def test_histories_have_their_length_and_no_repeats():
    """Nobody takes an item twice, and every history has its length."""
    shop = generate_shop(SMALL)
    users, histories, times = histories_of(shop)
    lengths = [len(history) for history in histories]
    assert len(users) == SMALL.num_users == len(shop.ceiling_by_user)
    assert min(lengths) >= SMALL.min_history
    assert max(lengths) <= SMALL.max_history
    assert all(len(set(history)) == len(history) for history in histories)
    assert all(t == sorted(t) for t in times)
    assert all(float(t).is_integer() for t in times[0])
    assert any(len(set(t)) < len(t) for t in times)  # baskets


def test_mean_length_is_what_the_config_says():
    config = dataclasses.replace(SMALL, num_items=300, num_users=4000, max_history=75)
    _, histories, _ = histories_of(generate_shop(config))
    # A standard error of the long-tailed lengths is about 0.1.
    assert np.mean([len(h) for h in histories]) == pytest.approx(9.5, abs=0.4)


def test_items_have_believable_fields_with_something_left_out():
    shop = generate_shop(SyntheticShopConfig(num_items=2000, num_users=5))
    items = shop.items.to_pydict()
    assert len(set(items["item_id"])) == 2000
    assert all(items["title"])
    assert 0.04 < np.mean([not brand for brand in items["brand"]]) < 0.12
    assert 0.08 < np.mean([price is None for price in items["price"]]) < 0.16
    assert all(price is None or price > 1 for price in items["price"])
    assert {len(path) for (path,) in items["categories"]} == {2, 3}
    is_told = [b in t for b, t in zip(items["brand"], items["title"], strict=True) if b]
    assert 0.5 < np.mean(is_told) < 0.7


def test_new_items_appear_late():
    config = dataclasses.replace(SMALL, num_users=3000, new_item_share=0.4)
    catalogue = catalogue_of(config)
    assert np.mean(catalogue.launch > 0) == pytest.approx(0.4, abs=0.15)
    shop = generate_shop(config)
    first_seen: dict[str, float] = {}
    for event in shop.interactions.to_pylist():
        first_seen.setdefault(event["item_id"], event["timestamp"])
    start = min(first_seen.values())
    span = max(first_seen.values()) - start
    late = [time for time in first_seen.values() if time > start + span / 2]
    assert len(late) > 0.1 * len(first_seen)


def test_followers_are_a_distribution_over_other_items():
    catalogue = catalogue_of(SMALL)
    probs, followers = catalogue.follower_probs, catalogue.followers
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-12)
    assert ((probs > 0) == (followers >= 0)).all()
    assert (followers != np.arange(SMALL.num_items)[:, None]).all()


@pytest.mark.parametrize("step", [0, 1, 5])
def test_items_are_drawn_by_the_probabilities_in_closed_form(step):
    catalogue = catalogue_of(SMALL)
    process = NextItemProcess(SMALL, catalogue)
    rng = np.random.default_rng(1)
    num_draws = 200_000
    # One user's state, many times over. Half the new items aren't launched yet.
    time = np.full(num_draws, np.median(catalogue.launch[catalogue.launch > 0]))
    history = np.flatnonzero(catalogue.launch == 0)[:step].astype(np.int32)
    preference = rng.dirichlet(np.ones(process.num_departments))
    interest = np.zeros(num_draws, np.int64)
    state = (
        np.tile(history, (num_draws, 1)),
        np.tile(preference, (num_draws, 1)),
        interest,
        time,
    )
    drawn, _ = process.draw(*state, rng)
    probs = process.probabilities(*(part[:1] for part in state))[0]
    assert probs.sum() == pytest.approx(1)
    assert not probs[history].any()
    assert not probs[catalogue.launch > time[0]].any()
    counts = np.bincount(drawn, minlength=SMALL.num_items)
    assert not counts[probs == 0].any()
    # Pearson's statistic has mean and variance of chi-square; 5 sigma is generous.
    expected = num_draws * probs[probs > 0]
    statistic = ((counts[probs > 0] - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


def test_interests_change_only_within_a_customers_departments():
    config = SyntheticShopConfig(num_items=600, num_users=50, items_per_series=8.0)
    process = NextItemProcess(config, catalogue_of(config))
    rng = np.random.default_rng(2)
    preferences = synthetic._draw_preferences(5000, process.num_departments, rng)
    assert ((preferences > 0).sum(axis=1) == 3).all()
    before = preferences.argmax(axis=1)
    _, after = process.draw(
        np.empty((5000, 0), np.int32), preferences, before, np.ones(5000), rng
    )
    assert (preferences[np.arange(5000), after] > 0).all()
    # A change lands on the same department again with its own probability, .6.
    changed = config.interest_change * (1 - 0.6)
    assert np.mean(after != before) == pytest.approx(changed, abs=0.02)


def test_best_metrics_are_those_of_ranking_by_probability():
    probs = np.full((1, 40), 0.3 / 37)
    probs[0, [5, 2, 9]] = 0.4, 0.2, 0.1
    recall_1, recall_5, *_, ndcg_5, _, _ = synthetic._best_metrics(probs)[0]
    assert recall_1 == pytest.approx(0.4)
    assert recall_5 == pytest.approx(0.7 + 2 * 0.3 / 37)
    discount = 1 / np.log2([2, 3, 4, 5, 6])
    gains = np.array([0.4, 0.2, 0.1, 0.3 / 37, 0.3 / 37])
    assert ndcg_5 == pytest.approx((gains * discount).sum())


def test_ranking_by_true_probability_reaches_the_ceiling(monkeypatch):
    """The expected metrics agree with the hits of the draws that followed."""
    seen = []
    best_metrics = synthetic._best_metrics
    monkeypatch.setattr(
        synthetic, "_best_metrics", lambda p: (seen.append(p), best_metrics(p))[1]
    )
    config = dataclasses.replace(SMALL, num_users=4000)
    shop = generate_shop(config)
    users, histories, _ = histories_of(shop)
    # Users were handled by length, and within a length in the order of `ceilings`.
    targets = {
        user: history[-1] for user, history in zip(users, histories, strict=True)
    }
    lengths = {
        user: len(history) for user, history in zip(users, histories, strict=True)
    }
    by_length = sorted(shop.ceiling_by_user, key=lambda user: lengths[user])
    probs = np.concatenate(seen)
    target = np.array([targets[user] for user in by_length])
    rank = (probs > probs[np.arange(len(target)), target][:, None]).sum(axis=1)
    for k in (1, 5, 10, 20):
        expected = np.mean([c[f"recall@{k}"] for c in shop.ceiling_by_user.values()])
        error = np.sqrt(expected * (1 - expected) / len(target))
        assert abs((rank < k).mean() - expected) < 4 * error
    expected = np.mean([c["ndcg@10"] for c in shop.ceiling_by_user.values()])
    assert np.where(rank < 10, 1 / np.log2(rank + 2), 0).mean() == pytest.approx(
        expected, abs=4 * 0.5 / np.sqrt(len(target))
    )


def test_transitions_come_nearest_to_the_ceiling():
    """On the default shop a first-order Markov model is far ahead of both."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    shop = generate_shop(SyntheticShopConfig())
    _, histories, _ = histories_of(shop)
    num_items = shop.items.num_rows
    past, targets = [h[:-1] for h in histories], np.array([h[-1] for h in histories])
    train = [h[:-2] for h in histories]
    counts = np.bincount(np.concatenate(train), minlength=num_items)

    texts = [
        f"{i['title']} {i['brand']} {' '.join(i['categories'][0])}"
        for i in shop.items.to_pylist()
    ]
    words = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)
    likeness = (words @ words.T).toarray().astype(np.float32)  # [N, N]
    followed = np.zeros((num_items, num_items), np.float32)
    for history in train:
        np.add.at(followed, (history[:-1], history[1:]), 1)

    def recall_at_10(score) -> float:
        hits = 0
        for history, target in zip(past, targets, strict=True):
            scores = score(history)
            scores[history] = -np.inf
            hits += (scores > scores[target]).sum() < 10
        return hits / len(targets)

    def text_knn(history):
        last = np.array(history[::-1][:5])
        return (likeness[last] / np.arange(1, len(last) + 1)[:, None]).sum(axis=0)

    # Ties are broken at random, the same way for all.
    noise = np.random.default_rng(0).random(num_items) * 1e-3
    popularity = recall_at_10(lambda h: counts + noise)
    text = recall_at_10(lambda h: text_knn(h) + noise)
    markov = recall_at_10(
        lambda h: followed[h[-1]] + 0.3 * followed[h[-2]] + counts / counts.sum()
    )
    ceiling = np.mean([c["recall@10"] for c in shop.ceiling_by_user.values()])
    assert 0.4 < ceiling < 0.55
    assert popularity < 0.1 * ceiling
    assert text < 0.2 * ceiling
    assert markov > 0.6 * ceiling


def test_popularity_has_a_long_tail():
    shop = generate_shop(SyntheticShopConfig())
    _, histories, _ = histories_of(shop)
    counts = np.sort(np.bincount(np.concatenate(histories), minlength=3000))[::-1]
    assert counts[:600].sum() > 0.5 * counts.sum()  # a fifth of the items
    assert np.median(counts) > 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_items": 20}, "num_items >= 60"),
        ({"num_users": 0}, "num_users >= 1"),
        ({"min_history": 1}, "2 <= min_history"),
        ({"mean_history": 4.0}, "min_history <= mean_history"),
        ({"max_history": 40}, "more than a quarter"),
        ({"items_per_series": 40.0}, "between 3 and num_items / 6"),
        ({"basket_share": 1.5}, "basket_share is a probability"),
        ({"new_item_share": 0.8}, "at most 0.5"),
        ({"follow_share": 0.8, "interest_share": 0.2}, "leave 0.02"),
    ],
)
def test_an_impossible_shop_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SMALL, **change)


def test_the_smallest_shop_with_the_longest_histories_ends():
    config = SyntheticShopConfig(
        num_items=60,
        num_users=40,
        mean_history=14.0,
        max_history=15,
        items_per_series=10.0,
        new_item_share=0.5,
        follow_share=0.0,
        interest_share=0.98,
        popularity_spread=2.5,
    )
    shop = generate_shop(config)
    assert len(shop.ceiling_by_user) == 40
