"""The steps of a reload over several workers, with workers that only note what they are asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from esp.commands.reloading_workers import InWorker, OfWorkers
from esp.core import config as configs
from esp.core.background import Background
from esp.core.config import Config
from esp.core.former import Former
from esp.core.proxy import Proxy
from esp.core.workers import Channel, ChannelError, Supervisor

TEXT = "shards: [{name: a, endpoints: ['http://127.0.0.1:1'], ranges: [{start: '', end: ''}]}]\nworkers: 3\n"
STEPS = ["check", "prepare", "close", "look", "install", "open"]


class World:
    """A supervisor with three workers, and what these were asked, in order: the step, then the worker's number.

    Attributes:
        fails: by step and worker, the reason why the worker refuses; "" for one that dies.
        before: called before a worker does a step.
    """

    def __init__(self, path: Path) -> None:
        path.write_text(TEXT)
        self.asked: list[tuple[str, int]] = []
        self.fails: dict[tuple[str, int], str] = {}
        self.ended: list[int] = []
        self.before: Callable[[str, int], object] = lambda _, __: None
        self.is_handing_over = False
        self.answers = asyncio.Event()
        self.answers.set()
        self.all = {number: cast("Channel", _Worker(self, number)) for number in range(3)}
        self.reloads = OfWorkers(
            configs.load(path),
            cast("Supervisor", self),
            lambda text: configs.parse(text, path),
            Background(),
            lambda _: None,
            lambda: self.is_handing_over,
            Former(),
        )

    def channels(self) -> dict[int, Channel]:
        return dict(self.all)

    def end(self, number: int, _: float) -> None:
        self.ended.append(number)

    def steps(self, number: int) -> list[str]:
        """What a worker was asked."""
        return [step for step, asked in self.asked if asked == number]


class _Worker:
    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number

    def tell(self, _: str, *, step: str, number: int) -> None:
        self.world.asked.append((step, self.number))

    async def ask(self, _: str, __: float, *, step: str, **fields: Any) -> Mapping[str, Any]:
        world = self.world
        world.before(step, self.number)
        world.asked.append((step, self.number))
        await world.answers.wait()
        why = world.fails.get((step, self.number))
        if why == "":
            raise ChannelError("the process has ended")
        result = {"check": "possible", "install": "done", "open": "done"}.get(step, "refused")
        return {
            "result": "refused" if why else result,
            "epoch": 2,
            "changes": None,
            "reasons": [why] if why else [],
            "warnings": [],
            "notes": [],
            "lines": ["a change"],
            "is_prepared": not why,
            "closes": True,
            "former": [["61", None, "a", 7]],
        }


def run(tmp_path: Path, test: Callable[[World], Any]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test(World(tmp_path / "esp.yaml"))

    asyncio.run(bounded())


def test_no_worker_does_a_step_before_all_have_done_the_one_before(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        def before(step: str, _: int) -> None:
            assert world.reloads.is_settled.is_set() == (step != "install"), "nobody begins to serve meanwhile"

        world.before = before
        answer = await world.reloads.reload("test")
        assert (answer["result"], answer["warnings"], answer["lines"]) == ("done", [], ["a change"])
        assert not {"former", "is_prepared", "closes"} & answer.keys()
        workers = {"look": [0]}
        assert world.asked == [(step, number) for step in STEPS for number in workers.get(step, [0, 1, 2])]
        assert world.reloads.former.dump() == [["61", None, "a", 7]]

    run(tmp_path, test)


@pytest.mark.parametrize("why", ["no such shard", ""])
@pytest.mark.parametrize("step", ["prepare", "close", "look"])
def test_what_one_worker_cannot_do_none_does(tmp_path: Path, step: str, why: str) -> None:
    number = 0 if step == "look" else 1

    async def test(world: World) -> None:
        before = world.reloads.config
        world.fails[step, number] = why
        answer = await world.reloads.reload("test")
        assert answer["result"] == "refused"
        [reason] = answer["reasons"]
        assert reason.endswith(why or "the process has ended")
        assert reason.startswith(f"worker {number}: ") == (step != "look" or not why), "the only one that was asked"
        assert "install" not in [asked for asked, _ in world.asked]
        assert [world.steps(each)[-1] for each in range(3)] == ["end"] * 3
        assert world.reloads.config is before
        assert world.reloads.is_settled.is_set()
        assert not world.ended

    run(tmp_path, test)


@pytest.mark.parametrize("step", STEPS[1:4])
def test_a_worker_that_begins_anew_meanwhile_and_a_takeover_refuse_it(tmp_path: Path, step: str) -> None:
    async def test(world: World) -> None:
        def anew(asked: str, _: int) -> None:
            if asked == step:
                world.all[2] = cast("Channel", _Worker(world, 2))

        world.before = anew
        answer = await world.reloads.reload("test")
        assert answer["reasons"] == ["a worker has ended; try again when it serves"]
        assert "install" not in [asked for asked, _ in world.asked]

        def takes_over(asked: str, _: int) -> None:
            world.is_handing_over = asked == step

        world.asked.clear()
        world.before = takes_over
        world.is_handing_over = False
        answer = await world.reloads.reload("test")
        assert (answer["result"], "install" in [asked for asked, _ in world.asked]) == (
            ("refused", False) if step == "look" else ("done", True)
        )

    run(tmp_path, test)


@pytest.mark.parametrize("step", ["install", "open"])
@pytest.mark.parametrize("why", ["a bug", ""])
def test_once_it_is_decided_a_worker_that_fails_begins_anew_with_the_new_config(
    tmp_path: Path, step: str, why: str
) -> None:
    async def test(world: World) -> None:
        before = world.reloads.config
        decided: list[Config] = []
        world.before = lambda asked, _: decided.append(world.reloads.config) if asked == "install" else None
        world.fails[step, 1] = why
        answer = await world.reloads.reload("test")
        assert answer["result"] == "done"
        [warning] = answer["warnings"]
        assert warning.startswith("worker 1 begins anew: ")
        assert all(one is not before for one in decided), "whoever begins anew from here on begins with the new config"
        assert world.reloads.config is decided[0]
        assert world.ended == ([1] if step == "install" else [])
        assert world.steps(0) == STEPS
        assert world.steps(2) == [each for each in STEPS if each != "look"]
        assert "end" not in [asked for asked, _ in world.asked]

    run(tmp_path, test)


def test_a_worker_takes_no_step_of_a_reload_that_was_given_up(tmp_path: Path) -> None:
    path = tmp_path / "esp.yaml"
    path.write_text(TEXT + "listen: ['http://127.0.0.1:0']\n")

    async def test() -> None:
        proxy = Proxy(configs.load(path))
        async with proxy:
            worker = InWorker(proxy, lambda text: configs.parse(text, path), lambda _: None)
            limited = path.read_text() + "limits: {max_tokens: 9}\n"

            async def step(name: str, number: int) -> Mapping[str, Any]:
                return await worker.answer({"step": name, "number": number, "text": limited, "force": False})

            assert (await step("prepare", 1))["is_prepared"]
            assert (await step("prepare", 2))["is_prepared"]
            for late in ("close", "install", "open", "end"):
                with pytest.raises(ChannelError, match="given up"):
                    await step(late, 1)
            await step("end", 2)
            with pytest.raises(ChannelError, match="given up"):
                await step("install", 2)
            assert proxy.config.limits.max_tokens != 9
            for name in ("prepare", "close", "look", "install", "open"):
                answer = await step(name, 3)
            assert answer["result"] == "done"
            assert proxy.config.limits.max_tokens == 9
            assert proxy.reloads == {"refused": 1, "done": 1}

    asyncio.run(test())
