"""Print a classes file of all 65 classes of Mapillary Vistas 1.2, from the config.json of the release.

``python -m semivid.data.mapillary_classes config.json > mapillary65.yaml``; then `data.classes: mapillary65.yaml`.
"""

import argparse
import sys
from pathlib import Path

from semivid.data.readers.mapillary import classes_file
from semivid.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(prog="mapillary_classes", description="Print a classes file (YAML).")
    parser.add_argument("config", type=Path, help="config.json (or config_v1.2.json) of the release")
    try:
        text = classes_file(parser.parse_args().config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    sys.stdout.buffer.write(f"{text}\n".encode())  # UTF-8 whatever the terminal's encoding


if __name__ == "__main__":
    main()
