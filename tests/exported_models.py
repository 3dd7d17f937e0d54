"""What exported models say of themselves, read as any program would."""

import json
import zipfile
from pathlib import Path
from typing import Any


def metadata_of(out: Path, form: str) -> dict[str, Any]:
    if form == "keras":
        with zipfile.ZipFile(out) as archive:
            return json.loads(archive.read("pipeline.json"))
    if form == "onnx":
        import onnx

        return {item.key: json.loads(item.value) for item in onnx.load(out).metadata_props}
    record = "model.json" if form == "folder" else "assets.extra/pipeline.json"
    return json.loads((out / record).read_text())
