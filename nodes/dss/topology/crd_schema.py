"""From msgspec structs to a structural OpenAPI schema: types, ranges, descriptions, full defaults.

A pattern whose field has a `message` becomes a CEL rule, for the API server quotes a pattern as
it is and a person cannot act on that.
What must not live here: any particular field or rule (spec.py, crd_rules.py).
"""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
from msgspec.inspect import (
    AnyType,
    BoolType,
    DictType,
    IntType,
    ListType,
    LiteralType,
    Metadata,
    NoneType,
    StrType,
    StructType,
    Type,
    UnionType,
    type_info,
)

Schema = dict[str, Any]
Rules = dict[str, list[Schema]]
"""Path below `spec` ("" for itself, `lock.storage`) -> its CEL rules."""


def schema_of(
    default: msgspec.Struct, rules: Rules, given: dict[str, Schema], *, leave_out: frozenset[str]
) -> Schema:
    """The schema of `default`'s type, with its values as the defaults at every level.

    Args:
        rules: all must find their place, else KeyError.
        given: path -> the schema of a field that the model holds as a plain map.
        leave_out: top-level fields that the resource does not have.
    """
    walk = _Walk(dict(rules), given, leave_out)
    kind = type_info(type(default))
    assert isinstance(kind, StructType)
    schema = walk.struct(kind, default, "")
    if walk.rules:
        raise KeyError(f"no field for the rules of {', '.join(walk.rules)}")
    return schema


class _Walk:
    def __init__(self, rules: Rules, given: dict[str, Schema], leave_out: frozenset[str]) -> None:
        self.rules = rules
        self.given = given
        self.leave_out = leave_out

    def struct(self, kind: StructType, default: Any, path: str) -> Schema:
        properties: Schema = {}
        required = []
        for field in kind.fields:
            if not path and field.encode_name in self.leave_out:
                continue
            below = f"{path}.{field.encode_name}" if path else field.encode_name
            value = msgspec.NODEFAULT if default is None else getattr(default, field.name)
            if default is None and not field.required:
                value = field.default
                if field.default_factory is not msgspec.NODEFAULT:
                    value = field.default_factory()
            if field.required:
                required.append(field.encode_name)
            properties[field.encode_name] = self.field(field.type, value, below)
        schema: Schema = {"type": "object", "description": inspect.getdoc(kind.cls) or ""}
        schema["description"] = schema["description"].split("\n\n")[0].replace("\n", " ")
        if required:
            schema["required"] = required
        schema["properties"] = properties
        return self.with_rules(schema, path)

    def field(self, kind: Type, value: Any, path: str) -> Schema:
        schema = self.typed(kind, value, path)
        if value is not msgspec.NODEFAULT and value is not None:
            plain = msgspec.to_builtins(value)
            if not path.count(".") and isinstance(plain, dict):
                for name in self.leave_out:
                    plain.pop(name, None)
            schema["default"] = plain
        return schema

    def with_rules(self, schema: Schema, path: str) -> Schema:
        found = self.rules.pop(path, [])
        if found:
            schema.setdefault("x-kubernetes-validations", []).extend(found)
        return schema

    def typed(self, kind: Type, value: Any, path: str) -> Schema:
        """The schema of one type, without its default."""
        if isinstance(kind, StructType):
            nested = value if isinstance(value, kind.cls) else None
            return self.struct(kind, nested, path)
        if isinstance(kind, Metadata):
            schema = self.typed(kind.type, value, path)
            extra = kind.extra or {}
            if "message" in extra and "pattern" in schema:
                pattern = schema.pop("pattern")
                rule = {"rule": f"self.matches(r'{pattern}')", "message": _expected(path, extra)}
                schema.setdefault("x-kubernetes-validations", []).insert(0, rule)
            return schema | (kind.extra_json_schema or {})
        schema = self.given.get(path) or _plain(kind)
        if isinstance(kind, ListType):
            schema["items"] = self.typed(kind.item_type, msgspec.NODEFAULT, f"{path}[]")
        elif isinstance(kind, DictType) and not isinstance(kind.value_type, AnyType):
            values = self.typed(kind.value_type, msgspec.NODEFAULT, f"{path}.*")
            schema["additionalProperties"] = values
        elif isinstance(kind, UnionType):
            schema = self.union(kind, path)
        return self.with_rules(schema, path)

    def union(self, kind: UnionType, path: str) -> Schema:
        kinds = [each for each in kind.types if not isinstance(each, NoneType)]
        if len(kinds) == 1:
            return self.typed(kinds[0], msgspec.NODEFAULT, path)
        schemas = [self.typed(each, msgspec.NODEFAULT, path) for each in kinds]
        assert [schema.pop("type") for schema in schemas] == ["integer", "string"]
        either: Schema = {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
        }
        return either | schemas[1]


def _expected(path: str, extra: dict[str, Any]) -> str:
    name = path.removesuffix(".*").replace("[]", "")
    return f"spec.{name}: expected {extra['message']}"


def _plain(kind: Type) -> Schema:
    """The schema of a type without what lies below it."""
    if isinstance(kind, BoolType):
        return {"type": "boolean"}
    if isinstance(kind, IntType):
        return {"type": "integer", "format": "int64"} | _bounds(minimum=kind.ge, maximum=kind.le)
    if isinstance(kind, StrType):
        return {"type": "string"} | _bounds(
            minLength=kind.min_length, maxLength=kind.max_length, pattern=kind.pattern
        )
    if isinstance(kind, LiteralType):
        word = "integer" if isinstance(kind.values[0], int) else "string"
        return {"type": word, "enum": list(kind.values)}
    if isinstance(kind, ListType):
        bounds = _bounds(maxItems=kind.max_length)
        return {"type": "array", "x-kubernetes-list-type": "atomic"} | bounds
    if isinstance(kind, DictType):
        return {"type": "object"} | _bounds(maxProperties=kind.max_length)
    if isinstance(kind, UnionType):
        return {}
    raise TypeError(f"no schema for {kind}")


def _bounds(**given: Any) -> Schema:
    return {name: value for name, value in given.items() if value is not None}
