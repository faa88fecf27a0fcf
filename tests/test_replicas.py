"""Which devices a worker computes on, and what `precision: auto` means there."""

import pytest

from skinray.replicas import Replicas, dtype_policy, fastest_precision


@pytest.mark.parametrize(("gpus", "done"), [(0, ["GPUs hidden", "strategy"]), (1, ["strategy"])])
def test_a_worker_without_gpus_sees_none_of_the_machines(gpus: int, done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    calls: list[str] = []

    def hide(devices: list[object], kind: str) -> None:
        assert (devices, kind) == ([], "GPU")
        calls.append("GPUs hidden")

    monkeypatch.setattr(tf.config, "set_visible_devices", hide)
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda **_: calls.append("strategy"))
    Replicas(0, 1, gpus)
    assert calls == done


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("fpu sse avx2 avx512f", "float32"),
        ("fpu avx512f avx512_bf16 avx512_vnni", "bfloat16"),
        ("fpu amx_bf16 amx_tile amx_int8", "bfloat16"),
        ("fpu avx512_bf16x", "float32"),
        ("", "float32"),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_arithmetic_for_it(flags: str, precision: str) -> None:
    assert fastest_precision(f"model name : x\nflags\t\t: {flags}\n") == precision


@pytest.mark.parametrize(
    ("gpus", "precision"), [([(8, 0)], "bfloat16"), ([(9, 0), (7, 5)], "float16"), ([(7, 0)], "float16"), ([(6, 1)], "float32")]
)
def test_gpus_compute_in_what_the_oldest_of_them_has(
    gpus: list[tuple[int, int]], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "get_visible_devices", lambda _: gpus)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"compute_capability": gpu})
    assert fastest_precision() == precision


def test_half_precision_keeps_float32_weights() -> None:
    assert [dtype_policy(name) for name in ("float32", "bfloat16", "float16", "float64")] == [
        "float32",
        "mixed_bfloat16",
        "mixed_float16",
        "float64",
    ]
