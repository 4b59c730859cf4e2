"""Make the picture of the README from the film of an evaluation.

python runs/picture.py outputs/demo/plain docs/drawer.gif
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
from PIL import Image


def main(evaluation: Path, output: Path, every: int = 3) -> None:
    films = sorted(evaluation.glob("episodes/*/rollout.mp4"))
    if not films:
        raise SystemExit(f"expected films under {evaluation / 'episodes'}, found none; evaluate with --record-episodes")
    with av.open(str(films[0])) as film:
        frames = [frame.to_image() for frame in film.decode(video=0)][::every]
    palette = [frame.convert("P", palette=Image.Palette.ADAPTIVE, colors=64) for frame in frames]
    output.parent.mkdir(parents=True, exist_ok=True)
    palette[0].save(output, save_all=True, append_images=palette[1:], duration=80, loop=0, optimize=True)
    print(f"{output}: {len(palette)} frames of {films[0]}, {output.stat().st_size // 1024} KB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
