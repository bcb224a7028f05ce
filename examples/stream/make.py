"""Create this folder from the full stream: `python examples/stream/make.py SOURCE_FOLDER`.

Rows are drawn with a fixed seed and keep their order. parts_dt is cut in two halves, so that a pair
of modalities comes twice.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MODALITIES = {"v": "image", "t": "text", "a": "audio", "d": "depth"}
WIDTHS = {"image": 1280, "text": 384, "audio": 768, "depth": 640}
# (source, name, first and last training row, first and last evaluation row), in stream order
CUTS = [
    ("08_fashion_vt", "fashion", 0, 1400, 0, 300),
    ("04_parts_dt", "parts-1", 0, 700, 0, 220),
    ("06_parts_vd", "parts-views", 0, 1000, 0, 300),
    ("03_digits_va", "digits", 0, 1200, 0, 300),
    ("04_parts_dt", "parts-2", 700, 1400, 220, 440),
]


def cut(source: Path, target: Path, first: int, last: int) -> dict[str, object]:
    """Write rows first..last of a fixed shuffle of `source`, in their original order."""
    table = pq.read_table(source)
    chosen = np.sort(np.random.default_rng(0).permutation(len(table))[first:last])
    pq.write_table(
        table.take(pa.array(chosen)).replace_schema_metadata(None),
        target,
        compression="zstd",
        compression_level=19,
        use_dictionary=["label"],
        column_encoding={f"feature_{side}.list.element": "BYTE_STREAM_SPLIT" for side in "ab"},
        row_group_size=512,
    )
    return {"file": target.name, "rows": len(chosen)}


def main(source: Path, target: Path) -> None:
    stream = []
    for number, (stem, name, *bounds) in enumerate(CUTS, start=1):
        first, second = (MODALITIES[letter] for letter in stem[-2:])
        base = f"{number:02d}_{name}_{stem[-2:]}"
        stream.append(
            {
                "name": name,
                "pair": {"first": first, "second": second},
                "train": cut(
                    source / f"{stem}.train.parquet", target / f"{base}.train.parquet", *bounds[:2]
                ),
                "evaluation": cut(
                    source / f"{stem}.test.parquet", target / f"{base}.test.parquet", *bounds[2:]
                ),
            }
        )
    document = {"modalities": WIDTHS, "datasets": stream}
    (target / "stream.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)
