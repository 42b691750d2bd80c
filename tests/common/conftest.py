"""The markers that transformers' own tests carry."""

MARKERS = [
    "accelerate_tests",
    "executorch_export_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "flash_attn_test",
    "generate",
    "is_training_test",
    "onnx_export_test",
    "order",
    "timeout",
    "torch_compile_test",
    "torch_export_test",
]


def pytest_configure(config):
    for name in MARKERS:
        config.addinivalue_line("markers", f"{name}: of transformers")
