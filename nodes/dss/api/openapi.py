"""`/openapi.json` (OpenAPI 3.1) out of the routes, and `/docs`, one page that renders it.

What must not live here: routes. The page is self-contained: no CDN, nothing but this node.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec

from dss import __version__
from dss.api.auth import GUARDED_PREFIX
from dss.api.problem import JSON_TYPE, PROBLEM_TYPE
from dss.api.routes import Route

_PARAMETER: Final = re.compile(r"{(\w+)}")
_REF: Final = "#/components/schemas/{name}"


class Problem(msgspec.Struct, kw_only=True):
    """RFC 9457. `code` is stable; further members depend on it."""

    type: str
    title: str
    status: int
    detail: str
    """One line for a person: what happened, where, what to do next."""
    code: str
    retry_after_ms: int | None = None
    """Repeating the same request after this time may help."""


def document(routes: Sequence[Route], role: str, *, tokens: bool = False) -> bytes:
    """The OpenAPI document of one node, encoded.

    Args:
        tokens: routes below /v1 want a bearer token.
    """
    kinds = [
        kind for route in routes for kind in (route.request, route.response, *route.also.values())
    ]
    kinds = [kind for kind in [*kinds, Problem] if kind is not None and kind is not bytes]
    # Schemas once per type; two routes may share one.
    unique = list(dict.fromkeys(kinds))
    schemas, components = msgspec.json.schema_components(unique, ref_template=_REF)
    by_kind = dict(zip(unique, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_kind, tokens)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": f"DSS {role} node",
                "version": __version__,
                "description": "Names in paths are percent-encoded (a slash is %2F).",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
                "responses": {
                    "Problem": {
                        "description": "An error; `code` says which.",
                        "content": {PROBLEM_TYPE: {"schema": by_kind[Problem]}},
                    }
                },
            },
        }
    )


def _operation(route: Route, schemas: dict[Any, dict[str, Any]], tokens: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": operation_id(route),
        "summary": route.summary,
        "tags": [_tag(route.path)],
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(route.path)
    ]
    parameters += [
        {"name": name, "in": place, "description": text, "schema": {"type": "string"}}
        for place, described in (("query", route.query), ("header", route.headers))
        for name, text in described.items()
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.request is not None:
        operation["requestBody"] = {
            "required": route.request is not bytes,
            "content": _content(route.request, schemas, "*/*"),
        }
    problem = {"$ref": "#/components/responses/Problem"}
    errors = {500, *route.errors}
    if parameters:
        errors.add(422)
    if _PARAMETER.search(route.path):
        errors.add(404)  # a name whose slashes are not encoded is another path
    if route.request is not None:
        errors |= {413, 422}
    if tokens and route.path.startswith(GUARDED_PREFIX):
        operation["security"] = [{"token": []}]
        errors |= {401, 403} if route.admin else {401}
    elif route.writes and route.path.startswith(GUARDED_PREFIX):
        errors.add(403)
    successes = {route.status: route.response} | route.also
    operation["responses"] = {
        str(status): _success(status, kind, schemas) for status, kind in successes.items()
    } | {str(status): problem for status in sorted(errors)}
    return operation


def _success(status: int, kind: Any, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    success: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if kind is not None:
        success["content"] = _content(kind, schemas, "*/*")
    return success


def _content(kind: Any, schemas: dict[Any, dict[str, Any]], raw: str) -> dict[str, Any]:
    """`bytes` stands for a raw body, of the content type `raw`. (A request's Content-Type is no
    header parameter in OpenAPI: it stands here.)"""
    if kind is bytes:
        return {raw: {}}
    return {JSON_TYPE: {"schema": schemas[kind]}}


def operation_id(route: Route) -> str:
    """`post_v1_locks_name_acquire`: unique, since method and path are."""
    words = re.findall(r"\w+", route.path)
    return "_".join([route.method.lower(), *words])


def _tag(path: str) -> str:
    parts = re.findall(r"\w+", path)
    return parts[1] if len(parts) > 1 and parts[0] == "v1" else "node"


DOCS_HEADERS: Final = {
    "Content-Type": "text/html; charset=utf-8",
    "Server": "dss",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "connect-src 'self'; frame-ancestors 'none'"
    ),
}

DOCS_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>DSS API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); text-transform: capitalize }
details { border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0 }
summary { cursor: pointer; padding: .4rem .7rem; display: flex; gap: .7rem; flex-wrap: wrap }
summary b { min-width: 4.2rem } summary span { opacity: .75 }
code, pre { font: 13px/1.45 ui-monospace, monospace }
pre { background: var(--soft); padding: .6rem; border-radius: 4px; overflow: auto; margin: .3rem 0 }
.in { padding: 0 .9rem .7rem } .get { color: #2a7ae2 } .post { color: #1a9850 }
.put { color: #c77700 } .delete { color: #d03030 }
</style></head><body><h1 id="title">DSS API</h1><p id="about"></p>
<p>Machine-readable: <a href="openapi.json">openapi.json</a></p><main></main><script>
const make = (tag, text, cls) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (cls) node.className = cls;
  return node;
};
const shape = (schema, all, depth = 0) => {
  if (!schema || depth > 5) return "…";
  if (schema.$ref) return shape(all[schema.$ref.split("/").pop()], all, depth + 1);
  if (schema.anyOf) return schema.anyOf.map(s => shape(s, all, depth)).join(" | ");
  if (schema.enum) return schema.enum.map(v => JSON.stringify(v)).join(" | ");
  if (schema.type === "array") return "[" + shape(schema.items || {}, all, depth + 1) + ", …]";
  if (schema.properties) {
    const pad = "  ".repeat(depth + 1), need = schema.required || [];
    return "{\\n" + Object.entries(schema.properties).map(([name, s]) =>
      pad + name + (need.includes(name) ? "" : "?") + ": " + shape(s, all, depth + 1) +
      (s.default !== undefined && s.default !== null ? " = " + JSON.stringify(s.default) : "") +
      (s.minimum !== undefined ? "  ≥ " + s.minimum : "") +
      (s.maximum !== undefined ? "  ≤ " + s.maximum : "")
    ).join("\\n") + "\\n" + "  ".repeat(depth) + "}";
  }
  return schema.type || "any";
};
const body = (content, all) => {
  const [kind, value] = Object.entries(content)[0];
  return kind === "application/json" ? shape(value.schema, all) : kind;
};
fetch("openapi.json").then(r => r.json()).then(api => {
  const all = api.components.schemas, groups = {};
  document.title = document.getElementById("title").textContent =
    api.info.title + " " + api.info.version;
  document.getElementById("about").textContent = api.info.description;
  for (const [path, methods] of Object.entries(api.paths))
    for (const [method, op] of Object.entries(methods))
      (groups[op.tags[0]] ||= []).push([method, path, op]);
  for (const [tag, ops] of Object.entries(groups)) {
    const main = document.querySelector("main");
    main.append(make("h2", tag));
    for (const [method, path, op] of ops) {
      const box = make("details"), head = make("summary"), inner = make("div", undefined, "in");
      head.append(make("b", method.toUpperCase(), method), make("code", path));
      head.append(make("span", op.summary));
      for (const p of op.parameters || [])
        if (p.in !== "path")
          inner.append(make("div", (p.in === "query" ? "?" : "") + p.name + ": " + p.description));
      if (op.requestBody) {
        inner.append(make("div", "Body"), make("pre", body(op.requestBody.content, all)));
      }
      const errors = [];
      for (const [status, answer] of Object.entries(op.responses)) {
        if (answer.$ref) { errors.push(status); continue; }
        inner.append(make("div", status + " " + answer.description));
        if (answer.content) inner.append(make("pre", body(answer.content, all)));
      }
      inner.append(make("div", "Errors (application/problem+json): " + errors.join(", ")));
      box.append(head, inner);
      main.append(box);
    }
  }
});
</script></body></html>
"""
