"""The server as its clients see it: over sockets, whole."""

import contextlib
import dataclasses
import html
import json
import re
import shlex
import socket
import threading

import pytest
from served import read_reply, run_in_thread

from tiger_jax.recommending.versions import CatalogueVersions
from tiger_jax.serving.settings import Limits

HISTORY = ["item-1", "item-2"]
TOKEN = "a token of some length"


@pytest.fixture(scope="module")
def served(tiny):
    limits = Limits(read_seconds=0.5, body_bytes=20_000, waiting_exact=2, connections=8)
    with run_in_thread(tiny, limits, poll_seconds=3600.0) as running:
        yield running


@contextlib.contextmanager
def held(recommender):
    """No search ends while the block lasts."""
    free = recommender.searcher.programs.free
    free.clear()
    try:
        yield
    finally:
        free.set()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 3, "exclude": ["item-9"], "exclude_history": False},
        {"filter": {"category": "Shelf 2", "brand": ["Acme", ""]}},
        {"temperature": 0.7, "seed": 5},
        {"exact": True},
        {"prefix": [None, 3]},
        {"epsilon": 0.5, "user": "user-3"},
    ],
)
def test_an_answer_is_what_python_gives(served, tiny_recommender, options):
    reply = served.ask("POST", "/recommend", {"history": HISTORY, **options})
    assert reply.status == 200, reply.content
    answer = tiny_recommender.recommend(HISTORY, **options)
    assert reply.json == json.loads(json.dumps(dataclasses.asdict(answer)))


def test_whole_numbers_are_ids_as_in_files(served):
    request = {"history": [7, -1], "exclude": [3], "user": 12}
    reply = served.ask("POST", "/recommend", request)
    assert reply.status == 200, reply.content
    assert reply.json["unknown_items"] == ["7", "-1"]
    for bad in (1.5, True, None, 1 << 60):
        reply = served.ask("POST", "/recommend", {"history": [bad]})
        assert reply.status == 422, bad


def test_a_batch_has_each_history_s_own_answer(served, tiny_recommender):
    histories = [HISTORY, ["gone"], ["item-3", "gone"], [], ["item-4"], ["item-5"]]
    requests = [{"history": history, "k": 4} for history in histories]
    reply = served.ask("POST", "/recommend/batch", {"requests": requests})
    answers = reply.json["answers"]
    for history, answer in zip(histories, answers, strict=True):
        alone = tiny_recommender.recommend(history, k=4)
        expected = [item.item_id for item in alone.items]
        assert [item["item_id"] for item in answer["items"]] == expected
        assert answer["by"] == alone.by
        assert answer["unknown_items"] == list(alone.unknown_items)


def test_items_are_found_shown_and_compared(served):
    expected = {n for n in range(50) if n % 7 == 3 or str(n).startswith("3")}
    found = served.ask("GET", "/items?q=sort+3+thing&limit=9").json
    rest = served.ask("GET", "/items?q=sort+3+thing&limit=9&offset=9").json
    listed = [item["item_id"] for item in found["items"] + rest["items"]]
    assert found["total"] == len(listed) == len(expected)
    assert set(listed) == {f"item-{n}" for n in expected}
    item = served.ask("GET", "/items/item-3").json
    assert item["title"] == "Thing of sort 3 number 3"
    similar = served.ask("GET", "/items/item-3/similar?k=5").json["items"]
    shared = [one["shared_levels"] for one in similar]
    assert shared == sorted(shared, reverse=True)
    assert served.ask("GET", "/items/nothing").json["error"]["code"] == "unknown_item"


def test_the_catalogue_says_what_filters_can_name(served):
    catalogue = served.ask("GET", "/catalogue").json
    assert catalogue["num_items"] == 50
    assert catalogue["fields"]["category"]["values"]["Shelf 1"] == 10
    assert catalogue["codebook_sizes"] == [8, 8, 8, 4]


def test_the_schema_has_examples_that_are_answered(served):
    schema = served.ask("GET", "/openapi.json").json
    models = schema["components"]["schemas"]
    for example in models["RecommendRequest"]["examples"]:
        example.pop("filter", None)  # names fields of another shop
        assert served.ask("POST", "/recommend", example).status == 200
    answers = schema["paths"]["/recommend"]["post"]["responses"]
    assert {"200", "401", "422", "429", "503"} <= set(answers)


def test_the_docs_show_every_route_and_a_call_to_copy(served):
    page = html.unescape(served.ask("GET", "/docs").content.decode())
    schema = served.ask("GET", "/openapi.json").json
    assert all(f" {path}</code>" in page for path in schema["paths"])
    (call,) = re.findall(r"<pre>(curl .*/recommend)</pre>", page)
    *_, body, url = shlex.split(call)
    assert url.endswith(":8000/recommend")
    assert served.ask("POST", "/recommend", json.loads(body)).status == 200
    assert "<script" not in page


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b'{"history": ["a"], "k": NaN}', 400, "no JSON"),
        (b'{"history": ["a"], "temperature": 1e999}', 422, "temperature"),
        (b'{"history": ["a"], "k": -1}', 422, "k: "),
        (b'{"history": ["a"], "k": 3.5}', 422, "k: "),
        (b'{"history": ["a"], "k": true}', 422, "k: "),
        (b'{"history": ["a"], "k": 1' + 400 * b"0" + b"}", 422, "k: "),
        (b'{"history": "a"}', 422, "history: "),
        (b'{"history": [1.5]}', 422, "history.0: "),
        (b'{"history": ["a"], "colour": 1}', 422, "colour: "),
        (b'{"history": ["a"], "filter": {"price": {"min": "x"}}}', 422, "filter.price"),
        (b'{"history": ["a"], "filter": {"colour": 1}}', 422, "no field 'colour'"),
        (b'{"history": ["a"], "prefix": [99]}', 422, "codeword 99"),
        (b'{"history": ["a"], "exact": true, "temperature": 1}', 422, "exclude each"),
        (b'{"history": ["a"], "k": 21}', 422, "beams"),
        (b'{"history": ["\\ud800"]}', 400, "no JSON"),
        (b'{"history": ["\xff"]}', 400, "no JSON"),
        (b'{"history": ["a"], "filter": ' + 5000 * b"[" + b"}", 400, "no JSON"),
        (b'{"history": ["' + 300 * b"a" + b'"]}', 422, "history.0: "),
        (b"[]", 422, "body"),
        (b"", 422, "body"),
        (b"x" * 30_000, 413, "at most 20,000 bytes"),
    ],
)
def test_a_senseless_request_is_refused_in_one_shape(served, body, status, message):
    reply = served.ask("POST", "/recommend", body)
    assert reply.status == status, reply.content
    assert reply.headers["content-type"] == "application/json"
    error = reply.json["error"]
    assert set(error) == {"code", "message", "details"}
    assert message in error["message"]
    assert len(reply.content) < 2000


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/nothing", {}, 404),
        ("PUT", "/recommend", {}, 405),
        ("GET", "/items?limit=1000", {}, 422),
        ("GET", "/items?colour=red", {}, 422),
        ("POST", "/recommend", {"Content-Type": "text/plain"}, 415),
    ],
)
def test_so_is_what_no_route_takes(served, method, path, headers, status):
    body = b"{}" if method == "POST" else None
    reply = served.ask(method, path, body, **headers)
    assert reply.status == status
    assert reply.json["error"]["message"]


def test_overload_is_refused_and_the_accepted_answered(
    tiny,
):
    """More than fits is refused at once, and what was accepted is answered."""
    limits = Limits(waiting=8, requests=4)
    batch = {"requests": [{"history": [f"item-{n}"], "k": 2} for n in range(4)]}
    replies = []
    with run_in_thread(tiny, limits) as served:

        def ask() -> None:
            replies.append(served.ask("POST", "/recommend/batch", batch))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        programs = tiny[0].searcher.programs
        with held(tiny[0]):
            before = programs.begun
            threads[0].start()
            served.wait_until(lambda: programs.begun > before)
            for thread in threads[1:3]:  # while one is being searched, two wait
                thread.start()
            served.wait_until(lambda: served.service.batcher.waiting == 8)
            threads[3].start()
            threads[3].join()
            (refused,) = replies
            assert refused.status == 429
            assert int(refused.headers["retry-after"]) >= 1
            # Told to stop, the server still answers what it has taken.
            served.server.should_exit = True
        for thread in threads[:3]:
            thread.join()
    assert [reply.status for reply in replies] == [429, 200, 200, 200]


def test_who_waits_too_long_is_told_so(tiny):
    limits = Limits(deadline_seconds=0.1)
    with run_in_thread(tiny, limits) as served:
        with held(tiny[0]):
            reply = served.ask("POST", "/recommend", {"history": HISTORY})
            assert reply.status == 503
            assert reply.json["error"]["code"] == "deadline"
            assert "retry-after" in reply.headers
        assert served.metric('tiger_shed_total{why="deadline"}') == 1


def test_exact_requests_have_a_queue_of_their_own(served, tiny_recommender):
    exact = {"history": HISTORY, "exact": True}
    with held(tiny_recommender):
        assert served.ask("POST", "/recommend", exact).status == 200
    reply = served.ask("POST", "/recommend/batch", {"requests": [exact] * 3})
    assert reply.status == 422


def test_slow_clients_are_told_and_parted_from(served):
    heads = {
        b"": b"",
        b"POST /recommend HTTP/1.1\r\nHost: x\r\n": b"408",
        b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{": b"408",
        b"NONSENSE\r\n\r\n": b"400",
    }
    sockets = []
    for head in heads:
        sockets.append(socket.create_connection(("127.0.0.1", served.port)))
        sockets[-1].sendall(head)
    for end, status in zip(sockets, heads.values(), strict=True):
        end.settimeout(5)
        with end:
            said = b"".join(iter(lambda e=end: e.recv(4096), b""))
            assert said.partition(b"\r\n")[0].split()[1:2] == [status][: bool(status)]
            if status:
                assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]
    served.wait_until(lambda: served.ask("GET", "/healthz").status == 200)


def test_too_many_connections_are_refused(served):
    ends = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(8)]
    try:
        reply = served.ask("GET", "/healthz")
        assert reply.status == 503
        assert reply.json["error"]["code"] == "too_many_connections"
    finally:
        for end in ends:
            end.close()
    served.wait_until(lambda: served.ask("GET", "/healthz").status == 200)


def test_a_connection_is_kept_and_a_changed_catalogue_is_used(served, tiny_recommender):
    catalogue = tiny_recommender.catalogue
    with contextlib.closing(served.connect()) as connection:
        connection.request("GET", "/items/item-3")
        assert read_reply(connection).status == 200
        newer = type(catalogue)(
            catalogue.table,
            catalogue.items,
            popularity=catalogue.popularity,
            occurrences=catalogue.occurrences,
            is_new=catalogue.is_new,
            version=7,
            plan=catalogue.host_trie.plan,
        )
        tiny_recommender.swap(newer)
        try:
            body = json.dumps({"history": HISTORY})
            kind = {"Content-Type": "application/json"}
            connection.request("POST", "/recommend", body, kind)
            assert read_reply(connection).json["version"] == 7
        finally:
            tiny_recommender.swap(catalogue)


def test_with_a_token_only_its_bearers_are_answered(tiny):
    with run_in_thread(tiny, token=TOKEN, hosts=["127.0.0.1"]) as served:
        for path in ("/", "/docs", "/healthz", "/readyz", "/openapi.json"):
            assert served.ask("GET", path).status == 200
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
            for path in ("/items", "/metrics", "/catalogue", "/no/such"):
                assert served.ask("GET", path, **given).status == 401
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert served.ask("GET", "/items", **right).status == 200
        assert served.ask("GET", "/items", **right, Host="evil.test").status == 421


def test_the_catalogue_changes_under_its_clients_and_goes_back(tiny, tmp_path):
    recommender, versions = tiny
    live = recommender.fork()
    kept = CatalogueVersions(versions.bundle, tmp_path / "versions")
    bear = {"Authorization": f"Bearer {TOKEN}"}
    asked = {"history": HISTORY, "exact": True, "k": 50, "exclude_history": False}
    new = {"item_id": "x/1", "title": "Novelty", "embedding": [0.1] * 6}

    with run_in_thread((live, kept), token=TOKEN) as served:

        def listed(**options):
            reply = served.ask("POST", "/recommend", {**asked, **options}, **bear)
            return reply.json["version"], [i["item_id"] for i in reply.json["items"]]

        def change(method, path, body=None):
            reply = served.ask(method, path, body, **bear)
            assert reply.status == 200, reply.content
            return reply.json

        before = listed()
        added = change("POST", "/catalogue/items", {"items": [new]})
        assert added["version"] == 1
        code = added["added"][0]["semantic_id"]
        assert served.ask("GET", "/items/x/1", **bear).json["semantic_id"] == code
        assert listed()[0] == 1
        assert set(listed(k=60)[1]) == {*before[1], "x/1"}
        sold = {"attributes": {"in_stock": False}}
        change("PUT", "/catalogue/items/x/1/attributes", sold)
        assert listed(filter={"in_stock": False}) == (2, ["x/1"])
        assert change("DELETE", "/catalogue/items/x/1")["removed"] == ["x/1"]
        assert listed()[1] == before[1]
        assert change("POST", "/catalogue/rollback", {"version": 1})["version"] == 4
        assert "x/1" in listed(k=60)[1]
        kept_now = served.ask("GET", "/catalogue/versions", **bear).json
        assert [v["num_items"] for v in kept_now["versions"]] == [50, 51, 51, 50, 51]
        assert served.metric("tiger_catalogue_version", **bear) == 4
        for method, path, body, status in [
            ("POST", "/catalogue/items", {"items": [new]}, 422),
            ("POST", "/catalogue/items", {"items": [{**new, "colour": 1}]}, 422),
            ("POST", "/catalogue/rollback", {"version": 99}, 422),
            ("DELETE", "/catalogue/items/nothing", None, 404),
            ("PUT", "/catalogue/items/nothing/attributes", sold, 404),
        ]:
            assert served.ask(method, path, body, **bear).status == status
            assert served.ask(method, path, body).status == 401


def test_without_a_token_nobody_changes_the_catalogue(served):
    reply = served.ask("DELETE", "/catalogue/items/item-1")
    assert reply.status == 403
    assert served.ask("GET", "/items/item-1").status == 200
