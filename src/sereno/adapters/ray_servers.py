"""Servers as actors of a Ray cluster: named and detached, so that they outlive whoever asked for them and are found again.

The servers of a home have places: a placement group of Ray's, each place on a node of its own. Where a node dies, Ray moves
its place to another one that has room, and starts the actor there. A group cannot grow: another number of places is
another group, the next *generation*.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from sereno.adapters.executors.ray_connection import RayConnection, address_of, require_ray, runtime_env_of
from sereno.exceptions import BusyError
from sereno.serve.on_ray.replica import Name, Replica, Spec, Status
from sereno.settings import RaySettings

NAMESPACE = "sereno"
LOST_SECONDS = 4.0  # without an answer
LOCK_SECONDS = 15.0  # until Ray knows that who held it is gone


@dataclass
class _Asked:
    """The question how a replica is, which is always on its way."""

    actor: Any
    answer: Any = None  # the reference to it, while it is awaited
    heard_at: float = field(default_factory=time.monotonic)
    status: Status | None = None


class RayServers:
    """The servers of one home on a cluster. One thread; everything returns within moments, as long as Ray's head answers."""

    def __init__(self, settings: RaySettings, home: Path) -> None:
        """Connects; without an address, to a Ray that is started here and ends with this process.

        Raises MissingExtraError, SettingsError (another token, an address that is none), WorkerError (no cluster there).
        """
        require_ray("`--on ray`")
        self._settings = settings
        self.address = address_of(settings)
        self._prefix = f"sereno serve {home}"
        self._cpus = settings.server_cpus
        self._needs = {"CPU": self._cpus} if self._cpus else {"memory": 1.0}  # a place of nothing cannot be
        self._runtime_env = runtime_env_of(settings)
        self._asked: dict[Name, _Asked] = {}
        self._lock: Any = None
        self._connection = RayConnection(self.address, namespace=NAMESPACE)

    def close(self) -> None:
        """What it has started goes on, but on a Ray that was started here."""
        self._connection.close()

    def lock(self, who: str) -> None:
        """Nobody else looks after the servers of this home as long as this process lives. Raises BusyError."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = ray.get_runtime_context().get_node_id()  # so that it is not lost with another node
        options = {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                actor = ray.remote(Holder).options(name=self._prefix, namespace=NAMESPACE, **options)
                self._lock = actor.remote(who)
                return
            except ValueError:
                if time.monotonic() > deadline:
                    raise BusyError(
                        f"`sereno serve --on ray` runs already for this home ({self._holder()}). End it, or send it a SIGHUP "
                        "if the servers should read their files again."
                    ) from None
            time.sleep(0.2)  # one that was killed is forgotten within seconds

    def _holder(self) -> str:
        import ray

        try:
            actor = ray.get_actor(self._prefix, namespace=NAMESPACE)
            return str(ray.get(actor.who.remote(), timeout=5.0))
        except (ValueError, ray.exceptions.RayError):
            return "nobody can say where"

    # Nodes and places

    def addresses(self) -> list[str]:
        """Of the nodes that have so many CPUs in all, in use or not."""
        able = [node for node in _nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= self._cpus]
        return [str(node["NodeManagerAddress"]) for node in able]

    def generations(self) -> dict[int, int]:
        """Generation → how many places it has, or will have once there is room."""
        return {generation: len(one["bundles"]) for generation, one in self._groups().items()}

    def open(self, generation: int, places: int) -> None:
        """Ask for places, each on a node of its own: all of them, or none until there is room for all."""
        from ray.util.placement_group import placement_group

        placement_group([self._needs] * places, "STRICT_SPREAD", self._group(generation), lifetime="detached")

    def is_open(self, generation: int) -> bool:
        """Whether all of its places have had room."""
        found = self._groups().get(generation)
        return found is not None and found["state"] != "PENDING"

    def place(self, generation: int, index: int) -> str:
        """The address of the node where it is; empty where none has room."""
        nodes = {node["NodeID"]: str(node["NodeManagerAddress"]) for node in _nodes() if node["Alive"]}
        found = self._groups().get(generation)
        return nodes.get(found["bundles_to_node_id"].get(index, ""), "") if found is not None else ""

    def close_places(self, generation: int) -> None:
        """With all that is still in them."""
        from ray.util.placement_group import get_placement_group, remove_placement_group

        with contextlib.suppress(ValueError):
            remove_placement_group(get_placement_group(self._group(generation)))
        for name in [name for name in self._asked if name.generation == generation]:
            self.remove(name)

    def _groups(self) -> dict[int, dict[str, Any]]:
        from ray.util.placement_group import placement_group_table

        found = {}
        for group in placement_group_table().values():
            prefix, _, number = str(group["name"]).rpartition(" ")
            if prefix == self._prefix and number.isdecimal() and group["state"] != "REMOVED":
                found[int(number)] = group
        return found

    def _group(self, generation: int) -> str:
        return f"{self._prefix} {generation}"

    # Replicas

    def find(self) -> list[Name]:
        """Those that there are, also of a command that was killed. They are asked how they are from now on."""
        import ray

        for one in ray.util.list_named_actors(all_namespaces=True):
            prefix, _, rest = one["name"].rpartition(" ")
            parts = rest.split(".")
            if one["namespace"] != NAMESPACE or prefix != self._prefix or len(parts) != 3:
                continue
            name = Name(int(parts[0]), int(parts[1]), parts[2])
            if name not in self._asked:
                with contextlib.suppress(ValueError):
                    self._asked[name] = _Asked(ray.get_actor(one["name"], namespace=NAMESPACE))
        return self.names()

    def names(self) -> list[Name]:
        """Those that are known here."""
        return sorted(self._asked)

    def start(self, generation: int, index: int, spec: Spec) -> Name:
        """A replica in that place. Ray starts it, also again, until it is removed."""
        import ray
        from ray.util.placement_group import get_placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        name = Name(generation, index, spec.digest)
        group = get_placement_group(self._group(generation))
        place = group.bundle_specs[index]  # as it was opened, perhaps by a command with another `ray.server_cpus`
        options: dict[str, Any] = {
            "name": self._actor(name),
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "num_cpus": place.get("CPU", 0),
            "max_restarts": -1,
            "max_task_retries": 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        }
        if "memory" in place:
            options["memory"] = place["memory"]
        if self._runtime_env:
            options["runtime_env"] = self._runtime_env
        actor = ray.remote(Server).options(**options).remote(msgspec.json.encode(spec))
        self._asked[name] = _Asked(actor)
        return name

    def look(self, seconds: float) -> None:
        """Take in what replicas have answered; wait for that no longer than so long."""
        import ray

        for one in self._asked.values():
            if one.answer is None:
                one.answer = one.actor.status.remote()
        awaited = {one.answer: one for one in self._asked.values()}
        if not awaited:
            return
        answered, _ = ray.wait([*awaited], num_returns=len(awaited), timeout=seconds)
        for answer in answered:
            one = awaited[answer]
            one.answer = None
            with contextlib.suppress(ray.exceptions.RayError):  # it is being started again
                one.status = msgspec.json.decode(ray.get(answer), type=Status)
                one.heard_at = time.monotonic()

    def status(self, name: Name) -> Status | None:
        """What it said last; None where it has not said anything for long, or at all."""
        one = self._asked.get(name)
        return one.status if one is not None and time.monotonic() - one.heard_at < LOST_SECONDS else None

    def reload(self, name: Name) -> None:
        self._asked[name].actor.reload.remote()

    def stop(self, name: Name) -> None:
        self._asked[name].actor.stop.remote()

    def remove(self, name: Name) -> None:
        """It ends, with its server, at once, and is not started again."""
        import ray

        one = self._asked.pop(name, None)
        if one is not None:
            with contextlib.suppress(ValueError, ray.exceptions.RayError):
                ray.kill(one.actor)

    def _actor(self, name: Name) -> str:
        return f"{self._prefix} {name.generation}.{name.index}.{name.digest}"


class Server(Replica):
    """The actor."""

    def __init__(self, spec: bytes) -> None:
        import ray

        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("0")  # Ray has the kernel take its processes first where memory runs out: runs, and not the API
        super().__init__(spec, str(ray.util.get_node_ip_address()))  # type: ignore[no-untyped-call]


class Holder:
    """An actor that only says who looks after the servers: Ray gives its name to one at a time."""

    def __init__(self, who: str) -> None:
        self._who = who

    def who(self) -> str:
        return self._who


def _nodes() -> list[dict[str, Any]]:
    import ray

    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return found
