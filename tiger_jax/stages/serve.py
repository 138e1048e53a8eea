"""Stage `serve`: a bundle behind HTTP, until it is stopped; writes no folder."""

import gin

from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.recommending.bundle import BUNDLE
from tiger_jax.recommending.hub import bundle_at
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.versions import CatalogueVersions
from tiger_jax.reporting.page import build_demo_page
from tiger_jax.serving.settings import Limits
from tiger_jax.stages.context import RunContext


@gin.configurable(module="stages")
def serve(
    context: RunContext,
    *,
    bundle: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: str | None = None,
    hosts: tuple[str, ...] = (),
    limits: Limits = Limits(),
) -> None:
    """Answers over HTTP until SIGINT or SIGTERM.

    Args:
        bundle: The bundle's folder; that of the work directory by default.
        host: The address to listen on; others than loopback reach other machines.
        port: 0 takes any free one.
        token_file: A file with the token that requests must bear; without it, the
            variable TIGER_SERVE_TOKEN. Without either, whoever reaches the server
            may ask, and nobody may change the catalogue.
        hosts: Further names that the server is addressed by. On loopback, all others
            are refused; elsewhere, any name will do if this is empty.
        limits: How much it takes on.
    """
    try:
        from tiger_jax.serving import server
        from tiger_jax.serving.app import Service
    except ModuleNotFoundError as error:
        raise InputError(
            f"serving needs the package {error.name}: pip install -e '.[serve]'"
        ) from error
    if not 0 <= port < 1 << 16:
        raise InputError(f"serve.port is {port}: it must lie in 0 … 65535")
    token = server.read_token(token_file)
    folder = bundle_at(bundle) if bundle else context.workdir / BUNDLE
    versions = CatalogueVersions.open(folder)
    recommender = Recommender.load(versions)
    service = Service(recommender, versions, limits, token=token)
    listener = server.listen(host, port)
    name = f"[{host}]" if ":" in host else host
    say(
        f"serve: http://{name}:{listener.getsockname()[1]}, "
        f"{recommender.catalogue.num_items:,} items; compiling the searches"
    )
    if token is None and not server.is_loopback(host):
        say("note: no token is set, so whoever reaches this address may ask")
    server.run_server(
        service,
        listener,
        page=build_demo_page(),
        hosts=server.default_hosts(host, hosts),
    )
