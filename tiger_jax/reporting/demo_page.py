"""The page at a server's `/`: one HTML file that fetches from that server alone."""

import base64
import hashlib

from tiger_jax.reporting.page import make_environment


def build_demo_page() -> str:
    """Fills in the page; its own script is the only one that it allows to run."""
    environment = make_environment()
    # Inlined as it is: the hash in the page's policy is that of these very bytes.
    script, _, _ = environment.loader.get_source(environment, "demo.js")
    digest = hashlib.sha256(script.encode()).digest()
    return environment.get_template("demo.html").render(
        script=script, script_hash=base64.b64encode(digest).decode()
    )
