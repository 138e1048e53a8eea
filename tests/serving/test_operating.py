"""What operators rely on: faults that show, readiness, logs, changes by others."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import signal
import socket
import threading
import time
import types

import pytest
from joining import new_items
from served import make_recommender, read_reply, run_in_thread

from tiger_jax.errors import InputError
from tiger_jax.recommending.filters import FilterSlots
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.trust import ANY, Trust
from tiger_jax.recommending.versions import CatalogueVersions
from tiger_jax.serving import server as server_module
from tiger_jax.serving import service as service_module
from tiger_jax.serving.logs import REQUEST_ID, Formatter
from tiger_jax.serving.server import Proxy, listen, make_server
from tiger_jax.serving.service import NotReadyError
from tiger_jax.serving.settings import Limits
from tiger_jax.serving.tokens import Tokens
from tiger_jax.serving.traces import Traces

HISTORY = {"history": ["item-1", "item-2"], "k": 3}
READER, ADMIN = "a token to read with", "a token to change with"


def bearing(token):
    return {"Authorization": f"Bearer {token}"}


class Failing:
    """Programs that can be made to fail, and count their calls."""

    def __init__(self, programs):
        self._programs, self.is_broken, self.calls = programs, False, 0
        self.free = programs.free

    def __call__(self, *args):
        self.calls += 1
        if self.is_broken:
            raise MemoryError("the device is gone")
        return self._programs(*args)


@pytest.fixture
def live(tiny, tmp_path):
    """A recommender of its own, whose catalogue and programs may change."""
    recommender, versions = tiny
    programs = Failing(recommender.searcher.programs)
    searcher = dataclasses.replace(recommender.searcher, programs=programs)
    own = dataclasses.replace(recommender, searcher=searcher, model="first")
    return own, CatalogueVersions(versions.bundle, tmp_path / "versions")


def test_a_fault_of_ours_is_answered_counted_and_logged_once(live, caplog):
    with run_in_thread(live) as served:
        live[0].similar_items = lambda *_, **__: 1 / 0
        path = "/items/item-1/similar"
        reply = served.ask("GET", path, **{"X-Request-Id": "mine-7"})
        assert reply.status == 500
        assert reply.json["error"]["code"] == "internal"
        assert reply.headers["x-request-id"] == "mine-7"
        assert reply.headers["x-content-type-options"] == "nosniff"
        labels = 'path="/items/{item_id:path}/similar",status="500"'
        assert served.metric(f"tiger_requests_total{{{labels}}}") == 1
    assert sum(r.exc_info is not None for r in caplog.records) == 1


def test_a_request_id_is_made_where_the_client_has_none(live):
    with run_in_thread(live) as served:
        found = {
            served.ask("GET", "/healthz", **{"X-Request-Id": given}).headers[
                "x-request-id"
            ]
            for given in ("a b", "x" * 65, "<b>")
        }
    assert len(found) == 3
    assert all(len(one) == 16 for one in found)


def test_readiness_tells_of_failing_searches_and_of_their_end(live, caplog):
    programs = live[0].searcher.programs
    with run_in_thread(live) as served:
        programs.is_broken = True
        for _ in range(3):
            reply = served.ask("POST", "/recommend", HISTORY)
            assert (reply.status, reply.json["error"]["code"]) == (500, "internal")
        assert sum(r.exc_info is not None for r in caplog.records) == 3
        reply = served.ask("GET", "/readyz")
        assert reply.status == 503
        assert (
            "3 batches in a row failed: MemoryError" in reply.json["error"]["message"]
        )
        served.wait_until(lambda: served.metric("tiger_ready") == 0)
        assert served.metric('tiger_failed_batches_total{lane="search"}') >= 3
        programs.is_broken = False  # nobody asks, and it is found out
        served.wait_until(lambda: served.ask("GET", "/readyz").status == 200, 3)
        assert served.ask("POST", "/recommend", HISTORY).status == 200


def test_a_device_without_room_for_a_filter_stays_unready(live, monkeypatch):
    """What is tried without a client needs all that clients' requests may need."""

    def fail(*_):
        raise MemoryError("the device is full")

    with run_in_thread(live) as served:
        with monkeypatch.context() as patched:
            patched.setattr(FilterSlots, "_with_bits", fail)
            for n in range(3):
                asked = {**HISTORY, "filter": {"price": {"max": n}}}
                assert served.ask("POST", "/recommend", asked).status == 500
            for _ in range(4):
                assert served.ask("GET", "/readyz").status == 503
                time.sleep(0.3)
        served.wait_until(lambda: served.ask("GET", "/readyz").status == 200, 3)


def test_a_server_that_stays_unready_gives_up(live):
    gave_up = []
    limits = Limits(failed_batches=1, unready_seconds=0.3)
    with run_in_thread(live, limits) as served:
        served.service.on_failure = gave_up.append
        live[0].searcher.programs.is_broken = True
        assert served.ask("POST", "/recommend", HISTORY).status == 500
        served.wait_until(lambda: gave_up)
        live[0].searcher.programs.is_broken = False
    assert isinstance(gave_up[0], NotReadyError)
    assert gave_up[0].exit_code == 1


def test_a_dead_worker_and_an_endless_search_show(live):
    with run_in_thread(live, Limits(stuck_seconds=0.1)) as served:
        batcher = served.service.batcher
        live[0].searcher.programs.free.clear()
        asking = threading.Thread(
            target=served.ask, args=("POST", "/recommend", HISTORY)
        )
        asking.start()
        served.wait_until(lambda: "searched for" in batcher.problem)
        assert served.ask("GET", "/readyz").status == 503
        live[0].searcher.programs.free.set()
        asking.join()
        served.wait_until(lambda: served.ask("GET", "/readyz").status == 200)
        worker = batcher._workers[0]
        worker.get_loop().call_soon_threadsafe(worker.cancel)
        served.wait_until(lambda: served.ask("GET", "/readyz").status == 503)
        assert "worker of the lane search is dead" in batcher.problem


def test_who_has_gone_is_not_searched_for(live):
    programs = live[0].searcher.programs
    with run_in_thread(live) as served:
        programs.free.clear()
        first = threading.Thread(
            target=served.ask, args=("POST", "/recommend", HISTORY)
        )
        calls, leaving = programs.calls + 1, []
        first.start()
        served.wait_until(lambda: programs.calls == calls)
        for _ in range(5):
            connection = served.connect()
            body = json.dumps({**HISTORY, "history": ["item-9"]})
            kind = {"Content-Type": "application/json"}
            connection.request("POST", "/recommend", body, kind)
            leaving.append(connection)
        served.wait_until(lambda: served.service.batcher.waiting == 5)
        assert served.metric('tiger_waiting{lane="search"}') == 5
        for connection in leaving:
            connection.close()
        served.wait_until(lambda: served.service.batcher.waiting == 0)
        assert served.metric('tiger_waiting{lane="search"}') == 0
        programs.free.set()
        first.join()
        assert served.ask("POST", "/recommend", HISTORY).status == 200
        assert programs.calls == calls + 1
        labels = 'path="/recommend",status="gone"'
        assert served.metric(f"tiger_requests_total{{{labels}}}") == 5


def test_reads_have_a_lane_and_a_deadline_of_their_own(live):
    release = threading.Event()
    live[0].similar_items = lambda *_, **__: release.wait(10) and []
    limits = Limits(waiting_reads=2, deadline_seconds=0.5)
    path, statuses = "/items/item-1/similar", []
    with run_in_thread(live, limits) as served:

        def ask():
            statuses.append(served.ask("GET", path).status)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        served.wait_until(lambda: served.service._reading == 2)
        assert served.ask("GET", path).status == 429
        assert served.ask("POST", "/recommend", HISTORY).status == 200
        for thread in threads:
            thread.join()
        assert statuses == [503, 503]
        release.set()
        served.wait_until(lambda: served.ask("GET", "/items").status == 200)


def test_an_explanation_goes_on_when_its_client_has_gone(live, monkeypatch):
    begun, release = [], threading.Event()

    def explain(*_):
        begun.append(1)
        return release.wait(10) and {}

    monkeypatch.setattr(service_module, "explain", explain)
    with run_in_thread(live) as served:
        connection, kind = served.connect(), {"Content-Type": "application/json"}
        connection.request("POST", "/explain", json.dumps(HISTORY), kind)
        served.wait_until(lambda: begun)
        connection.close()
        labels = 'path="/explain",status="gone"'
        gone = f"tiger_requests_total{{{labels}}}"
        served.wait_until(lambda: served.metric(gone) == 1)
        assert served.ask("POST", "/explain", HISTORY).status == 429
        release.set()
        served.wait_until(lambda: served.ask("POST", "/explain", HISTORY).status == 200)


def test_head_is_a_get_without_its_body(live):
    with run_in_thread(live) as served, contextlib.closing(served.connect()) as one:
        for path in ("/healthz", "/readyz", "/", "/items"):
            whole = served.ask("GET", path)
            one.request("HEAD", path)
            reply = read_reply(one)
            assert (reply.status, reply.content) == (200, b"")
            assert reply.headers["content-length"] == str(len(whole.content))


def test_draining_shows_before_the_listener_closes(live):
    with run_in_thread(live, Limits(drain_seconds=600.0)) as served:
        served.server.handle_exit(signal.SIGTERM, None)
        reply = served.ask("GET", "/readyz")
        assert (reply.status, reply.json["error"]["code"]) == (503, "draining")
        assert served.ask("GET", "/healthz").json == {"status": "draining"}
        assert served.ask("POST", "/recommend", HISTORY).status == 200
        assert 500 < served.server._closes_at - time.monotonic() < 600
        assert not served.server.should_exit
        served.server._closes_at = time.monotonic()
        served.wait_until(lambda: served.server.should_exit)


def test_a_body_has_one_length(live):
    with run_in_thread(live) as served:
        with socket.create_connection(("127.0.0.1", served.port), 5) as end:
            end.sendall(
                b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
                b"Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
                b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
            )
            said = b"".join(iter(lambda: end.recv(4096), b""))
    assert said.startswith(b"HTTP/1.1 400")
    assert said.count(b"HTTP/1.1") == 1, "the rest was read as a request"


# --- Changes, by us and by others -------------------------------------------------


def test_what_another_process_changes_is_followed(live):
    recommender, versions = live
    other = CatalogueVersions(versions.bundle, versions.folder)
    with run_in_thread(live, admin_token=ADMIN) as served:
        other.change(other.load(), remove=["item-7"], add=new_items(1))
        served.wait_until(lambda: served.ask("GET", "/items/item-7").status == 404)
        assert served.ask("GET", "/catalogue").json["version"] == 1
        served.wait_until(lambda: served.metric("tiger_catalogue_version") == 1)
        # A change that fits no more, before anybody has looked.
        served.service.poll_seconds = 3600.0
        time.sleep(0.1)
        other.change(other.load(), add=new_items(1, seed=2))
        new = {"item_id": "new-2-0", "title": "x", "embedding": [0.5] * 6}
        reply = served.ask(
            "POST", "/catalogue/items", {"items": [new]}, **bearing(ADMIN)
        )
        assert (reply.status, reply.json["error"]["code"]) == (409, "conflict")
        assert served.ask("GET", "/catalogue").json["version"] == 1
        reply = served.ask("POST", "/catalogue/reload", **bearing(ADMIN))
        assert (reply.status, reply.json) == (200, {"version": 2})
        # One that fits is made to what the other left.
        other.change(other.load(), remove=["item-9"])
        reply = served.ask("DELETE", "/catalogue/items/item-8", **bearing(ADMIN))
        assert reply.json["version"] == 4
        assert served.ask("GET", "/items/item-9").status == 404


def test_changes_of_the_bundle_before_are_followed(live, monkeypatch):
    class Before:
        def __init__(self, versions, trust):
            assert trust == ANY
            self.versions, self.left = versions, ["item-8", "item-7"]

        def catch_up(self):
            if self.left:
                self.versions.change(self.versions.load(), remove=[self.left.pop()])

    monkeypatch.setattr(service_module, "Predecessor", Before)
    with run_in_thread(live) as served:
        for item in ("item-7", "item-8"):
            path = f"/items/{item}"
            served.wait_until(lambda at=path: served.ask("GET", at).status == 404)


def test_a_damaged_version_of_another_is_not_served(live, caplog):
    recommender, versions = live
    other = CatalogueVersions(versions.bundle, versions.folder)
    with run_in_thread(live) as served:
        other.change(other.load(), remove=["item-7"])
        served.wait_until(lambda: recommender.catalogue.version == 1)
        other.change(other.load(), remove=["item-8"])
        (versions.folder / "version_000002" / "codes.npy").write_bytes(b"")
        time.sleep(0.3)
        assert served.ask("POST", "/recommend", HISTORY).status == 200
    assert recommender.catalogue.version in (1, 2)


def test_a_change_that_is_not_served_yet_is_no_refusal(live, second):
    """The disk has it; a device without memory takes it over later, by itself."""
    recommender, versions = live
    with run_in_thread(live, admin_token=ADMIN) as served:
        token = bearing(ADMIN)
        served.ask("POST", "/models", {"bundle": "newer", "share": 0.5}, **token)
        recommender.swap = lambda _: 1 / 0
        reply = served.ask("DELETE", "/catalogue/items/item-7", **token)
        assert (reply.status, reply.json["error"]["code"]) == (500, "unconfirmed")
        assert "version 1 is in force" in reply.json["error"]["message"]
        made = 'tiger_catalogue_changes_total{result="unconfirmed"}'
        assert served.metric(made) == 1
        listed = served.ask("GET", "/models").json["models"]
        assert [model["version"] for model in listed] == [0, 1]
        time.sleep(0.2)  # followed in vain, and again
        del recommender.swap
        served.wait_until(lambda: served.ask("GET", "/items/item-7").status == 404)
        candidate = served.service.candidate.recommender
        candidate.swap = lambda _: 1 / 0
        reply = served.ask("DELETE", "/catalogue/items/item-8", **token)
        assert reply.status == 200
        assert "not so the catalogue of newer" in reply.json["notes"][0]


def test_two_servers_and_a_command_lose_no_change(tiny, tmp_path):
    """Each removes items of its own at once; all end without any of them."""
    recommender, versions = tiny
    kept = [CatalogueVersions(versions.bundle, tmp_path / "v") for _ in range(3)]
    token, wrong = bearing(ADMIN), []
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(
                run_in_thread((recommender.fork(), one), admin_token=ADMIN)
            )
            for one in kept[:2]
        ]

        def change(place):
            for n in range(place, 30, 3):
                if place < 2:
                    path = f"/catalogue/items/item-{n}"
                    reply = servers[place].ask("DELETE", path, **token)
                    if reply.status != 200:
                        wrong.append(reply.content)
                else:
                    kept[2].change(kept[2].load(), remove=[f"item-{n}"])

        threads = [threading.Thread(target=change, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        for served in servers:
            served.wait_until(
                lambda s=served: s.ask("GET", "/catalogue").json["version"] == 30
            )
            assert served.ask("GET", "/catalogue").json["num_items"] == 20


@pytest.mark.slow  # a thousand versions, and searches beside them
@pytest.mark.timeout(3600)
def test_a_thousand_changes_at_once_fit_every_answer(tmp_path):
    """Two servers and a command line change stocks; each answer is of its version."""
    drawn, made = make_recommender(tmp_path / "shop")
    python = Recommender.of_parts(made.bundle.parts, drawn.shapes)
    kept = [CatalogueVersions(made.bundle, tmp_path / "v", keep=9999) for _ in "1234"]
    kept[3].change(kept[3].load(), attributes={"*": {"in_stock": True}})
    question = {"history": ["item-1"], "k": 5, "filter": {"in_stock": True}}
    count, is_over, token = 1000, threading.Event(), bearing(ADMIN)
    versions, wrong, answers, last = [], [], set(), {}
    due = threading.Semaphore(0)  # a question to each server for each change
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(
                run_in_thread(
                    (python.fork(one.load()), one), admin_token=ADMIN, poll_seconds=0.5
                )
            )
            for one in kept[:2]
        ]

        def change(place):
            for n in range(place, count, 3):
                item, values = f"item-{n % 48}", {"in_stock": n % 7 < 4}
                if place < 2:
                    path = f"/catalogue/items/{item}/attributes"
                    body = {"attributes": values}
                    reply = servers[place].ask("PUT", path, body, **token)
                    if reply.status != 200:
                        wrong.append(reply.content)
                        continue
                    versions.append(reply.json["version"])
                else:
                    wanted = {item: values}
                    _, report = kept[2].change(kept[2].load(), attributes=wanted)
                    versions.append(report.version)
                last[item] = values["in_stock"]
                due.release(2)

        def ask(served):
            while due.acquire() and not is_over.is_set():
                reply = served.ask("POST", "/recommend", question)
                if reply.status != 200:
                    wrong.append(reply.content)
                listed = tuple(item["item_id"] for item in reply.json["items"])
                answers.add((reply.json["version"], listed))

        asking = [threading.Thread(target=ask, args=(one,)) for one in servers]
        changing = [threading.Thread(target=change, args=(n,)) for n in range(3)]
        for thread in (*asking, *changing):
            thread.start()
        for thread in changing:
            thread.join()
        is_over.set()
        due.release(2)
        for thread in asking:
            thread.join()
        for served in servers:
            served.wait_until(
                lambda s=served: s.service.recommender.catalogue.version == count + 1
            )
    assert not wrong
    assert sorted(versions) == list(range(2, count + 2))
    stock = kept[3].load().attributes["in_stock"]
    assert {item: stock[item] for item in last} == last
    assert len(answers) > 100
    options = {name: question[name] for name in ("k", "filter")}
    for version, listed in answers:
        own = python.fork(kept[3].load(version))
        expected = own.recommend(question["history"], **options)
        assert listed == tuple(item.item_id for item in expected.items), version


def test_each_change_has_a_line_of_who_and_what(live, caplog):
    caplog.set_level(logging.INFO, "tiger_jax.audit")
    with run_in_thread(live, token=READER, admin_token=ADMIN) as served:
        path = "/catalogue/items/item-3"
        served.ask("DELETE", path, **bearing(ADMIN), **{"X-Request-Id": "r-1"})
        served.ask("DELETE", path, **bearing(ADMIN))
        lines = [r.getMessage() for r in caplog.records if "audit" in r.name]
        made = 'tiger_catalogue_changes_total{result="made"}'
        assert served.metric(made, **bearing(READER)) == 1
    assert lines[0] == f"DELETE {path} by 127.0.0.1: made, version 1"


def test_spans_are_made_of_requests_and_batches(live, monkeypatch):
    trace = pytest.importorskip("opentelemetry.trace")
    spans = []

    class Tracer:
        @contextlib.contextmanager
        def start_as_current_span(self, name, context):
            found = {"name": name, "parent": context}
            spans.append(found)
            yield types.SimpleNamespace(set_attributes=found.update)

    monkeypatch.setattr(trace, "get_tracer", lambda name: Tracer())
    caller = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    with run_in_thread(live, traces=Traces(True)) as served:
        assert served.ask("POST", "/recommend", HISTORY, **caller).status == 200
    batch = next(span for span in spans if span["name"] == "batch")
    request = next(span for span in spans if span["name"] == "POST")
    assert (batch["lane"], batch["rows"]) == ("search", 1)
    parent = trace.get_current_span(request["parent"]).get_span_context()
    assert parent.trace_id == int("a" * 32, 16)


# --- Who may do what --------------------------------------------------------------


def test_readers_read_and_administrators_change(live):
    with run_in_thread(live, token=READER, admin_token=ADMIN) as served:
        path = "/catalogue/items/item-3"
        assert served.ask("GET", "/items").status == 401
        for token in (READER, ADMIN):
            assert served.ask("GET", "/items", **bearing(token)).status == 200
        assert served.ask("DELETE", path, **bearing(READER)).status == 403
        assert served.ask("DELETE", path, **bearing("wrong" * 5)).status == 401
        assert served.ask("DELETE", path, **bearing(ADMIN)).status == 200


def test_tokens_are_read_again_from_their_files(live, tmp_path):
    file = tmp_path / "token"
    file.write_text(READER.replace(" ", "-"))
    tokens = Tokens.read(str(file))
    with run_in_thread(live) as served:
        served.service.tokens.__dict__.update(tokens.__dict__)
        old = bearing(READER.replace(" ", "-"))
        assert served.ask("GET", "/items", **old).status == 200
        file.write_text("short")  # kept as it was
        time.sleep(0.2)
        assert served.ask("GET", "/items", **old).status == 200
        file.write_text("another-token-of-some-length")
        served.wait_until(lambda: served.ask("GET", "/items", **old).status == 401)
        new = bearing("another-token-of-some-length")
        assert served.ask("GET", "/items", **new).status == 200


def test_operators_have_an_address_of_their_own(live):
    options = {"token": READER, "admin_token": ADMIN, "has_operations": True}
    with (
        run_in_thread(live, Limits(connections=2), **options) as served,
        contextlib.ExitStack() as open_ones,
    ):
        theirs = dataclasses.replace(served, port=served.operations_port)
        for method, path in (
            ("GET", "/metrics"),
            ("GET", "/models"),
            ("POST", "/catalogue/reload"),
            ("DELETE", "/catalogue/items/item-3"),
        ):
            assert served.ask(method, path, **bearing(ADMIN)).status == 404, path
            assert theirs.ask(method, path, **bearing(ADMIN)).status == 200, path
        assert theirs.ask("GET", "/metrics").status == 401
        for path in ("/readyz", "/catalogue", "/items/item-4"):
            for address in (served, theirs):
                assert address.ask("GET", path, **bearing(READER)).status == 200, path
        for _ in range(2):
            kept = open_ones.enter_context(contextlib.closing(served.connect()))
            kept.request("GET", "/healthz")
            read_reply(kept)
        assert served.ask("GET", "/healthz").status == 503  # too many connections
        assert theirs.ask("GET", "/metrics", **bearing(READER)).status == 200


def test_tokens_in_the_clear_to_operators_are_warned_about(capsys):
    with contextlib.closing(listen("127.0.0.1", 0)) as one:
        tokens, proxy = Tokens("reader", "admin"), Proxy()
        server_module.say_where("10.0.0.1", one, tokens, proxy, "operations at ")
        assert capsys.readouterr().out.count("note: tokens travel in the clear") == 1


@pytest.mark.parametrize("address", ["9000", ":9000", "127.0.0.1:x", "127.0.0.1:8000"])
def test_the_operators_address_is_another_one(address):
    with pytest.raises(InputError, match="must be ADDRESS:PORT"):
        server_module.listen_for_operators(address, 8000)


# --- Bundles exchanged and compared -----------------------------------------------


@pytest.fixture
def second(tmp_path, monkeypatch):
    """Another bundle beside the one served, as if it could be read."""
    recommender, versions = make_recommender(tmp_path / "second")
    recommender = dataclasses.replace(recommender, model="second")

    def load(folder, trust):
        assert trust == ANY
        if folder.name != "newer":
            raise InputError(f"{folder} is no bundle's folder")
        bundle = dataclasses.replace(versions.bundle, folder=folder)
        return recommender.fork(), CatalogueVersions(bundle, tmp_path / "second-v")

    monkeypatch.setattr(service_module, "load_with_versions", load)


def test_a_signal_beside_a_request_loads_a_bundle_once(live, second, monkeypatch):
    loads, load = [], service_module.load_with_versions

    def count(*args, **options):
        loads.append(args)
        return load(*args, **options)

    monkeypatch.setattr(service_module, "load_with_versions", count)
    with run_in_thread(live) as served:
        loop = served.service.batcher._workers[0].get_loop()
        both = [
            asyncio.run_coroutine_threadsafe(
                served.service.serve_bundle("newer", 1.0), loop
            )
            for _ in range(2)
        ]
        for one in both:
            one.result(30)
        assert served.service.recommender.model == "second"
    assert len(loads) == 1


def test_a_bundle_takes_the_others_place_without_a_lost_request(live, second):
    statuses, models, is_over = set(), set(), threading.Event()
    with run_in_thread(live, admin_token=ADMIN) as served:

        def ask():
            while not is_over.is_set():
                reply = served.ask("POST", "/recommend", HISTORY)
                statuses.add(reply.status)
                models.add(reply.json.get("model"))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        wanted = {"bundle": "newer", "share": 1}
        reply = served.ask("POST", "/models", wanted, **bearing(ADMIN))
        assert reply.status == 200, reply.content
        assert [m["model"] for m in reply.json["models"]] == ["second"]
        assert served.ask("POST", "/recommend", HISTORY).json["model"] == "second"
        is_over.set()
        for thread in threads:
            thread.join()
        assert served.ask("POST", "/models", wanted).status == 403
        for name, status in (("nothing", 422), ("../x", 422), (".", 422)):
            body = {"bundle": name, "share": 1}
            reply = served.ask("POST", "/models", body, **bearing(ADMIN))
            assert reply.status == status, name
    assert statuses == {200}
    assert models == {"first", "second"}


def test_only_an_expected_bundle_takes_anothers_place(live, monkeypatch):
    def load(folder, trust):
        raise InputError(f"{folder} has another hash than {trust.hashes}")

    monkeypatch.setattr(service_module, "load_with_versions", load)
    with run_in_thread(live, admin_token=ADMIN, trust=Trust(("9f2c",))) as served:
        wanted = {"bundle": "newer", "share": 1}
        reply = served.ask("POST", "/models", wanted, **bearing(ADMIN))
        assert reply.status == 422
        assert "another hash than ('9f2c',)" in reply.json["error"]["message"]
        assert served.ask("POST", "/recommend", HISTORY).json["model"] == "first"


def test_a_candidate_answers_its_share_and_has_the_changes_too(live, second):
    with run_in_thread(live, admin_token=ADMIN) as served:
        token = bearing(ADMIN)
        wanted = {"bundle": "newer", "share": 0.5}
        served.ask("POST", "/models", wanted, **token)
        asked = [served.ask("POST", "/recommend", HISTORY) for _ in range(60)]
        models = [reply.json["model"] for reply in asked]
        assert 10 < models.count("second") < 50
        assert served.metric('tiger_answers_total{model="second"}') == models.count(
            "second"
        )
        assert served.ask("DELETE", "/catalogue/items/item-5", **token).status == 200
        listed = served.ask("GET", "/models").json["models"]
        assert [(m["model"], m["version"], m["share"]) for m in listed] == [
            ("first", 1, 0.5),
            ("second", 1, 0.5),
        ]
        served.ask("POST", "/models", {**wanted, "share": 0}, **token)
        asked = [served.ask("POST", "/recommend", HISTORY) for _ in range(10)]
        assert {reply.json["model"] for reply in asked} == {"first"}


# --- Addresses and logs ------------------------------------------------------------


def test_a_socket_file_is_listened_on_and_a_dead_ones_replaced(tmp_path):
    path = tmp_path / "tiger.sock"
    listen(f"unix:{path}", 0).close()
    listener = listen(f"unix:{path}", 0)
    with pytest.raises(InputError, match="another server listens there"):
        listen(f"unix:{path}", 0)
    listener.close()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(InputError, match="can't listen"):
        listen(f"unix:{path}", 0)
    assert path.read_text() == "precious"


def test_proxies_and_certificates_are_uvicorns_options(live, tmp_path):
    proxy = Proxy(root_path="/shop/", trusted=("10.0.0.1",))
    service = service_module.Service(*live, Limits())
    config = make_server(service, page="", proxy=proxy).config
    assert (config.root_path, config.proxy_headers) == ("/shop", True)
    assert config.forwarded_allow_ips == ["10.0.0.1"]
    with pytest.raises(InputError, match="serve.certificate=.* is not a file"):
        make_server(service, page="", proxy=Proxy(certificate="nothing.pem", key="x"))
    (tmp_path / "c.pem").write_text("")
    alone = Proxy(certificate=str(tmp_path / "c.pem"))
    with pytest.raises(InputError, match="go together"):
        make_server(service, page="", proxy=alone)


def test_under_a_proxys_path_the_page_and_the_probes_stay_open(live):
    proxy = Proxy(root_path="/shop")
    with run_in_thread(live, token=READER, proxy=proxy, page="<p>x") as served:
        for path, status in (("/", 200), ("/readyz", 200), ("/items", 401)):
            assert served.ask("GET", path).status == status
        assert served.ask("GET", "/items", **bearing(READER)).status == 200
        schema = served.ask("GET", "/openapi.json").json
        assert schema["servers"] == [{"url": "/shop"}]


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_log_line_is_one_line_and_no_terminals_command(kind):
    REQUEST_ID.set("r-9")
    record = logging.LogRecord(
        "tiger_jax.x", 30, "", 1, "seen %s", ("\x1b[2J\nfalse",), None
    )
    line = Formatter(kind).format(record)
    REQUEST_ID.set("")
    assert "\n" not in line
    assert "\x1b" not in line
    if kind == "json":
        fields = json.loads(line)
        assert fields["request_id"] == "r-9"
        assert fields["message"] == "seen \x1b[2J\nfalse"
        assert fields["time"].endswith("+00:00")


def test_only_its_own_names_are_local():
    assert server_module.is_loopback("unix:/run/x.sock")
    assert server_module.default_hosts("unix:/run/x.sock", ()) == ()
    assert not server_module.is_loopback("0.0.0.0")
