"""What `fovea doctor --cluster` says where no API server answers; tests/cluster has a real one."""

import socket

import pytest
from kubernetes import client

from components.deploy.targets.cluster import Cluster
from fovea.errors import UserError
from pipelines.cluster.doctor import Examination
from pipelines.cluster.settings import ClusterSettings


def test_an_api_server_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.cluster.doctor._TIMEOUT", (5, 0.2))
    settings = ClusterSettings(image="registry.example/fovea@sha256:" + "1" * 64)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        configuration = client.Configuration()
        configuration.host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        configuration.retries = False
        cluster = Cluster(client.ApiClient(configuration), "shop")
        with pytest.raises(UserError, match="the API server does not answer"):
            list(Examination(cluster, settings).findings())
