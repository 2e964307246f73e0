"""Crashes: of the API server, of the controllers, and of the process that runs all parts."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from controllers_world import Kubelet, World, deployment
from lightkube.models.apps_v1 import Deployment
from lightkube.models.coordination_v1 import Lease
from lightkube.models.core_v1 import Namespace, Node, Pod
from lightkube.models.meta_v1 import ObjectMeta
from support.apiserver import ApiServer, free_ports

from kernelet.core.api.models import to_model
from kernelet.core.client.client import Client
from kernelet.core.controllers.access import labels_of, name_of, uid_of
from kernelet.core.controllers.manager import ManagerConfig, run_controllers
from kernelet.core.controllers.pods import ready
from kernelet.core.scheduler.main import run_scheduler

GRACE = 2.5


async def test_no_node_is_given_up_because_the_api_server_was_away(api_server: ApiServer) -> None:
    config = ManagerConfig(node_monitor_grace_period=GRACE, node_monitor_period=0.2)
    async with api_server.client() as client, Client(api_server.config()) as own:
        world = World(client)
        tasks = [asyncio.create_task(informer.run()) for informer in world.informers.values()]
        tasks.append(asyncio.create_task(run_controllers(own, config)))
        kubelets = [Kubelet(world, f"n{number}", number) for number in range(2)]
        for kubelet in kubelets:
            await kubelet.start()
        await world.until(lambda: len([node for node in world.items(Node) if node.spec and node.spec.podCIDR]) == 2)

        def check() -> None:
            assert not any(node.spec and node.spec.taints for node in world.items(Node)), "a node was given up"

        world.always(check)
        api_server.kill()
        await asyncio.sleep(1.5 * GRACE)  # Longer than any grace: that nothing happens has no event to await.
        api_server.start()
        await client.create(Namespace(metadata=ObjectMeta(name="after")))
        await world.until(lambda: world.get(Namespace, "after"))
        await asyncio.sleep(1.5 * GRACE)
        for kubelet in kubelets:
            await kubelet.stop()
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [error for error in ended if isinstance(error, Exception)]


async def test_controllers_killed_in_the_middle_of_an_update_finish_it_after_their_restart(
    api_server: ApiServer,
) -> None:
    async with api_server.client() as client:
        world = World(client)
        tasks = [asyncio.create_task(informer.run()) for informer in world.informers.values()]
        tasks.append(asyncio.create_task(run_scheduler(client)))
        kubelet = Kubelet(world, "n1", 1)
        await kubelet.start()
        await client.create(Namespace(metadata=ObjectMeta(name="work")))
        await client.create(deployment("web", "work", 6))
        images = ["app:1"]
        for round_ in range(6):
            controllers = asyncio.create_task(run_controllers(client, ManagerConfig()))
            images.append(f"app:{round_ + 2}")
            await world.until(lambda: _oldest_gone(world, images))
            container = {"name": "main", "image": images[-1]}
            patch = {"spec": {"template": {"spec": {"containers": [container]}}}}
            await client.patch(Deployment, "web", patch, "work")
            pods = {uid_of(pod) for pod in world.items(Pod)}
            await world.until(lambda pods=pods: {uid_of(pod) for pod in world.items(Pod)} != pods)  # type: ignore[misc]
            controllers.cancel()
            await asyncio.wait([controllers])
        last = asyncio.create_task(run_controllers(client, ManagerConfig()))
        await world.until(lambda: _images(world) == [images[-1]] * 6)
        await kubelet.stop()
        for task in (*tasks, last):
            task.cancel()
        await asyncio.wait([*tasks, last])


def _oldest_gone(world: World, images: list[str]) -> bool:
    return len(_images(world)) >= 4 and not set(images[:-2]) & set(_images(world))


def _images(world: World) -> list[str]:
    return [pod.spec.containers[0].image or "" for pod in world.items(Pod) if pod.spec and ready(pod)]


async def test_one_process_runs_controllers_scheduler_and_routes_and_stops_cleanly(
    api_server: ApiServer, tmp_path: Path
) -> None:
    log = tmp_path / "controllers.log"
    program = "from kernelet.core.controllers.main import command; command()"
    flags = ["--kubeconfig", str(api_server.data / "admin.kubeconfig"), "--bind", "127.0.0.1"]
    flags += ["--routes-port", str(free_ports(1)[0]), "--log-level", "DEBUG"]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, *flags, stdout=output, stderr=output
        )
    try:
        async with api_server.client() as client:
            world = World(client)
            tasks = [asyncio.create_task(informer.run()) for informer in world.informers.values()]
            kubelet = Kubelet(world, "n1", 1)
            await kubelet.start()
            await client.create(deployment("web", "default", 3))
            await world.until(lambda: len([pod for pod in world.items(Pod) if ready(pod)]) == 3)
            assert {labels_of(pod)["app"] for pod in world.items(Pod)} == {"web"}
            leases = (await client.list(Lease, "kube-system")).items
            assert {name_of(lease) for lease in leases} >= {"kernelet-controllers", "kernelet-routes"}
            await kubelet.stop()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0, log.read_text()[-3000:]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert "Traceback" not in log.read_text(), log.read_text()[-5000:]


async def test_the_oldest_finished_pods_beyond_the_threshold_are_removed(api_server: ApiServer) -> None:
    async with api_server.client() as client:
        world = World(client)
        await client.create(Namespace(metadata=ObjectMeta(name="jobs")))
        spec = {"containers": [{"name": "main", "image": "app:1"}]}
        for number in range(5):
            name = f"done-{number}"
            await client.create(to_model(Pod, {"metadata": {"name": name, "namespace": "jobs"}, "spec": spec}))
            await client.patch(Pod, name, {"status": {"phase": "Succeeded"}}, "jobs", subresource="status")
        tasks = [asyncio.create_task(informer.run()) for informer in world.informers.values()]
        tasks.append(asyncio.create_task(run_controllers(client, ManagerConfig(terminated_pod_gc_threshold=2))))
        await world.until(lambda: len(world.items(Pod)) == 5)
        await world.until(lambda: len(world.items(Pod)) == 2)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
