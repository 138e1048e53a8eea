"""A generated shop whose best possible recall is known.

Customers draw each next item from a mixture that is known in closed form, so what
the best recommender in the world would reach can be computed and shown beside what
ours reaches. Texts alone don't give the shop away: an item's companions stand in
other categories, mostly from other brands (`synthetic_catalogue`).
"""

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Float64, Int32, Int64

from tiger_jax.config import config
from tiger_jax.data.raw_shop import INTERACTION_COLUMNS, RawShop
from tiger_jax.data.synthetic_catalogue import Catalogue, build_catalogue
from tiger_jax.errors import InputError

_OPENING = 1_577_836_800  # 2020-01-01, in seconds
_YEARS = 3
_SECONDS = _YEARS * 365 * 86_400
_ANCHOR_WEIGHTS = (0.75, 0.18, 0.07)  # of the last item, the one before, and before it
_RECALL_CUTOFFS = (1, 5, 10, 20)
_NDCG_CUTOFFS = (5, 10, 20)
_USERS_AT_ONCE = 512


@config("synthetic")
class SyntheticShopConfig:
    """The generated shop: how large, and how its customers choose.

    The next item follows one of the last three with probability `follow_share`;
    otherwise, with probability `interest_share`, it comes by popularity from the
    department the customer is interested in at the time; otherwise by popularity
    from the whole shop. Nobody takes an item twice, or before its launch.

    Attributes:
        items_per_series: Mean number of items in a product line.
        new_item_share: Share of items launched after the opening, at any time.
        popularity_spread: Standard deviation of the log popularity of lines in their
            category, and again of items in their line.
        step_share: Of those who follow an item, the share that stays in its line.
        same_brand_share: How often a line's partner is of the same brand, where the
            brand sells in the partner's category.
        interest_change: Chance, at each step, that the interest is drawn anew from
            the customer's three departments.
        basket_share: Chance that an item is bought in the same second as the last.
    """

    num_items: int = 3000
    num_users: int = 6000
    min_history: int = 5
    mean_history: float = 9.5
    max_history: int = 60
    items_per_series: float = 15.0
    new_item_share: float = 0.2
    popularity_spread: float = 1.1
    follow_share: float = 0.6
    interest_share: float = 0.28
    step_share: float = 0.12
    same_brand_share: float = 0.5
    interest_change: float = 0.15
    basket_share: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        least, mean, most = self.min_history, self.mean_history, self.max_history
        shares = [f for f in vars(self) if f.endswith(("_share", "_change"))]
        laws = {
            "it needs num_items >= 60": self.num_items >= 60,
            "it needs num_users >= 1": self.num_users >= 1,
            "it needs 2 <= min_history <= mean_history <= max_history": (
                2 <= least <= mean <= most
            ),
            "max_history is more than a quarter of num_items, and nobody takes an item "
            "twice": most <= self.num_items // 4,
            "items_per_series must lie between 3 and num_items / 6": (
                3 <= self.items_per_series <= self.num_items / 6
            ),
            **{f"{f} is a probability": 0 <= getattr(self, f) <= 1 for f in shares},
            "new_item_share must be at most 0.5, or the shop opens half empty": (
                self.new_item_share <= 0.5
            ),
            "follow_share + interest_share must leave 0.02 to plain popularity": (
                self.follow_share + self.interest_share <= 0.98
            ),
        }
        for law, is_fulfilled in laws.items():
            if not is_fulfilled:
                raise InputError(f"SyntheticShopConfig: {law}; got {self}")


def generate_shop(config: SyntheticShopConfig) -> RawShop:
    """Generates items, interactions and each user's best possible metrics.

    The same config gives the same shop. Interactions are in time order, and those
    of one user in the same second stand in the order in which they were drawn;
    `ceiling_by_user` is exact if that order is kept.

    The ceiling of a user is what ranking all items by their true probability is
    expected to reach on the user's last interaction: with p_1 >= p_2 >= … the
    sorted probabilities,

        recall@k = sum_{r <= k} p_r,    ndcg@k = sum_{r <= k} p_r / log2(r + 1).

    No ranking does better in expectation, since both give ranks non-increasing
    weights. The probabilities are conditional on all that the process knows before
    the draw: the items so far, the time, which items are launched, the structure
    of the shop, and the customer's departments and interest, which no recommender
    sees; so this bounds every recommender from above. Probabilities of items
    already taken are 0: masking seen items gains nothing here.
    """
    catalogue_seed, user_seed = np.random.SeedSequence(config.seed).spawn(2)
    catalogue = build_catalogue(
        config.num_items,
        items_per_series=config.items_per_series,
        new_item_share=config.new_item_share,
        popularity_spread=config.popularity_spread,
        step_share=config.step_share,
        same_brand_share=config.same_brand_share,
        rng=np.random.default_rng(catalogue_seed),
    )
    rng = np.random.default_rng(user_seed)
    process = NextItemProcess(config, catalogue)
    lengths = _draw_lengths(config, rng)
    times = _draw_times(config, lengths, rng)
    preferences = _draw_preferences(config.num_users, process.num_departments, rng)
    histories = np.full((config.num_users, int(lengths[0])), -1, np.int32)
    interests = _draw_categorical(preferences, rng.random(config.num_users))
    ceilings = np.empty((config.num_users, len(_RECALL_CUTOFFS + _NDCG_CUTOFFS)))
    for step in range(histories.shape[1]):
        # Users are sorted by length, so those still active are the first ones.
        active = int(np.searchsorted(-lengths, -step, side="left"))
        ends_here = np.flatnonzero(lengths[:active] == step + 1)
        for start in range(0, len(ends_here), _USERS_AT_ONCE):
            part = ends_here[start : start + _USERS_AT_ONCE]
            probs = process.probabilities(
                histories[part, :step],
                preferences[part],
                interests[part],
                times[part, step],
            )
            ceilings[part] = _best_metrics(probs)
        histories[:active, step], interests[:active] = process.draw(
            histories[:active, :step],
            preferences[:active],
            interests[:active],
            times[:active, step],
            rng,
        )
    return _as_raw_shop(config, catalogue, histories, times, lengths, ceilings, rng)


class NextItemProcess:
    """The law by which customers choose: to draw from, and in closed form."""

    def __init__(self, config: SyntheticShopConfig, catalogue: Catalogue) -> None:
        """Sorts the catalogue by department, so that one cumulative sum serves all."""
        self._config = config
        self._catalogue = catalogue
        self.num_departments = int(catalogue.department.max()) + 1
        self._by_department = np.argsort(catalogue.department, kind="stable")
        self._cumulative = np.cumsum(catalogue.popularity[self._by_department])
        ends = np.searchsorted(
            catalogue.department[self._by_department],
            np.arange(self.num_departments),
            side="right",
        )
        self._upper = self._cumulative[ends - 1]
        self._lower = np.concatenate([[0.0], self._upper[:-1]])
        self._follower_cumulative = np.cumsum(catalogue.follower_probs, axis=1)

    def _weights(self, step: int) -> tuple[float, float, Float64[np.ndarray, " A"]]:
        """Shares of following and of interest, and the weights of the anchors."""
        follow, interest = self._config.follow_share, self._config.interest_share
        if step == 0:
            return 0.0, interest / (1 - follow), np.ones(1)
        anchors = np.array(_ANCHOR_WEIGHTS[:step])
        return follow, interest, anchors / anchors.sum()

    def draw(
        self,
        histories: Int32[np.ndarray, "B step"],
        preferences: Float64[np.ndarray, "B departments"],
        interests: Int64[np.ndarray, " B"],
        times: Float64[np.ndarray, " B"],
        rng: np.random.Generator,
    ) -> tuple[Int32[np.ndarray, " B"], Int64[np.ndarray, " B"]]:
        """Draws each user's next item and the interest that he leaves with.

        Draws that aren't allowed (taken before, not launched) are thrown away whole,
        interest and all, and repeated: what remains is the mixture restricted to the
        allowed items, which `probabilities` computes.
        """
        num_users, step = histories.shape
        follow, interest, anchors = self._weights(step)
        items = np.full(num_users, -1, np.int32)
        interests = interests.copy()
        pending = np.arange(num_users)
        while len(pending):
            u = rng.random((5, len(pending)))
            changed = _draw_categorical(preferences[pending], u[0])
            new_interests = np.where(
                u[1] < self._config.interest_change, changed, interests[pending]
            )
            # One number chooses the component; where inside, another.
            lower = np.where(u[2] < follow + interest, self._lower[new_interests], 0.0)
            upper = np.where(u[2] < follow + interest, self._upper[new_interests], 1.0)
            place = np.searchsorted(
                self._cumulative, lower + u[3] * (upper - lower), side="right"
            )
            drawn = self._by_department[np.minimum(place, len(self._cumulative) - 1)]
            follows = u[2] < follow
            if follows.any():
                back = np.searchsorted(np.cumsum(anchors)[:-1], u[4], side="right")
                anchor = histories[pending, step - 1 - back][follows]
                drawn[follows] = self._draw_follower(anchor, u[3][follows])
            allowed = self._catalogue.launch[drawn] <= times[pending]
            allowed &= (histories[pending] != drawn[:, None]).all(axis=1)
            accepted = pending[allowed]
            items[accepted] = drawn[allowed]
            interests[accepted] = new_interests[allowed]
            pending = pending[~allowed]
        return items, interests

    def _draw_follower(
        self, anchors: Int32[np.ndarray, " B"], u: Float64[np.ndarray, " B"]
    ) -> Int32[np.ndarray, " B"]:
        cumulative = self._follower_cumulative[anchors]  # [B, W]
        # Scaled by the row's own total, so that rounding never points past the end.
        column = (cumulative <= (u * cumulative[:, -1])[:, None]).sum(axis=1)
        return self._catalogue.followers[anchors, column]

    def probabilities(
        self,
        histories: Int32[np.ndarray, "B step"],
        preferences: Float64[np.ndarray, "B departments"],
        interests: Int64[np.ndarray, " B"],
        times: Float64[np.ndarray, " B"],
    ) -> Float64[np.ndarray, "B N"]:
        """Computes the distribution that `draw` draws from.

            p(i) ∝ allowed(i) [ f Σ_a w_a F(i | h_a) + g Σ_d c_d P(i | d)
                                + (1 - f - g) P(i) ]

        with F the followers of the last items h_a, P popularity, c the interest
        after a possible change, f and g the shares of following and of interest.
        """
        num_users, step = histories.shape
        follow, interest, anchors = self._weights(step)
        catalogue, rows = self._catalogue, np.arange(num_users)[:, None]
        change = self._config.interest_change
        interest_probs = change * preferences  # [B, departments]
        interest_probs[rows[:, 0], interests] += 1 - change
        scale = interest * interest_probs / (self._upper - self._lower)[None, :]
        scale += 1 - follow - interest
        probs = scale[:, catalogue.department] * catalogue.popularity[None, :]  # [B, N]
        for back, weight in enumerate(anchors if step else ()):
            anchor = histories[:, step - 1 - back]
            np.add.at(
                probs,
                # Padding is -1, the last item, and adds its probability: 0.
                (rows, catalogue.followers[anchor]),
                follow * weight * catalogue.follower_probs[anchor],
            )
        probs *= catalogue.launch[None, :] <= times[:, None]
        probs[rows, histories] = 0.0
        return probs / probs.sum(axis=1, keepdims=True)


def _draw_lengths(
    config: SyntheticShopConfig, rng: np.random.Generator
) -> Int64[np.ndarray, " U"]:
    """Lengths of the histories, longest first: a long tail above the shortest."""
    extra = config.mean_history - config.min_history
    spread = 1.1
    drawn = np.exp(rng.normal(0.0, spread, config.num_users) - spread**2 / 2) * extra
    lengths = config.min_history + np.rint(drawn).astype(np.int64)
    return -np.sort(-np.minimum(lengths, config.max_history))


def _draw_times(
    config: SyntheticShopConfig,
    lengths: Int64[np.ndarray, " U"],
    rng: np.random.Generator,
) -> Float64[np.ndarray, "U longest"]:
    """Times of the interactions as shares of the shop's life, in whole seconds."""
    shape = (config.num_users, int(lengths[0]))
    gaps = rng.lognormal(np.log(20 * 86_400), 1.2, shape)
    gaps[rng.random(shape) < config.basket_share] = 0.0
    gaps[:, 0] = 0.0
    elapsed = np.cumsum(gaps, axis=1)  # [U, longest]
    span = elapsed[np.arange(config.num_users), lengths - 1]
    squeeze = np.minimum(1.0, 0.98 * _SECONDS / np.maximum(span, 1.0))
    start = rng.random(config.num_users) * (_SECONDS - span * squeeze)
    return np.floor(start[:, None] + elapsed * squeeze[:, None]) / _SECONDS


def _draw_preferences(
    num_users: int, num_departments: int, rng: np.random.Generator
) -> Float64[np.ndarray, "U departments"]:
    """Three departments per customer, one of them the favourite."""
    ranks = np.argsort(rng.random((num_users, num_departments)), axis=1)
    weights = np.zeros(num_departments)
    weights[:3] = (0.6, 0.25, 0.15)[:num_departments]
    return (weights / weights.sum())[ranks]


def _draw_categorical(
    probs: Float64[np.ndarray, "B C"], u: Float64[np.ndarray, " B"]
) -> Int64[np.ndarray, " B"]:
    cumulative = np.cumsum(probs, axis=1)
    return (cumulative <= (u * cumulative[:, -1])[:, None]).sum(axis=1)


def _best_metrics(
    probs: Float64[np.ndarray, "B N"],
) -> Float64[np.ndarray, "B metrics"]:
    """Expected metrics of the ranking by `probs`: recalls, then NDCGs."""
    most = max(_RECALL_CUTOFFS + _NDCG_CUTOFFS)
    top = -np.sort(-np.partition(probs, -most, axis=1)[:, -most:], axis=1)  # [B, most]
    recall = np.cumsum(top, axis=1)
    ndcg = np.cumsum(top / np.log2(np.arange(most) + 2.0)[None, :], axis=1)
    columns = [recall[:, k - 1] for k in _RECALL_CUTOFFS]
    columns += [ndcg[:, k - 1] for k in _NDCG_CUTOFFS]
    return np.stack(columns, axis=1)


def _as_raw_shop(
    config: SyntheticShopConfig,
    catalogue: Catalogue,
    histories: Int32[np.ndarray, "U longest"],
    times: Float64[np.ndarray, "U longest"],
    lengths: Int64[np.ndarray, " U"],
    ceilings: Float64[np.ndarray, "U metrics"],
    rng: np.random.Generator,
) -> RawShop:
    user_numbers = rng.choice(10 * config.num_users, config.num_users, replace=False)
    user_ids = np.array([f"C{number:07d}" for number in user_numbers])
    is_item: Bool[np.ndarray, "U longest"] = histories >= 0
    seconds: Float[np.ndarray, " events"] = _OPENING + np.rint(
        times[is_item] * _SECONDS
    )
    order = np.argsort(seconds, kind="stable")
    item_ids = catalogue.items["item_id"].combine_chunks()
    columns = [
        pa.array(np.repeat(user_ids, lengths)[order]),
        item_ids.take(pa.array(histories[is_item][order])),
        pa.array(seconds[order]),
    ]
    names = [f"recall@{k}" for k in _RECALL_CUTOFFS]
    names += [f"ndcg@{k}" for k in _NDCG_CUTOFFS]
    return RawShop(
        name="synthetic",
        items=catalogue.items,
        interactions=pa.table(columns, schema=pa.schema(INTERACTION_COLUMNS)),
        notes=(
            f"Generated shop, seed {config.seed}: {config.num_items:,} items, "
            f"{config.num_users:,} users.",
        ),
        ceiling_by_user={
            str(user): dict(zip(names, row, strict=True))
            for user, row in zip(user_ids, ceilings.tolist(), strict=True)
        },
    )
