"""Every configuration of an elastic network as a file of its own, all of them or none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from leanconv.data.contract import InputContract, contract_of
from leanconv.deploy.export import ExportReport, export
from leanconv.elastic import ElasticNet
from leanconv.elastic.width import Config
from leanconv.errors import ExportError
from leanconv.files import unwritable, whole_folder

__all__ = ["INDEX", "export_configurations"]

INDEX = "files.json"
"""What says which file is which configuration."""


def export_configurations(
    net: ElasticNet,
    folder: str | os.PathLike[str],
    configs: Sequence[Config],
    *,
    suffix: str = ".onnx",
    data: Callable[[InputContract], Iterable[Any]] | None = None,
    **options: Any,
) -> list[ExportReport]:
    """Write each of `configs` of `net` into `folder`, as `export` does; returns what it reports, in order.

    A file is called width0.5_at160.onnx (_frames8 for clips whose frames are elastic); files.json lists them. `data`
    opens the labelled inputs for a contract, because each resolution has its own; `options` are those of `export`.
    Nothing is written unless all can be.

    Raises what `export` and `net.extract` raise, and `ExportError` where there is nothing to export.
    """
    folder = Path(folder)
    if not configs:
        raise ExportError(f"{folder}: there is no configuration to export")
    reports: list[ExportReport] = []
    with whole_folder(folder, lambda reason: unwritable(folder, reason, error=ExportError), last=INDEX) as room:
        for config in dict.fromkeys(configs):
            static = net.extract(*config)
            contract = contract_of(static)
            if data is not None and contract is None:
                raise ExportError(f"{folder}: images cannot be prepared for a model without an input contract")
            loader = None if data is None or contract is None else data(contract)
            path = room / f"{_name(config)}{suffix}"
            reports.append(export(static, path, size=net.inputs.at(config), data=loader, **options))
        moved = [
            replace(report, path=folder / report.path.name, files=tuple(folder / file.name for file in report.files))
            for report in reports
        ]
        index = [
            {
                "file": report.path.name,
                "width": float(config.width),
                "resolution": config.resolution,
                **({} if config.frames is None else {"frames": config.frames}),
                "precision": report.precision,
                "input": report.input_type,
                "max_abs_difference": report.max_abs_difference,
                "scores": None if report.scores is None else report.scores.to_json(),
            }
            for config, report in zip(dict.fromkeys(configs), moved, strict=True)
        ]
        (room / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return moved


def _name(config: Config) -> str:
    frames = "" if config.frames is None else f"_frames{config.frames}"
    return f"width{float(config.width):g}_at{config.resolution}{frames}"
