"""Strict schemas of the objects of the Prometheus operator and of the Gateway API, as far as the chart uses them.

Their CRDs are not part of this repository. These have every field that the chart may write, with the types and values
of the CRDs (monitoring.coreos.com/v1, gateway.networking.k8s.io/v1); any other field is an error.
"""

from typing import Any

from jsonschema import Draft7Validator

from tests.chart.release import Object

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
TEXTS: Schema = {"type": "array", "items": TEXT}
LABELS: Schema = {"type": "object", "additionalProperties": TEXT}
DURATION: Schema = {
    "type": "string",
    "pattern": "^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$",
}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}


def _closed(required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


SELECTOR = _closed(
    matchLabels=LABELS,
    matchExpressions=_list(
        _closed(
            ("key", "operator"),
            key=TEXT,
            operator={"enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
            values=TEXTS,
        )
    ),
)
RELABELING = _closed(
    sourceLabels=TEXTS,
    separator=TEXT,
    targetLabel=TEXT,
    regex=TEXT,
    replacement=TEXT,
    action={"enum": ["replace", "keep", "drop", "labelmap", "labeldrop", "labelkeep", "hashmod"]},
)
AUTHORIZATION = _closed(
    type=TEXT,
    credentials=_closed(("key",), name=TEXT, key=TEXT, optional={"type": "boolean"}),
)
ENDPOINT = {
    "port": TEXT,
    "path": TEXT,
    "interval": DURATION,
    "scrapeTimeout": DURATION,
    "authorization": AUTHORIZATION,
    "relabelings": _list(RELABELING),
    "metricRelabelings": _list(RELABELING),
}
RULE = _closed(
    ("expr",),
    **{
        "record": TEXT,
        "alert": TEXT,
        "expr": {"type": ["string", "integer"]},
        "for": DURATION,
        "keep_firing_for": DURATION,
        "labels": LABELS,
        "annotations": LABELS,
    },
)
REFERENCE = {"group": TEXT, "kind": TEXT, "name": TEXT, "namespace": TEXT, "port": PORT}
SPECS = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): _closed(
        ("selector", "endpoints"), selector=SELECTOR, endpoints=_list(_closed(**ENDPOINT))
    ),
    ("monitoring.coreos.com/v1", "PodMonitor"): _closed(
        ("selector", "podMetricsEndpoints"),
        selector=SELECTOR,
        podTargetLabels=TEXTS,
        podMetricsEndpoints=_list(_closed(**ENDPOINT)),
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _closed(
        groups=_list(
            _closed(
                ("name",),
                name=TEXT,
                interval=DURATION,
                limit={"type": "integer"},
                rules=_list(RULE),
            )
        )
    ),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): _closed(
        parentRefs=_list(_closed(("name",), **REFERENCE, sectionName=TEXT), maxItems=32),
        hostnames=_list(TEXT, maxItems=16),
        rules=_list(
            _closed(
                matches=_list(
                    _closed(
                        path=_closed(
                            type={"enum": ["Exact", "PathPrefix", "RegularExpression"]}, value=TEXT
                        )
                    )
                ),
                backendRefs=_list(_closed(("name",), **REFERENCE, weight={"type": "integer"})),
                timeouts=_closed(request=TEXT, backendRequest=TEXT),
            ),
            maxItems=16,
        ),
    ),
}


def complaints_of_operators(item: Object) -> list[str]:
    """Fields of an object that its CRD would reject or drop. Raises KeyError for a kind that is not described."""
    schema = _closed(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion=TEXT,
        kind=TEXT,
        metadata=_closed(("name",), name=TEXT, namespace=TEXT, labels=LABELS, annotations=LABELS),
        spec=SPECS[item["apiVersion"], item["kind"]],
    )
    errors = Draft7Validator(schema).iter_errors(item)
    return [f"{error.json_path}: {error.message}" for error in errors]
