"""The manifests in deploy/kubernetes: valid to Kubernetes, and at one with the settings."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from stream_rec.cli.main import cli
from stream_rec.config import Settings, load_settings

FOLDER = Path(__file__).parents[1] / "deploy" / "kubernetes"
KUBERNETES = "1.33"
ELSEWHERE = ("kustomize.config.k8s.io", "keda.sh")
"""Whose kinds Kubernetes' own schemas do not hold."""


def documents() -> list[dict[str, Any]]:
    return [one for path in sorted(FOLDER.glob("*.yaml")) for one in yaml.safe_load_all(path.read_text())]


def of(kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in documents() if one["kind"] == kind}


def kustomization() -> dict[str, Any]:
    (found,) = (one for one in documents() if one["kind"] == "Kustomization")
    return found


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the containers read: the literals of the config map, as their environment."""
    (generated,) = kustomization()["configMapGenerator"]
    for literal in generated["literals"]:
        monkeypatch.setenv(*literal.split("=", 1))
    return load_settings()


def test_every_manifest_is_valid_and_applied() -> None:
    assert set(kustomization()["resources"]) == {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    for one in documents():
        if not one["apiVersion"].startswith(ELSEWHERE):
            kubernetes_validate.validate(one, KUBERNETES, strict=True)


@pytest.mark.parametrize("part", ["agents", "worker"])
def test_a_part_is_probed_disturbed_and_scaled_by_its_own_name(part: str, settings: Settings) -> None:
    spec = of("Deployment")[part]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert (
        spec["selector"]["matchLabels"] == labels == of("PodDisruptionBudget")[part]["spec"]["selector"]["matchLabels"]
    )
    (container,) = spec["template"]["spec"]["containers"]
    assert container["args"] == [part]
    assert part in cli.commands
    (port,) = container["ports"]
    assert port["containerPort"] == getattr(settings, f"{part}_metrics_port")
    assert spec["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("readiness", "liveness", "startup")}
    assert paths == {"readiness": "/readyz", "liveness": "/healthz", "startup": "/healthz"}
    assert settings.metrics_host == "0.0.0.0"  # noqa: S104 - the pod's own network
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(settings.cache_dir) in mounted
    scaled = of("ScaledObject")[part]["spec"]
    assert scaled["scaleTargetRef"] == {"name": part}
    assert scaled["minReplicaCount"] == spec["replicas"]
    assert scaled["maxReplicaCount"] == settings.partitions
    (trigger,) = scaled["triggers"]
    read = {"agents": settings.events_topic, "worker": settings.windows_topic}[part]
    assert trigger["metadata"]["topic"] == read
    assert trigger["metadata"]["consumerGroup"] == getattr(settings, f"{part}_group")
    assert trigger["metadata"]["bootstrapServers"] == settings.bootstrap_servers
    assert int(trigger["metadata"]["lagThreshold"]) < settings.ready_lag


def test_the_worker_finds_its_model_and_the_topics_are_created(settings: Settings) -> None:
    (worker,) = of("Deployment")["worker"]["spec"]["template"]["spec"]["containers"]
    assert any(settings.model.is_relative_to(mount["mountPath"]) for mount in worker["volumeMounts"])
    (topics,) = of("Job")["topics"]["spec"]["template"]["spec"]["containers"]
    assert topics["args"] == ["topics", "create"]


def test_no_container_may_more_than_it_needs() -> None:
    for one in [*of("Deployment").values(), *of("Job").values()]:
        pod = one["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
