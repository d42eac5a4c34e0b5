"""What the chart renders for the Prometheus operator is what the operator's own definitions allow."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from helm.operator_schemas import PLURALS, complaints
from helm.test_chart import HELM, ON, VALUE_SETS, render, the

pytestmark = pytest.mark.skipif(HELM is None, reason="helm is not installed")

MONITORED = {
    "PodMonitor": VALUE_SETS["monitored"],
    "ServiceMonitor": VALUE_SETS["service monitor"],
    "PrometheusRule": {"monitoring": {"prometheusRule": ON | {"labels": {"release": "prometheus"}}}},
}


def rendered(kind: str) -> dict[str, Any]:
    return the(render(MONITORED[kind]), kind)


@pytest.mark.parametrize("kind", PLURALS)
def test_the_operator_takes_what_is_rendered(kind: str) -> None:
    assert complaints(rendered(kind)) == []


@pytest.mark.parametrize("kind", PLURALS)
def test_a_misspelt_field_would_be_noticed(kind: str) -> None:
    document = copy.deepcopy(rendered(kind))
    document["spec"]["intervall"] = "15s"
    assert any("intervall" in complaint for complaint in complaints(document))


def test_a_value_of_the_wrong_kind_would_be_noticed() -> None:
    monitor = copy.deepcopy(rendered("ServiceMonitor"))
    monitor["spec"]["endpoints"][0]["interval"] = "a while"
    assert any("a while" in complaint for complaint in complaints(monitor))
    rule = copy.deepcopy(rendered("PrometheusRule"))
    rule["spec"]["groups"][0]["rules"][0]["for"] = 60
    assert any("60" in complaint for complaint in complaints(rule))
    del rule["spec"]["groups"][0]["rules"][0]["expr"]
    assert any("'expr' is a required property" in complaint for complaint in complaints(rule))
