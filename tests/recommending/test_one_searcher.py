"""Whoever asks, one searcher answers: the same items, and bits where shapes agree."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file
from served import run_in_thread
from shared_folder import made_once
from test_bundle import seal_again
from trained_workdir import (
    MAX_ITEMS,
    NUM_ITEMS,
    TINY_TWO_LEVEL,
    make_trained_workdir,
)

from tasks.tiger import register_tiger_task
from tiger_jax.data.item_vectors import estimate_collaborative, join_text
from tiger_jax.data.prepared import PreparedData
from tiger_jax.evaluation.evaluator import evaluate
from tiger_jax.evaluation.lists import SavedLists
from tiger_jax.recommending import numbered_recommender
from tiger_jax.recommending.numbered_recommender import load_numbered_recommender
from tiger_jax.recommending.recommender import UNEXPORTED_EXCLUDED, Recommender
from tiger_jax.recommending.requests import Request
from tiger_jax.recommending.searcher import (
    NO_DENSE_HEAD,
    DenseWeights,
    SearchConfig,
    num_proposals,
)
from tiger_jax.recommending.trained_model import (
    ModelCard,
    load_content,
    load_recommender,
)
from tiger_jax.recommending.updates import update
from tiger_jax.recommending.versions import CatalogueVersions
from tiger_jax.semantic_ids.encoder_inputs import ItemInputs, encode_histories
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.stages import recommend as recommend_stage
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.export import export
from tiger_jax.stages.list_candidates import CandidatesConfig, list_candidates
from tiger_jax.t5x_bridge.model import T5xTiger
from tiger_jax.training.partitioning import Partitioner
from tiger_jax.workdir.hashing import hash_arrays
from tiger_jax.workdir.json_files import read_json, write_json

B, K, TASK = 8, 20, "one_searcher"
SEARCH = SearchConfig(num_beams=K)


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Evaluation splits its batches over devices, and shapes with them."""
    with pytest.MonkeyPatch.context() as patch:
        one = functools.partial(Partitioner, devices=jax.devices()[:1])
        patch.setattr(numbered_recommender, "Partitioner", one)
        yield


MODELS = {
    "tiger": {},
    "two_level": {
        "model": TINY_TWO_LEVEL,
        "num_user_tokens": 0,
        "dense_weights": DenseWeights(0.5, 0.25),
        "with_quantizer": True,
        "collaborative_dims": 3,
    },
}


@pytest.fixture(scope="module", params=MODELS)
def workdir(request, tmp_path_factory, one_device):
    def make(folder):
        context = RunContext(make_trained_workdir(folder, **MODELS[request.param]))
        users = {"max_users": B, "max_validation_users": 1}
        config = CandidatesConfig(depth=K, batch_size=B, reuse=False, **users)
        list_candidates(context, config=config, search=SEARCH)
        options = {"batch_sizes": (B,), "max_excluded": UNEXPORTED_EXCLUDED}
        # Room to grow is rows to sum over, and with them another order of the sums.
        export(context, num_beams=K, room=1.0, **options)

    return made_once(tmp_path_factory, f"one_searcher_{request.param}", make)


@pytest.fixture(scope="module")
def data(workdir):
    return PreparedData.load(workdir / "data")


@pytest.fixture(scope="module")
def candidates(workdir):
    """What `list_candidates` wrote."""
    return SavedLists.load(workdir / "candidates", "test")


@pytest.fixture(scope="module")
def users(data, candidates):
    return data.test.select(candidates.rows)


@pytest.fixture(scope="module")
def lists(candidates):
    return candidates.items, candidates.scores


@pytest.fixture(scope="module")
def requests(data, users):
    histories = [users.histories.of(row).tolist() for row in range(B)]
    return [
        Request(
            [data.item_ids[item] for item in history],
            K,
            user=data.user_ids[user],
            exclude_history=False,
        )
        for history, user in zip(histories, users.user_numbers.tolist(), strict=True)
    ]


@pytest.fixture(scope="module")
def versions(workdir):
    return CatalogueVersions.open(workdir / "bundle")


@pytest.fixture(scope="module")
def served(versions, requests, data):
    """What the bundle's programs answer."""
    return _arrays(Recommender.load(versions).answer(requests), data)


def _arrays(answers, data):
    number_of = {item_id: number for number, item_id in enumerate(data.item_ids)}
    items = [[number_of[item.item_id] for item in answer.items] for answer in answers]
    scores = [[item.score for item in answer.items] for answer in answers]
    return np.array(items, np.int32), np.array(scores, np.float32)


def _same_bits(one, other):
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_evaluation_ranks_the_lists_that_are_written(workdir, data, users, lists):
    recommender = load_numbered_recommender(workdir, data, SEARCH)
    options = {"batch_size": B, "exclude_seen": False}
    found = evaluate(recommender, users, num_items=NUM_ITEMS, k=K - 1, **options)
    _same_bits(
        (found.item_numbers, found.scores), [array[:, : K - 1] for array in lists]
    )


def test_a_bundle_answers_with_what_evaluation_ranks(served, lists):
    _same_bits(served, lists)


def test_recommend_writes_what_the_bundle_answers(
    workdir, requests, served, data, tmp_path, monkeypatch
):
    batches = "tiger_jax.recommending.recommender.UNEXPORTED_BATCHES"
    monkeypatch.setattr(batches, (B,))
    lines = [{"user": one.user, "history": one.history} for one in requests]
    path, lists = tmp_path / "histories.jsonl", tmp_path / "lists.parquet"
    path.write_text("\n".join(map(json.dumps, lines)))
    recommend_stage.recommend(
        RunContext(workdir),
        histories=str(path),
        k=K,
        exclude_seen=False,
        output=str(lists),
        search=SEARCH,
    )
    table = pq.read_table(lists)
    number_of = {item_id: number for number, item_id in enumerate(data.item_ids)}
    items = [number_of[item_id] for item_id in table["item_id"].to_pylist()]
    scores = table["score"].to_numpy()
    _same_bits((np.reshape(items, (B, K)), scores.reshape(B, K)), served)


def test_the_server_answers_as_the_bundle_does(versions, requests, served, data):
    bodies = [
        {"history": one.history, "k": K, "user": one.user, "exclude_history": False}
        for one in requests
    ]
    live = Recommender.load(versions)
    with run_in_thread((live, versions)) as running:
        reply = running.ask("POST", "/recommend/batch", {"requests": bodies})
    assert reply.status == 200, reply.content
    number_of = {item_id: number for number, item_id in enumerate(data.item_ids)}
    listed = [answer["items"] for answer in reply.json["answers"]]
    items = [[number_of[item["item_id"]] for item in one] for one in listed]
    scores = np.array([[item["score"] for item in one] for one in listed], np.float32)
    _same_bits((items, scores), served)


def test_scoring_every_item_is_one_way_too(workdir, data, users, versions, requests):
    recommender = load_numbered_recommender(workdir, data, SEARCH)
    histories, nothing = users.histories.last(MAX_ITEMS), np.empty((B, 0), np.int32)
    found = recommender.recommend_exactly(users.user_numbers, histories, nothing, K)
    exact = [dataclasses.replace(one, exact=True) for one in requests]
    items, scores = _arrays(Recommender.load(versions).answer(exact), data)
    np.testing.assert_array_equal(items, found[0])
    np.testing.assert_allclose(scores, found[1], rtol=0, atol=1e-5)


def test_t5x_predicts_what_evaluation_ranks(workdir, data, users, lists):
    card = ModelCard.load(workdir / "recommender")
    register_tiger_task(
        TASK,
        str(workdir),
        num_user_tokens=card.layout.num_user_tokens,
        num_items=MAX_ITEMS,
    )
    table = SemanticIdTable.load(workdir / "semantic_ids")
    _, _, model, params = load_recommender(workdir / "recommender")
    inputs = encode_histories(
        users.histories.last(MAX_ITEMS),
        table.codes,
        model.layout,
        user_hashes=data.user_hashes[users.user_numbers],
    )
    ours = T5xTiger(TASK, model.config, num_beams=K, dense_weights=card.dense_weights)
    predict = jax.jit(ours.predict_batch_with_aux)
    best, aux = predict(params, {"encoder_input_tokens": inputs})
    tokens = model.layout.tokens_of(table.codes)[lists[0]]
    _same_bits((best, aux["beams"], aux["scores"]), (tokens[:, 0], tokens, lists[1]))


def test_the_dense_head_proposes_and_orders(workdir, data, users, lists):
    """What the beams found and what it ranks first, item by item."""
    card = ModelCard.load(workdir / "recommender")
    if not card.content_shape[1]:
        pytest.skip("this model has no dense head")
    ours = load_numbered_recommender(workdir, data, SEARCH)
    by_codes = ours.by_codes_alone()
    histories, nothing = users.histories.last(MAX_ITEMS), np.empty((B, 0), np.int32)
    codes_items, codes_scores = by_codes(users.user_numbers, histories, nothing, K)
    items, scores = by_codes.recommend_exactly(
        users.user_numbers, histories, nothing, NUM_ITEMS
    )
    log_p_codes = np.empty((B, NUM_ITEMS), np.float32)
    np.put_along_axis(log_p_codes, items, scores, axis=1)
    searcher = ours.searcher
    counts = np.bincount(data.train.items, minlength=NUM_ITEMS)
    table = searcher.embed_items(
        load_content(workdir, NUM_ITEMS), occurrences=counts, weights=NO_DENSE_HEAD
    )
    inputs = encode_histories(
        histories,
        SemanticIdTable.load(workdir / "semantic_ids").codes,
        searcher.model.layout,
        with_items=True,
    )
    read = table.vectors.read[jnp.maximum(inputs.items, 0)]
    state = searcher.model.apply(
        {"params": searcher.params},
        ItemInputs(jnp.asarray(inputs.tokens), read),
        method="init_decode",
    ).state
    logits = searcher.model.apply(
        {"params": searcher.params},
        state,
        table.vectors.ranked,
        method="item_logits",
    )
    log_p = np.asarray(jax.nn.log_softmax(logits))  # [B, N]
    assert np.ptp(log_p, axis=1).min() > 0.1  # it does tell items apart
    weights = card.dense_weights
    expected = log_p_codes + weights.item * (
        log_p - weights.popularity * np.log1p(counts)[None]
    )
    is_candidate = np.zeros((B, NUM_ITEMS), bool)
    proposed = np.argsort(-log_p, axis=1, kind="stable")[:, : num_proposals(K)]
    for found in (codes_items, proposed):
        np.put_along_axis(is_candidate, found, True, axis=1)
    assert is_candidate.sum(1).max() > K  # it does propose something
    expected = np.where(is_candidate, expected, -np.inf)
    order = np.argsort(-expected, axis=1, kind="stable")[:, :K]
    np.testing.assert_array_equal(lists[0], order)
    np.testing.assert_allclose(
        lists[1], np.take_along_axis(expected, order, axis=1), rtol=1e-5, atol=1e-5
    )
    assert (lists[0] != codes_items).any()
    np.testing.assert_allclose(
        codes_scores, np.take_along_axis(log_p_codes, codes_items, 1), rtol=1e-5
    )


def test_a_bundle_of_format_3_is_read(workdir, tmp_path, versions, requests, capsys):
    """Its programs run, or are compiled anew where a dense head proposes now."""
    copy = shutil.copytree(workdir / "bundle", tmp_path / "bundle")
    (copy / "occurrences.npy").unlink()
    facts = read_json(copy / "bundle.json")
    del facts["parts"]["occurrences.npy"]
    facts.pop("popularity_weight", None)
    if "content_shape" in facts:  # the dimensions were all there was of it
        facts["content_dims"] = facts.pop("content_shape")[1]
        del facts["model"]["item_embeddings"]
        params = load_file(copy / "params.safetensors")
        del params["item_embeddings"]
        save_file(params, copy / "params.safetensors")
        nested = traverse_util.unflatten_dict(params, sep="/")
        facts["parts"]["params.safetensors"] = hash_arrays(nested)
    write_json(copy / "bundle.json", {**facts, "format": 3})
    seal_again(copy)
    capsys.readouterr()
    old, new = Recommender.load(copy), Recommender.load(versions)
    has_head = bool(new.dense_weights.item)
    assert ("compiled from the model's code" in capsys.readouterr().out) == has_head
    own = new.searcher
    if "item_embeddings" in own.params:
        zeros = 0 * own.params["item_embeddings"]
        params = {**own.params, "item_embeddings": zeros}
        own = dataclasses.replace(own, params=params)
    weights = new.dense_weights._replace(popularity=0)
    new = dataclasses.replace(new, searcher=own, dense_weights=weights)
    found, expected = (
        [i.item_id for i in r.answer(requests)[0].items] for r in (old, new)
    )
    assert found == expected


def test_an_item_that_joins_has_content_at_once(versions, requests, workdir, tmp_path):
    """It is read in histories and ranked by its content, and nothing compiles anew."""
    recommender = Recommender.load(versions)
    if recommender.catalogue.collaborative is None:
        pytest.skip("this model takes no content vectors")
    coder = versions.bundle.parts.coder()
    vector = recommender.catalogue.embeddings[7]
    item = {"item_id": "joined", "title": "Joined", "embedding": vector.tolist()}
    other = next(
        i for i in recommender.catalogue.item_ids if i not in requests[0].history
    )
    changed, _ = update(recommender.catalogue, coder, add=[item], remove=[other])
    assert changed.collaborative.shape[0] == NUM_ITEMS
    catalogue = recommender.catalogue
    is_known = catalogue.occurrences > 0
    is_known[catalogue.number_of[other]] = False
    estimated = estimate_collaborative(
        vector[None], catalogue.embeddings[is_known], catalogue.collaborative[is_known]
    )
    assert estimated.any()
    np.testing.assert_array_equal(changed.collaborative[-1:], estimated)
    joined = join_text(vector[None], estimated)
    np.testing.assert_array_equal(
        changed.table.codes[-1:, :-1], coder.quantizer.encode(joined)
    )
    own = CatalogueVersions.open(workdir / "bundle", tmp_path / "versions")
    Recommender.load(own).update(own, add=[item], remove=[other])
    np.testing.assert_array_equal(own.load().collaborative, changed.collaborative)
    # The others keep the embeddings of their own, wherever they stand now.
    before, after = (
        dict(
            zip(
                own.item_ids,
                np.asarray(recommender.items_of(own).vectors.ranked),
                strict=False,  # the table has room for more
            )
        )
        for own in (recommender.catalogue, changed)
    )
    assert set(before) ^ set(after) == {other, "joined"}
    assert all((after[i] == before[i]).all() for i in set(after) & set(before))
    recommender.swap(changed)
    answer = recommender.recommend([*requests[0].history, "joined"], K, exact=True)
    assert all(np.isfinite(found.score) for found in answer.items)
    others = recommender.recommend(requests[0].history, 50, exact=True)
    assert "joined" in {found.item_id for found in others.items}
