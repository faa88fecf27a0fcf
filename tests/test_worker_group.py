"""Whether workers fit is counted machine by machine."""

import pytest

from skinray.worker_group import room_for_workers


@pytest.mark.parametrize(
    ("machines", "cpus", "gpus", "room"),
    [
        ([{"CPU": 2.0}, {"CPU": 2.0}], 1, 0, 4),
        ([{"CPU": 2.0}, {"CPU": 2.0}], 4, 0, 0),  # as many CPUs as one worker needs, on two machines
        ([{"CPU": 3.0}, {"CPU": 3.0}], 2, 0, 2),
        ([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 4.0}], 2, 1, 1),
        ([{"CPU": 8.0}], 2, 1, 0),
        ([], 1, 0, 0),
    ],
)
def test_a_worker_lies_on_one_machine(machines: list[dict[str, float]], cpus: int, gpus: int, room: int) -> None:
    assert room_for_workers(machines, cpus, gpus) == room
