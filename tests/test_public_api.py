"""The public surface: its names, their signatures, and what importing it does not load."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys

import pytest

import leanconv
from leanconv.ops import OPERATORS

SIGNATURES = {
    "create_model": "(name, /, **options)",
    "list_models": "(pattern='*')",
    "rewrite": "(model, *steps, size=None, optimizer=None, source=None, source_options=None)",
    "measure": "(model, size=None, *, batch=1, all_operations=False)",
    "make_elastic": (
        "(model, widths=(0.25, 1.0), resolutions=(224, 192, 160, 128), *, frames=(), divisor=8, size=None, "
        "keep=(), ratios=None, source=None, source_options=None)"
    ),
    "calibrate": "(net, loader, configs=None, *, max_images=2048, min_images=16)",
    "accelerate": "(model, size=None, *, tolerance=0.0001, seed=0)",
    "export": (
        "(model, path, *, size=None, contract=None, input_type='float32', precision='fp32', data=None, "
        "calibration=128, dynamic_batch=True, dynamic_size=False, tolerance=None, samples=3, seed=0, opset=None, "
        "fold=True, compiled=False, kernels=False)"
    ),
    "predict": (
        "(model, files, *, top=5, options=None, size=None, width=None, resolution=None, clips=None, given=None, "
        "contact_sheet=None, trust_code=False)"
    ),
    "evaluate": (
        "(model, data=None, *, part=None, size=None, width=None, resolution=None, clips=None, crops=None, given=None, "
        "trust_code=False)"
    ),
    "save": "(model, folder, *, source=None, source_options=None, story=None, size=None)",
    "load": "(folder, *, trust_code=False)",
    "OptimizedSeparable": (
        "(*, where='kernel>1 groups=1 !stem', init='project', between='none', num_separated=2, overlap=1.0, "
        "width='normal', spatial=False, search='paper', stage_groups=None, "
        "kernel_at='middle', at_most_dense=False, stage_kernels=None, inner_channels=None)"
    ),
    "InterleavedGroup": (
        "(*, where='kernel>1 groups=1 !stem', init='project', between='none', primary_partitions=None, "
        "secondary_partitions=None, secondary_of='out', spatial='primary', split_primary=False, primary_outputs=1.0, "
        "dense_secondary=False)"
    ),
    "ChannelSeparated": (
        "(*, where='kernel>1 groups=1 !stem', init='project', between='bn', mode='ip', space_time=False)"
    ),
    "InterleavedGroupConv2d": (
        "(in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True, "
        "padding_mode='zeros', device=None, dtype=None, *, between='none', primary_partitions=None, "
        "secondary_partitions=None, secondary_of='out', spatial='primary', split_primary=False, primary_outputs=1.0, "
        "dense_secondary=False)"
    ),
}


def plain(name: str) -> str:
    """The signature without annotations, which change with every typing fashion."""
    signature = inspect.signature(getattr(leanconv, name))
    return str(
        signature.replace(
            parameters=[p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()],
            return_annotation=inspect.Signature.empty,
        )
    )


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    assert plain(name) == SIGNATURES[name]


def test_every_public_name_is_there_and_documented() -> None:
    for name in leanconv.__all__:
        value = getattr(leanconv, name)
        assert name == "__version__" or inspect.getdoc(value), name
    assert sorted(leanconv.__all__) == dir(leanconv)


def imported_for_type_checkers() -> dict[str, str]:
    """Name -> module, of the imports that only type checkers see."""
    (block,) = (node for node in ast.parse(inspect.getsource(leanconv)).body if isinstance(node, ast.If))
    lines = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(lines) == len(block.body)
    assert all(alias.asname == alias.name for line in lines for alias in line.names)  # said to be public on purpose
    return {alias.name: str(line.module) for line in lines for alias in line.names}


def test_type_checkers_see_the_same_names() -> None:
    seen = imported_for_type_checkers()
    for name, module in seen.items():
        assert getattr(leanconv, name) is getattr(importlib.import_module(module), name)
    operators = {name for cls in OPERATORS.values() for name in importlib.import_module(cls.__module__).__all__}
    assert set(leanconv.__all__) - operators - {"__version__"} <= set(seen) <= set(leanconv.__all__)


@pytest.mark.parametrize("stem", OPERATORS)
def test_what_an_operators_file_lists_is_public(stem: str) -> None:
    operator = OPERATORS[stem]
    names = importlib.import_module(operator.__module__).__all__
    assert operator.__name__ in names
    assert set(names) <= set(leanconv.__all__)
    assert all(getattr(leanconv, name).__module__ == operator.__module__ for name in names)


def test_star_import_gives_the_public_names() -> None:
    got: dict[str, object] = {}
    exec("from leanconv import *", got)
    assert set(got) - {"__builtins__"} == set(leanconv.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'octavize'"):
        leanconv.octavize  # noqa: B018


def test_functions_stay_functions_whatever_was_imported() -> None:
    """A room of the same name as a public function would replace it as soon as somebody imported the room."""
    code = "import leanconv as lc; lc.create_model; lc.make_elastic; lc.export; "
    code += "import inspect; print(inspect.isfunction(lc.rewrite), inspect.isfunction(lc.measure))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_import_loads_no_torch() -> None:
    code = "import sys, leanconv; assert leanconv.LeanconvError; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "use", ["", "lc.measure; lc.rewrite; lc.OptimizedSeparable; lc.make_elastic; lc.create_model; dir(lc)"]
)
def test_import_loads_no_heavy_package(use: str) -> None:
    heavy = "{'torchvision', 'timm', 'lightning', 'onnx', 'onnxruntime', 'matplotlib', 'sklearn', 'pyarrow'}"
    code = f"import sys, leanconv as lc; {use}\nprint(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
