"""Stage `serve`: a bundle behind HTTP, until it is stopped; writes no folder."""

import contextlib
import os
import signal

import gin

from tiger_jax.errors import InputError, LockedError
from tiger_jax.progress import say
from tiger_jax.recommending.bundle import BUNDLE
from tiger_jax.recommending.hub import bundle_at, fetch_bundle
from tiger_jax.recommending.recommender import load_with_versions
from tiger_jax.recommending.trust import Trust
from tiger_jax.reporting.page import build_demo_page
from tiger_jax.serving.settings import Limits
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir.artifacts import recover_all
from tiger_jax.workdir.lock import hold_workdir


@gin.configurable(module="stages")
def serve(
    context: RunContext,
    *,
    bundle: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: str | None = None,
    admin_token_file: str | None = None,
    hosts: tuple[str, ...] = (),
    workers: int = 1,
    poll_seconds: float = 1.0,
    log_format: str = "text",
    traces: bool = False,
    root_path: str = "",
    trusted_proxies: tuple[str, ...] = (),
    certificate: str | None = None,
    key: str | None = None,
    expected_hash: str | tuple[str, ...] | None = None,
    public_key: str | None = None,
    operations: str | None = None,
    limits: Limits = Limits(),
) -> None:
    """Answers over HTTP until SIGINT or SIGTERM.

    Args:
        bundle: The bundle's folder; that of the work directory by default.
        host: The address to listen on; others than loopback reach other machines.
            "unix:PATH" makes a socket file.
        port: 0 takes any free one.
        token_file: A file with the token that requests must bear; without it, the
            variable TIGER_SERVE_TOKEN. Without either, whoever reaches the server
            may ask. The file is read again when it changes, as is the next.
        admin_token_file: The same for who may change the catalogue, or
            TIGER_SERVE_ADMIN_TOKEN; without it, whoever bears the first token may,
            and without both, nobody.
        hosts: Further names that the server is addressed by. On loopback, all others
            are refused; elsewhere, any name will do if this is empty.
        workers: Processes behind one listener: each with the bundle in memory, its
            part of the cores, or an accelerator of its own.
        poll_seconds: Between looks for what other processes did to the catalogue.
        log_format: "text" or "json", on standard error.
        traces: Make spans of requests and batches for OpenTelemetry.
        root_path: Under which a proxy shows the server, such as "/shop".
        trusted_proxies: Addresses whose X-Forwarded-For and -Proto are believed.
        certificate: A PEM file, to speak TLS; together with `key`.
        expected_hash: The SHA-256 of the bundle's manifest, as noted where it was
            exported, or several: any other is refused, now and in its place later.
        public_key: A PEM file with the Ed25519 key that must have signed the bundle,
            and each that would take its place.
        operations: "ADDRESS:PORT" for what is the operators' alone: metrics, models
            and changes, which the other address then has no more.
        limits: How much it takes on.
    """
    try:
        from tiger_jax.serving import logs, server
        from tiger_jax.serving import workers as processes
        from tiger_jax.serving.service import Service
        from tiger_jax.serving.tokens import Tokens
        from tiger_jax.serving.traces import Traces
    except ModuleNotFoundError as error:
        raise InputError(
            f"serving needs the package {error.name}: pip install -e '.[serve]'"
        ) from error
    if not 0 <= port < 1 << 16:
        raise InputError(f"serve.port is {port}: it must lie in 0 … 65535")
    if log_format not in ("text", "json"):
        raise InputError(f"serve.log_format is {log_format!r}: choose text or json")
    if workers < 1 or poll_seconds <= 0:
        raise InputError("serve.workers and serve.poll_seconds must be positive")
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # until it answers
    reloads: list[int] = []  # asked for until then
    signal.signal(signal.SIGHUP, lambda number, _: reloads.append(number))
    proxy = server.Proxy(root_path, trusted_proxies, certificate, key)
    tokens = Tokens.read(token_file, admin_token_file)
    listeners = processes.inherited_listeners()

    def listen() -> None:
        listeners.append(server.listen(host, port))
        server.say_where(host, listeners[0], tokens, proxy)
        if operations is not None:
            where, listener = server.listen_for_operators(operations, port)
            server.say_where(where, listener, tokens, proxy, "operations at ")
            listeners.append(listener)

    if not listeners and workers > 1:
        listen()
        processes.supervise(listeners, workers)
        return
    logs.start_logging(log_format)
    folder = fetch_bundle(bundle_at(bundle)) if bundle else context.workdir / BUNDLE
    if not folder.exists() and folder.with_name(folder.name + ".old").exists():
        # Who was exchanging it was killed, or is at it and will have done so soon.
        with contextlib.suppress(LockedError), hold_workdir(folder.parent):
            recover_all(folder.parent)
    expected = expected_hash or ()
    expected = (expected,) if isinstance(expected, str) else expected
    trust = Trust(expected, public_key)
    recommender, versions = load_with_versions(folder, trust=trust)
    say(
        f"serve: {folder}, model {recommender.model}, version "
        f"{recommender.catalogue.version}, {recommender.catalogue.num_items:,} items; "
        "compiling the searches"
    )
    service = Service(
        recommender,
        versions,
        limits,
        tokens=tokens,
        poll_seconds=poll_seconds,
        traces=Traces(traces),
        trust=trust,
    )
    if listeners:
        service.warm_up()
    else:
        listen()
    made = server.make_server(
        service,
        page=build_demo_page(),
        hosts=server.default_hosts(host, hosts),
        proxy=proxy,
        operations=(*listeners, None)[1],
    )
    server.run_server(made, service, listeners, processes.tell_parent_ready, reloads)
