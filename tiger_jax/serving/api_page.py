"""The page at `/docs`: what can be asked, by a call to copy; no script, no styles."""

import html
import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any


def describe_api(schema: Mapping[str, Any]) -> str:
    """An HTML page of an OpenAPI schema."""
    title = html.escape(f"{schema['info']['title']} {schema['info']['version']}")
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>",
        f"<h1>{title}</h1><p>The whole schema: <a href=openapi.json>openapi.json</a>",
    ]
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            what = html.escape(route.get("description", route["summary"]))
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{what}")
            fields = [
                f"<li><code>{html.escape(n)}</code> {html.escape(d)}"
                for n, d in _fields(schema, route)
            ]
            parts.append(f"<ul>{''.join(fields)}</ul>" if fields else "")
            parts.append(
                f"<pre>{html.escape(_call(schema, method, path, route))}</pre>"
            )
    return "\n".join(parts)


def _body(schema: Mapping[str, Any], route: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a route's JSON body, empty without one."""
    content = route.get("requestBody", {}).get("content", {})
    found = content.get("application/json", {}).get("schema", {})
    name = found.get("$ref", "").rpartition("/")[2]
    return schema["components"]["schemas"].get(name, found)


def _fields(
    schema: Mapping[str, Any], route: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    for parameter in route.get("parameters", ()):
        yield parameter["name"], parameter.get("description", "")
    for name, field in _body(schema, route).get("properties", {}).items():
        yield name, field.get("description", "")


def _call(
    schema: Mapping[str, Any], method: str, path: str, route: Mapping[str, Any]
) -> str:
    words = ["curl"] + ["-X", method.upper()] * (method not in ("get", "post"))
    if route.get("requestBody"):
        examples = _body(schema, route).get("examples", [{}])
        words += ["-H", "Content-Type: application/json", "-d", json.dumps(examples[0])]
    return f"{shlex.join(words)} http://127.0.0.1:8000{path}"
